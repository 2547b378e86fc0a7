//! The engine: *schedule → run → sample → emit*, a step at a time, on a thread of its own.
//!
//! `handle.rs` is its door (bounded channels), `scheduler.rs` and `waiting.rs` the pure policy, with `blocks.rs` and `prefix.rs`
//! for the cache, `job.rs` and `sequence.rs` what runs,
//! `sampling.rs` with `sampler.rs`, `weights.rs`, `penalties.rs`, `logprobs.rs` and `text.rs` what becomes of logits,
//! `parts.rs` what its time goes to. Must never touch the store or the broker. A sequence joins as soon
//! as there is room and leaves the moment it stops. Next: `results.rs`.

mod blocks;
mod compute;
mod deltas;
mod handle;
mod job;
mod logprobs;
mod metrics;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
mod on_gpu;
mod parts;
mod penalties;
mod prefix;
mod sampler;
mod sampling;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;
mod text;
#[cfg(test)]
mod unloading;
mod waiting;
mod weights;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::domain::{Completion, JobError, JobKey, Spent};
use claimcheck_common::tokenizer::Tokenizer;
use tokio::sync::mpsc;

pub use deltas::{Deltas, Followed};
pub use handle::{Ending, EngineConfig, EngineEvent, EngineHandle, EngineJob, EngineStopped};
pub use parts::{Part, StepParts};

use crate::gpt2::{Draw, StepModel, StepRow, Woken};
use blocks::Blocks;
use compute::{Computed, RowOutcome};
use handle::Inbox;
use job::{Job, SequenceId};
use metrics::Gauges;
use parts::Clock;
use prefix::Prefix;
use scheduler::{Planned, Scheduler};
use sequence::Token;
use waiting::Entry;

/// Runs jobs on one model.
pub struct Engine {
    model: Box<dyn StepModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
    scheduler: Scheduler,
    gauges: Gauges,
    jobs: HashMap<JobKey, Job>,
    /// Taken from the door and not among the jobs yet.
    arriving: Option<JobKey>,
    clock: Clock,
    inbox: Inbox,
    events: mpsc::Sender<EngineEvent>,
}

impl Engine {
    /// Starts the engine's thread. It ends when every handle is dropped or `events` is no longer read; running jobs are
    /// then dropped.
    pub fn start(
        model: Box<dyn StepModel>,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        events: mpsc::Sender<EngineEvent>,
    ) -> EngineHandle {
        let scheduler = empty(model.as_ref(), config);
        let gauges = Gauges::of_room(config.slots, model.blocks());
        handle::spawn(config, move |inbox| {
            let mut engine = Self {
                model,
                tokenizer,
                config,
                scheduler,
                gauges,
                jobs: HashMap::new(),
                arriving: None,
                clock: Clock::start(),
                inbox,
                events,
            };
            while catch_unwind(AssertUnwindSafe(|| engine.run())).is_err() && engine.begin_anew() {}
        })
    }

    fn run(&mut self) {
        while self.receive() && self.drop_cancelled() && self.step() {}
    }

    /// After a panic: gives up every job inside, since any of them may be half done, and forgets the cache. `false`: nobody
    /// reads the events.
    fn begin_anew(&mut self) -> bool {
        tracing::error!(jobs = self.jobs.len(), "the engine panicked and begins anew");
        metrics::panicked();
        self.inbox.step_ended();
        self.scheduler = empty(self.model.as_ref(), self.config);
        let lost: Vec<_> = self
            .jobs
            .drain()
            .map(|(key, job)| (key, job.spent()))
            .chain(self.arriving.take().map(|key| (key, Spent::default())))
            .collect();
        lost.into_iter()
            .all(|(key, spent)| self.emit(EngineEvent::Ended(key, Ending::Lost, spent)))
    }

