//! The engine's door: jobs go in through a bounded channel, cancels beside it, events come out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use claimcheck_common::domain::{Class, Completion, GenerationParams, JobError, JobKey, Share, Spent};
use claimcheck_common::queue::JobMessage;
use tokio::sync::{mpsc, watch};

use super::deltas::Deltas;
use super::parts::StepParts;

/// A job as the engine takes it.
#[derive(Debug, Clone)]
pub struct EngineJob {
    /// The job and its claim.
    pub key: JobKey,
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to continue it.
    pub params: GenerationParams,
    /// Whose turn it is while it waits for a slot.
    pub share: Share,
}

/// What the engine says of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// Its first prefill begins.
    Started(JobKey),
    /// It left the engine, after it took so much; nothing more comes of it.
    Ended(JobKey, Ending, Spent),
}

/// How a job left the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// All choices are finished.
    Completed(Completion),
    /// It was told to stop; this is what it had.
    Stopped(Completion),
    /// It cannot be computed.
    Failed(JobError),
    /// The engine panicked while it had the job, for the job's sake or another's.
    Lost,
}

/// How the engine batches.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Most sequences side by side.
    pub slots: usize,
    /// Most tokens of one step, or four for each decoding row, if that is more: what these leave of it is for prefill, so that a
    /// long prompt does not stall them.
    pub token_budget: usize,
    /// Whether keys and values that a tenant's sequence has left in the cache serve the next one that begins alike.
    pub prefix_cache: bool,
}

impl EngineConfig {
    /// Messages of each class that a worker has in hand for `slots`: one for each, and a few more so that a slot that becomes free is
    /// filled at once.
    pub const fn in_hand(slots: usize) -> usize {
        slots.saturating_add(slots / 4).saturating_add(2)
    }

    /// Most jobs inside, running and waiting: all that a worker has in hand, so that none stands at the door, where neither class
    /// nor tenant nor priority counts.
    pub(super) const fn most_jobs(slots: usize) -> usize {
        Class::ALL.len() * Self::in_hand(slots) * JobMessage::MOST_JOBS
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            slots: 32,
            // Beside 16 running rows a long prompt stretches a step to less than three times its length (benchmarks/engine-cpu.md).
            token_budget: 80,
            prefix_cache: true,
        }
    }
}

/// The engine's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineStopped;

/// A job at the door.
pub(super) struct Arrival {
    pub(super) job: EngineJob,
    pub(super) at: Instant,
}

type Cancels = Arc<Mutex<HashSet<JobKey>>>;

/// When the step that runs now began.
type Pulse = Arc<Mutex<Option<Instant>>>;

/// What all steps took so far.
type Times = Arc<Mutex<StepParts>>;

/// The way into a running engine. Cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    jobs: mpsc::Sender<Arrival>,
    cancels: Cancels,
    pulse: Pulse,
    times: Times,
    deltas: Arc<OnceLock<Deltas>>,
    slots: usize,
    alive: watch::Receiver<()>,
}

/// The engine's side of the door.
pub(super) struct Inbox {
    jobs: mpsc::Receiver<Arrival>,
    cancels: Cancels,
    pulse: Pulse,
    times: Times,
    deltas: Arc<OnceLock<Deltas>>,
    /// Jobs that may be inside; so many more wait in the channel.
    capacity: usize,
    closed: bool,
}

pub(super) fn spawn(config: EngineConfig, run: impl FnOnce(Inbox) + Send + 'static) -> EngineHandle {
    let capacity = EngineConfig::most_jobs(config.slots);
    let (jobs, receiver) = mpsc::channel(capacity);
    let (living, alive) = watch::channel(());
    let (cancels, pulse, times) = (Cancels::default(), Pulse::default(), Times::default());
    let deltas = Arc::new(OnceLock::new());
    let inbox = Inbox {
        jobs: receiver,
        cancels: cancels.clone(),
        pulse: pulse.clone(),
        times: times.clone(),
        deltas: deltas.clone(),
        capacity,
        closed: false,
    };
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _living = living;
        run(inbox);
    });
    thread.expect("the system can start a thread");
    EngineHandle {
        jobs,
        cancels,
        pulse,
        times,
        deltas,
        slots: config.slots,
        alive,
    }
}

impl EngineHandle {
    /// Hands a job in; waits while the engine has enough.
    pub async fn submit(&self, job: EngineJob) -> Result<(), EngineStopped> {
        self.jobs
            .send(Arrival {
                job,
                at: Instant::now(),
            })
            .await
            .map_err(|_| EngineStopped)
    }

    /// Stops a job at the next step, whether it runs or waits. A job that the engine does not have is nothing to it.
    pub fn cancel(&self, key: JobKey) {
        lock(&self.cancels).insert(key);
    }

    /// From now on running texts are told to whoever follows them. Said once.
    pub fn tell(&self, deltas: Deltas) {
        let _said_before = self.deltas.set(deltas);
    }

    /// Sequences that run side by side.
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// What the time of all steps so far went to. A step counts when it has ended, which is after its events are out.
    pub fn step_parts(&self) -> StepParts {
        *lock(&self.times)
    }

    /// Completes when a step has taken `limit` and goes on: the device hangs, and the thread with it.
    pub async fn hung(&self, limit: Duration) {
        let lasts = || lock(&self.pulse).map(|began| began.elapsed());
        while lasts().is_none_or(|lasts| lasts < limit) {
            tokio::time::sleep(limit / 4).await;
        }
    }

    /// Completes when the engine's thread has ended, however it did.
    pub async fn stopped(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

impl Inbox {
    /// The next arrival, or `None` when the engine, which has so many jobs `inside`, should go on. Waits for one if there are none;
    /// an engine that is `closing` lets nobody in before.
    pub(super) fn next(&mut self, inside: usize, closing: bool) -> Option<Arrival> {
        if inside == 0 {
            let arrival = self.jobs.blocking_recv();
            self.closed |= arrival.is_none();
            return arrival;
        }
        // Asked first: who waits inside or at the door must not keep a thread that nobody wants any more.
        self.closed |= self.jobs.is_closed();
        if self.closed || closing || inside >= self.capacity {
            return None;
        }
        self.jobs.try_recv().ok()
    }

    /// A step begins.
    pub(super) fn step_begins(&self) {
        *lock(&self.pulse) = Some(Instant::now());
    }

    /// No step runs.
    pub(super) fn step_ended(&self) {
        *lock(&self.pulse) = None;
    }

    /// What a step took.
    pub(super) fn note(&self, step: &StepParts) {
        lock(&self.times).add(step);
    }

    /// Where running texts are told, if anywhere.
    pub(super) fn deltas(&self) -> Option<&Deltas> {
        self.deltas.get()
    }

    /// Whether every handle is gone.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes the cancels of jobs that are `known` inside. Others are kept while their jobs may still be at the door.
    pub(super) fn cancelled(&self, known: impl Fn(JobKey) -> bool) -> Vec<JobKey> {
        let mut cancels = lock(&self.cancels);
        let inside: Vec<_> = cancels.iter().copied().filter(|key| known(*key)).collect();
        if self.jobs.is_empty() {
            cancels.clear();
        } else {
            for key in &inside {
                cancels.remove(key);
            }
        }
        inside
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
