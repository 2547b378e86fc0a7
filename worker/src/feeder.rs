//! The way into the engine: text becomes tokens, and a job that may be poison goes in alone.
//!
//! Must never lose a claimed job: what does not reach the engine is handed back or settled as failed.

use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::domain::{Encoded, JobError, JobKey, Prompt};
use claimcheck_common::store::claim::ClaimedJob;
use claimcheck_common::store::settle::Settlement;
use claimcheck_common::store::{Pool, lease};
use claimcheck_common::tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;

use crate::acks;
use crate::engine::{EngineHandle, EngineJob, EngineStopped};
use crate::in_flight::InFlight;
use crate::results::Results;

/// A job that was there at so many lapses may be what stops the workers.
const SUSPECT: u32 = 2;
/// Text that is read before the engine gets it: a millisecond or a few.
const READ_AHEAD: usize = 8 * 1024;
/// A stopping worker tries for so long to hand its claims back; after that their leases lapse.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// Feeds claimed jobs to the engine.
#[derive(Clone)]
pub struct Feeder {
    /// Where claims are handed back.
    pub pool: Pool,
    /// The served model's own.
    pub tokenizer: Arc<Tokenizer>,
    /// Knows who is with the engine.
    pub in_flight: Arc<InFlight>,
    /// Takes the jobs.
    pub engine: EngineHandle,
    /// Ends what cannot run.
    pub results: Results,
}

impl Feeder {
    /// Gives claimed jobs to the engine as it takes them, suspects last and alone. At a stop the rest is handed back.
    pub async fn feed(&self, jobs: Vec<ClaimedJob>, stop: &CancellationToken) -> Result<(), EngineStopped> {
        let (suspects, others): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.lapses >= SUSPECT);
        let mut left = self.submit(others, stop).await?;
        for job in suspects {
            let (key, lapses) = (job.key, job.lapses);
            tracing::warn!(job = %key.id, lapses, "the job was there when workers fell silent: it runs alone");
            stop.run_until_cancelled(self.in_flight.engine_idle()).await;
            left.extend(self.submit(vec![job], stop).await?);
            stop.run_until_cancelled(self.in_flight.engine_idle()).await;
        }
        self.hand_back(left).await;
        Ok(())
    }

    /// Answers the keys of those that the engine had not taken when a stop came. They are read some at a time before the first of these
    /// goes, so that an idle engine finds them together at its door.
    async fn submit(&self, jobs: Vec<ClaimedJob>, stop: &CancellationToken) -> Result<Vec<JobKey>, EngineStopped> {
        let (mut jobs, mut left) = (jobs.into_iter().peekable(), Vec::new());
        while jobs.peek().is_some() {
            if stop.is_cancelled() {
                left.extend(jobs.map(|job| job.key));
                break;
            }
            let (ready, unreadable) = self.read(&mut jobs);
            for job in ready {
                left.extend(self.hand_in(job, stop).await?);
            }
            self.results.settle(unreadable).await;
        }
        Ok(left)
    }

    /// The first of these jobs, as the engine takes them, and the ends of those that it cannot take.
    fn read(&self, jobs: &mut impl Iterator<Item = ClaimedJob>) -> (Vec<EngineJob>, Vec<Settlement>) {
        let (mut ready, mut unreadable, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < READ_AHEAD
            && let Some(job) = jobs.next()
        {
            if let Prompt::Text(text) = &job.prompt {
                bytes += text.len();
            }
            match self.tokens(job.prompt, job.encoded) {
                Ok(prompt) => ready.push(EngineJob {
                    key: job.key,
                    prompt,
                    params: job.params,
                    share: job.share,
                }),
                Err(error) => unreadable.push(Settlement::failed(job.key, error)),
            }
        }
        (ready, unreadable)
    }

    /// Answers the job's key if a stop came before the engine took it.
    async fn hand_in(&self, job: EngineJob, stop: &CancellationToken) -> Result<Option<JobKey>, EngineStopped> {
        let key = job.key;
        if stop.is_cancelled() {
            return Ok(Some(key));
        }
        if !self.in_flight.start(key) {
            return Ok(None);
        }
        let Some(taken) = stop.run_until_cancelled(self.engine.submit(job)).await else {
            return Ok(Some(key));
        };
        taken?;
        // The engine knows nothing of a wish that came before the job.
        if self.in_flight.stop_reason(key).is_some() {
            self.engine.cancel(key);
        }
        Ok(None)
    }

    fn tokens(&self, prompt: Prompt, encoded: Option<Encoded>) -> Result<Vec<u32>, JobError> {
        match (encoded.and_then(|encoded| self.tokenizer.own(encoded)), prompt) {
            (Some(tokens), _) | (None, Prompt::Tokens(tokens)) => Ok(tokens),
            (None, Prompt::Text(text)) => self.tokenizer.encode(&text).map_err(|error| {
                tracing::error!(%error, "a prompt cannot be encoded");
                JobError::server("prompt_not_encodable", "The prompt could not be encoded for the model.")
            }),
        }
    }

    /// Hands claims back free of charge; they are not this worker's any more whatever the database says to it.
    pub async fn hand_back(&self, keys: Vec<JobKey>) {
        if keys.is_empty() {
            return;
        }
        let ackers = keys.iter().filter_map(|key| {
            self.engine.cancel(*key);
            self.in_flight.remove(*key)
        });
        let ackers: Vec<_> = ackers.collect();
        match tokio::time::timeout(RELEASE_LIMIT, lease::release(&self.pool, keys)).await {
            Ok(Ok(released)) => {
                tracing::info!(released, "handed jobs back");
                acks::spend(ackers).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "could not hand jobs back: their leases will lapse"),
            Err(_) => tracing::warn!("the database was too slow to take jobs back: their leases will lapse"),
        }
    }
}