    /// Takes in what waits at the door; blocks while there is nothing to do. `false`: everybody has left.
    fn receive(&mut self) -> bool {
        if self.jobs.is_empty() {
            metrics::occupancy(&self.gauges, &mut self.scheduler);
            self.model.rest();
        }
        // Who is waited for finishes what it has.
        let closing = self.model.is_wanted_out();
        while let Some(arrival) = self.inbox.next(self.jobs.len(), closing) {
            if self.jobs.is_empty() {
                self.clock.restart();
            }
            let (key, share, arrived) = (arrival.job.key, arrival.job.share, arrival.at);
            self.arriving = Some(key);
            match Job::new(
                arrival.job,
                arrived,
                self.model.context_length(),
                self.model.vocab_size(),
            ) {
                Ok(job) => {
                    let prefix = Prefix::new(share.tenant, job.prompt());
                    for choice in job.choices() {
                        let (id, prefix) = (SequenceId { key, choice }, prefix.clone());
                        self.scheduler.add(Entry { id, prefix, share });
                    }
                    self.arriving = None;
                    self.jobs.insert(key, job);
                }
                Err(error) => {
                    self.arriving = None;
                    if !self.emit(EngineEvent::Ended(key, Ending::Failed(error), Spent::default())) {
                        return false;
                    }
                }
            }
        }
        !self.inbox.is_closed()
    }

    /// Ends cancelled jobs with what they have, before the next step.
    fn drop_cancelled(&mut self) -> bool {
        let cancelled = self.inbox.cancelled(|key| self.jobs.contains_key(&key));
        cancelled.into_iter().all(|key| match self.take(key) {
            Some(job) => self.end(key, job, Ending::Stopped),
            None => true,
        })
    }

    /// One step, if the model is there. `false`: nobody reads the events, or there is no model any more.
    fn step(&mut self) -> bool {
        if self.jobs.is_empty() {
            return true;
        }
        match self.model.wake() {
            Ok(Woken::AsItWas) => {}
            Ok(Woken::Emptied) => {
                self.clock.restart();
                let cache = empty_cache(self.model.as_ref(), self.config);
                self.scheduler.forget_cache(cache);
            }
            Ok(Woken::NotYet) => {
                self.clock.restart();
                return true;
            }
            Err(error) => {
                tracing::error!(%error, "the model cannot be brought back to memory");
                return false;
            }
        }
        self.clock.lap(Part::Other);
        let plan = self.scheduler.schedule();
        metrics::occupancy(&self.gauges, &mut self.scheduler);
        self.clock.lap(Part::Schedule);
        if plan.is_empty() {
            return true;
        }
        if !self.announce_starts(&plan) {
            return false;
        }
        self.clock.lap(Part::Other);
        let computed = self.compute(&plan);
        let room = computed.room();
        let outcomes = sampling::draw(&self.jobs, &plan, computed.outcomes);
        self.clock.lap(Part::Sample);
        let read = plan
            .iter()
            .zip(outcomes)
            .all(|(planned, outcome)| self.apply(planned, outcome));
        if let Some(rows) = room {
            tracing::warn!(
                rows,
                of = plan.len(),
                "the device has no room for larger steps; fewer jobs run side by side for a while"
            );
            self.scheduler.narrow(rows);
        }
        let parts = self.clock.take_step();
        metrics::parts(&parts);
        self.inbox.note(&parts);
        read
    }

    /// What the model makes of a plan.
    fn compute(&mut self, plan: &[Planned]) -> Computed {
        let rows: Vec<_> = plan.iter().map(|planned| self.row(planned)).collect();
        let draws = self.draws(plan);
        self.clock.lap(Part::Schedule);
        self.inbox.step_begins();
        let (computed, took) = metrics::timed_step(&rows, || compute::run(self.model.as_mut(), &rows, &draws));
        self.inbox.step_ended();
        self.clock.lap_of_model(self.model.waited());
        self.charge(plan, took);
        computed
    }

    fn announce_starts(&mut self, plan: &[Planned]) -> bool {
        let mut started = Vec::new();
        for planned in plan {
            if self.jobs.get_mut(&planned.id.key).is_some_and(Job::start) {
                started.push(planned.id.key);
            }
        }
        started.into_iter().all(|key| self.emit(EngineEvent::Started(key)))
    }

