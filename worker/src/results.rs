//! From the engine's events to committed results: what is ready at once shares one commit, and the acks follow it.
//!
//! Results are held in memory while the database is away, and the bounded channel to the engine is the back pressure.
//! Must never ack before the commit, and never settle what the heartbeat found lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claimcheck_common::backoff::Backoff;
use claimcheck_common::domain::{FinishReason, JobError, JobKey, JobStatus, Runtime, Spent, WorkerId};
use claimcheck_common::pace::Pace;
use claimcheck_common::policy::{Policy, Rules, Side};
use claimcheck_common::queue::Acker;
use claimcheck_common::store::settle::{self, Measured, Settled, Settlement};
use claimcheck_common::store::{Lane, Pool, StoreResult, lease};
use tokio::sync::mpsc;

use crate::acks;
use crate::engine::{Ending, EngineEvent};
use crate::in_flight::{InFlight, StopReason};

/// Most events that share one commit.
const GROUP: usize = 256;

/// A start is written after this time. A job that has ended by then has it written with its ending: one write less.
const START_LINGERS: Duration = Duration::from_millis(100);

/// A connection that died in silence is given up after this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Writes down what became of this worker's jobs.
#[derive(Clone)]
pub struct Results {
    pool: Pool,
    settling: Lane,
    in_flight: Arc<InFlight>,
    policy: Rules,
    actor: String,
    runtime: Arc<Runtime>,
}

impl Results {
    /// `worker` is who the audit log names, `runtime` what receipts say that it ran on.
    pub fn new(pool: Pool, in_flight: Arc<InFlight>, policy: Rules, worker: WorkerId, runtime: Runtime) -> Self {
        Self {
            settling: Lane::new(&pool),
            pool,
            in_flight,
            policy,
            actor: format!("worker:{}", worker.uuid()),
            runtime: Arc::new(runtime),
        }
    }

    /// Records events until the engine is gone and everything that it said is committed.
    pub async fn record(self, mut events: mpsc::Receiver<EngineEvent>) {
        let mut ready = Vec::with_capacity(GROUP);
        let (mut starts, mut pace) = (Starts::default(), Pace::default());
        loop {
            pace.rest().await;
            let all_said = tokio::select! {
                count = events.recv_many(&mut ready, GROUP) => count == 0,
                () = starts.ripe() => false,
            };
            if all_said {
                break;
            }
            let ended = starts.sort(ready.drain(..));
            pace.turned(tokio::time::Instant::now(), ended.len());
            let policy = self.policy.current();
            let (mut ours, mut lost) = (Vec::new(), Vec::new());
            for ended in ended {
                let reason = self.in_flight.stop_reason(ended.key);
                if !self.in_flight.end(ended.key) {
                    continue;
                }
                let measured = Measured {
                    spent: ended.spent,
                    runtime: self.runtime.clone(),
                };
                match settlement(ended.key, ended.ending, reason) {
                    Some(settlement) => ours.push(Settlement {
                        started: ended.started,
                        measured: Some(measured),
                        ..screened(settlement, &policy)
                    }),
                    None => lost.push(ended.key),
                }
            }
            self.settle(ours).await;
            self.give_up(lost).await;
            self.mark_started(starts.take_ripe()).await;
        }
    }

    /// Settles a group, however long the database takes to come back, and acks its messages.
    pub async fn settle(&self, group: Vec<Settlement>) {
        if group.is_empty() {
            return;
        }
        metrics::histogram!("claimcheck_settle_group_size").record(group.len() as f64);
        let settled = until_answered(|| settle::settle_group(&self.settling, group.clone(), self.actor.clone())).await;
        let Some(settled) = settled else {
            // Not beaten for any more: the lease lapses, and the attempts of a job that cannot be settled come to an end.
            for settlement in &group {
                self.in_flight.remove(settlement.key);
            }
            return;
        };
        count(&group, &settled);
        let ackers: Vec<Acker> = group.iter().filter_map(|one| self.in_flight.remove(one.key)).collect();
        acks::spend(ackers).await;
    }

    /// Lets go of jobs that the engine lost: the rescuer counts the lapse and gives them out again.
    pub async fn give_up(&self, keys: Vec<JobKey>) {
        if keys.is_empty() {
            return;
        }
        // Not beaten for any more, or the lease would be extended again.
        let ackers: Vec<Acker> = keys.iter().filter_map(|key| self.in_flight.remove(*key)).collect();
        if let Some(given_up) = until_answered(|| lease::give_up(&self.pool, keys.clone())).await {
            tracing::warn!(given_up, "gave up jobs that the engine lost");
            acks::spend(ackers).await;
        }
    }

    async fn mark_started(&self, begun: Vec<(JobKey, Instant)>) {
        if !begun.is_empty() {
            until_answered(|| lease::mark_started(&self.pool, begun.clone())).await;
        }
    }
}

/// A job that left the engine, with its start if that is still to be written.
struct Ended {
    key: JobKey,
    ending: Ending,
    spent: Spent,
    started: Option<Instant>,
}

/// Starts that are not written down yet, the earliest first.
#[derive(Default)]
struct Starts(VecDeque<(JobKey, Instant)>);

impl Starts {
    /// Keeps the starts among `events`, and answers which jobs ended, in the order of the events.
    fn sort(&mut self, events: impl Iterator<Item = EngineEvent>) -> Vec<Ended> {
        let mut ended = Vec::new();
        for event in events {
            match event {
                EngineEvent::Started(key) => self.0.push_back((key, Instant::now())),
                EngineEvent::Ended(key, ending, spent) => {
                    let place = self.0.iter().position(|(started, _)| *started == key);
                    let started = place.and_then(|place| self.0.remove(place));
                    ended.push(Ended {
                        key,
                        ending,
                        spent,
                        started: started.map(|(_, began)| began),
                    });
                }
            }
        }
        ended
    }

    /// Waits until one is due to be written, for ever if there is none.
    async fn ripe(&self) {
        match self.0.front() {
            Some((_, began)) => tokio::time::sleep_until((*began + START_LINGERS).into()).await,
            None => std::future::pending().await,
        }
    }

    fn take_ripe(&mut self) -> Vec<(JobKey, Instant)> {
        let ripe = self.0.partition_point(|(_, began)| began.elapsed() >= START_LINGERS);
        self.0.drain(..ripe).collect()
    }
}

/// Repeats `work` while the database is away. `None` if it refuses for good.
async fn until_answered<T, W: Future<Output = StoreResult<T>>>(work: impl Fn() -> W) -> Option<T> {
    let mut backoff = Backoff::default();
    loop {
        match tokio::time::timeout(ANSWER_LIMIT, work()).await {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) if !error.is_transient() => {
                tracing::error!(%error, "the database refuses results");
                return None;
            }
            Ok(Err(error)) => tracing::warn!(%error, "results wait for the database"),
            // If it commits later all the same, the repetition finds the jobs settled.
            Err(_) => tracing::warn!(limit = ?ANSWER_LIMIT, "results wait for a database that does not answer"),
        }
        backoff.wait().await;
    }
}

fn count(group: &[Settlement], settled: &[Settled]) {
    for one in settled {
        if one.status == JobStatus::Queued {
            metrics::counter!("claimcheck_attempts_failed_total").increment(1);
            continue;
        }
        metrics::counter!("claimcheck_jobs_settled_total", "status" => one.status.as_str()).increment(1);
        if let Some(latency) = one.cancel_latency.filter(|_| one.status == JobStatus::Cancelled) {
            metrics::histogram!("claimcheck_cancel_latency_seconds").record(latency);
        }
    }
    for key in group.iter().map(|one| one.key) {
        if !settled.iter().any(|one| one.key == key) {
            metrics::counter!("claimcheck_settle_refused_total").increment(1);
            tracing::info!(job = %key.id, fence = key.fence, "settle refused: a newer claim owns the job, or it has ended");
        }
    }
}

/// `None`: the job did not end, the engine did.
fn settlement(key: JobKey, ending: Ending, reason: Option<StopReason>) -> Option<Settlement> {
    Some(match ending {
        Ending::Completed(completion) => Settlement::completed(key, completion),
        Ending::Stopped(completion) => match reason {
            Some(StopReason::Expired) => Settlement::expired_with(key, completion),
            Some(StopReason::Overdue) => Settlement::attempt_failed(key, overdue()),
            Some(StopReason::Cancelled) | None => Settlement::cancelled_with(key, completion),
        },
        // What the caller got wrong stays wrong.
        Ending::Failed(error) if error.kind == JobError::INVALID_REQUEST => Settlement::failed(key, error),
        Ending::Failed(error) => Settlement::attempt_failed(key, error),
        Ending::Lost => return None,
    })
}

/// Withholds what the content policy does not let out, and notes the rules that were met.
fn screened(mut ended: Settlement, policy: &Policy) -> Settlement {
    for choice in ended.choices.iter_mut().flatten() {
        let verdict = policy.look(Side::Completion, &choice.text);
        let let_out = match verdict.rejected_by() {
            Some(_) => Some(String::new()),
            None => verdict.redacted,
        };
        if let Some(text) = let_out {
            choice.text = text;
            choice.finish_reason = Some(FinishReason::ContentFilter);
            // They spell the text.
            choice.logprobs = None;
            choice.tokens.clear();
        }
        ended.hits.extend(verdict.hits);
    }
    ended
}