    fn row(&self, planned: &Planned) -> StepRow {
        let tokens = self.jobs[&planned.id.key].tokens(planned.id.choice, planned.tokens.clone());
        StepRow {
            blocks: planned.blocks.clone(),
            position: planned.tokens.start,
            tokens,
            wants_logits: planned.complete,
        }
    }

    /// What is asked of a model that draws by itself, for each row that wants logits.
    fn draws(&self, plan: &[Planned]) -> Vec<Draw> {
        if !self.model.draws() {
            return Vec::new();
        }
        let complete = plan.iter().filter(|planned| planned.complete);
        let ask = |planned: &Planned| self.jobs[&planned.id.key].ask(planned.id.choice);
        complete.map(ask).collect()
    }

    /// Shares a step's time out among its jobs, by their tokens.
    fn charge(&mut self, plan: &[Planned], took: Duration) {
        let tokens: usize = plan.iter().map(|planned| planned.tokens.len()).sum();
        let positions = self.model.positions(tokens).max(tokens);
        let padded = (positions - tokens) as f64 / positions as f64;
        for planned in plan {
            if let Some(job) = self.jobs.get_mut(&planned.id.key) {
                let share = took.mul_f64(planned.tokens.len() as f64 / tokens as f64);
                job.charge(share, share.mul_f64(padded));
            }
        }
    }

    /// Lets a row's sequence go on or end with what was drawn.
    fn apply(&mut self, planned: &Planned, outcome: RowOutcome<Token>) -> bool {
        let SequenceId { key, choice } = planned.id;
        // An earlier row of this step may have failed the job.
        let Some(job) = self.jobs.get_mut(&key) else {
            return true;
        };
        let token = match outcome {
            RowOutcome::Prefilled => {
                self.scheduler.advance(planned, None);
                return true;
            }
            RowOutcome::Drawn(token) => token,
            RowOutcome::Failed(error) => return self.fail(planned.id, error),
        };
        self.clock.lap(Part::Other);
        let drawn = job.take(choice, token, &self.tokenizer);
        if let Some(deltas) = self.inbox.deltas() {
            deltas.tell(key, choice, job.sequence(choice));
        }
        self.clock.lap(Part::Text);
        self.scheduler.advance(planned, Some(drawn));
        self.clock.lap(Part::Schedule);
        if job.is_complete()
            && let Some(job) = self.take(key)
        {
            return self.end(key, job, Ending::Completed);
        }
        true
    }

    /// Ends a job whose sequence cannot go on; nobody else is to read what it left in the cache.
    fn fail(&mut self, id: SequenceId, error: JobError) -> bool {
        self.scheduler.spoil(id);
        let spent = self.take(id.key).map(|job| job.spent()).unwrap_or_default();
        self.emit(EngineEvent::Ended(id.key, Ending::Failed(error), spent))
    }

    fn end(&self, key: JobKey, job: Job, ending: impl FnOnce(Completion) -> Ending) -> bool {
        let spent = job.spent();
        self.emit(EngineEvent::Ended(key, ending(job.into_completion()), spent))
    }

    /// Removes a job and frees its slots and blocks.
    fn take(&mut self, key: JobKey) -> Option<Job> {
        let job = self.jobs.remove(&key)?;
        for choice in job.choices() {
            self.scheduler.remove(SequenceId { key, choice });
        }
        Some(job)
    }

    fn emit(&self, event: EngineEvent) -> bool {
        self.events.blocking_send(event).is_ok()
    }
}

/// A scheduler over a cache that holds nothing.
fn empty(model: &dyn StepModel, config: EngineConfig) -> Scheduler {
    Scheduler::new(config.slots, config.token_budget, empty_cache(model, config))
}

fn empty_cache(model: &dyn StepModel, config: EngineConfig) -> Blocks {
    Blocks::new(model.blocks(), config.prefix_cache)
}