fn overdue() -> JobError {
    JobError::server(
        "attempt_overdue",
        "An attempt took longer than one may and was stopped.",
    )
}

#[cfg(test)]
mod tests {
    use claimcheck_common::domain::{Choice, Completion, JobId, Logprobs, Usage};

    use super::*;

    fn key() -> JobKey {
        JobKey {
            id: JobId::new(),
            fence: 1,
        }
    }

    fn completion() -> Completion {
        Completion {
            choices: Vec::new(),
            usage: Usage::new(3, 2),
        }
    }

    #[test]
    fn a_start_is_written_with_its_jobs_end_or_when_it_is_ripe() {
        let (begun, done, older) = (key(), key(), key());
        let mut starts = Starts::default();
        let ended = |key| EngineEvent::Ended(key, Ending::Completed(completion()), Spent::default());
        let events = [
            EngineEvent::Started(begun),
            EngineEvent::Started(done),
            ended(done),
            ended(older),
        ];
        let sorted = starts.sort(events.into_iter());
        let said: Vec<_> = sorted
            .iter()
            .map(|ended| (ended.key, ended.started.is_some()))
            .collect();
        assert_eq!(
            said,
            [(done, true), (older, false)],
            "the older one's start was written before"
        );
        assert_eq!(starts.take_ripe(), []);
        starts.0[0].1 -= START_LINGERS;
        assert_eq!(
            starts.take_ripe().iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            [begun]
        );
        assert_eq!(starts.take_ripe(), [], "once");
    }

    #[test]
    fn a_text_that_the_policy_does_not_let_out_is_withheld_and_says_so() {
        let rules = r#"
            [[rules]]
            name = "a"
            category = "c"
            action = "redact"
            words = ["secret"]
            [[rules]]
            name = "b"
            category = "c"
            action = "reject"
            words = ["poison"]
        "#;
        let choice = |text: &str| Choice {
            text: text.to_owned(),
            index: 0,
            finish_reason: Some(FinishReason::Length),
            logprobs: Some(Logprobs::default()),
            tokens: vec![1, 2],
        };
        let completion = Completion {
            choices: vec![choice("a secret"), choice("poison and a secret"), choice("fine")],
            usage: Usage::new(3, 2),
        };
        let done = screened(Settlement::completed(key(), completion), &Policy::parse(rules).unwrap());
        let shown: Vec<_> = done
            .choices
            .iter()
            .flatten()
            .map(|one| (one.text.as_str(), one.finish_reason))
            .collect();
        let filtered = Some(FinishReason::ContentFilter);
        assert_eq!(
            shown,
            [
                ("a [redacted]", filtered),
                ("", filtered),
                ("fine", Some(FinishReason::Length))
            ]
        );
        let spelled: Vec<_> = done
            .choices
            .iter()
            .flatten()
            .map(|one| one.logprobs.is_some() || !one.tokens.is_empty())
            .collect();
        assert_eq!(spelled, [false, false, true], "what spells a text goes with it");
        assert_eq!(done.hits.len(), 3);
    }

    #[test]
    fn every_ending_becomes_its_settlement() {
        let stopped = |reason| {
            let one = settlement(key(), Ending::Stopped(completion()), reason).unwrap();
            (one.status, one.completion_tokens, one.again)
        };
        assert_eq!(stopped(None), (JobStatus::Cancelled, 2, false));
        assert_eq!(stopped(Some(StopReason::Cancelled)), (JobStatus::Cancelled, 2, false));
        assert_eq!(stopped(Some(StopReason::Expired)), (JobStatus::Expired, 2, false));
        assert_eq!(stopped(Some(StopReason::Overdue)), (JobStatus::Failed, 0, true));
        let completed = settlement(key(), Ending::Completed(completion()), Some(StopReason::Cancelled)).unwrap();
        assert_eq!((completed.status, completed.again), (JobStatus::Completed, false));
        assert!(settlement(key(), Ending::Lost, None).is_none());
    }

    #[test]
    fn a_failure_of_ours_is_tried_again_and_one_of_the_callers_is_not() {
        let failed = |error: JobError| settlement(key(), Ending::Failed(error), None).unwrap();
        let ours = failed(JobError::server("broken", "It broke."));
        assert!(ours.again && ours.error.is_some_and(|error| error.code == "broken"));
        assert!(!failed(JobError::invalid("prompt_too_long", "Too long.")).again);
    }
}
