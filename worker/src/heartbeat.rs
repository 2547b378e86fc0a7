//! Keeping the leases: one statement a beat for every job in this worker's hands, those that wait for their commit too.
//!
//! Runs as a task of its own while the engine has its own thread, so no step of inference can hold it up. Must never
//! decide about a job: it passes on what the database says. If that is away for longer than a lease, the jobs go on and
//! the fence tells at the settle whether they still count.

use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::domain::JobKey;
use claimcheck_common::queue::Acker;
use claimcheck_common::store::models::{self, Seen};
use claimcheck_common::store::{Pool, StoreError, lease};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::acks;
use crate::announce::Announcement;
use crate::engine::EngineHandle;
use crate::in_flight::{InFlight, StopReason};

#[derive(Debug, thiserror::Error)]
enum BeatError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database did not answer within {0:?}")]
    TimedOut(Duration),
}

/// The beating heart of one worker.
pub struct Heartbeat {
    /// Where the leases are.
    pub pool: Pool,
    /// Lease and beat.
    pub config: DeliveryConfig,
    /// What to say again if the database does not know this worker.
    pub announcement: Announcement,
    /// Which jobs are held.
    pub in_flight: Arc<InFlight>,
    /// Hears which jobs to stop.
    pub engine: EngineHandle,
    /// Cancelled when an operator drains this worker.
    pub drain: CancellationToken,
}

impl Heartbeat {
    /// Beats until `stop`, and a last time then: what still waits for its commit has one more lease to get it.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.config.heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            if let Err(error) = self.timely_beat().await {
                metrics::counter!("claimcheck_heartbeat_failures_total").increment(1);
                tracing::warn!(%error, jobs = self.in_flight.held().len(), "a heartbeat failed");
            }
            if last {
                return;
            }
        }
    }

    /// A beat that comes later than two others is of no use: give up and ask anew.
    async fn timely_beat(&self) -> Result<(), BeatError> {
        let limit = self.config.heartbeat * 2;
        tokio::time::timeout(limit, self.beat())
            .await
            .unwrap_or(Err(BeatError::TimedOut(limit)))
    }

    async fn beat(&self) -> Result<(), BeatError> {
        let held = self.in_flight.held();
        if !held.is_empty() {
            let beat = lease::heartbeat(&self.pool, &held, self.config.lease, self.config.attempt_limit).await?;
            self.stop(beat.cancelled, StopReason::Cancelled);
            self.stop(beat.expired, StopReason::Expired);
            self.stop(beat.overdue, StopReason::Overdue);
            let lost: Vec<Acker> = beat.lost.into_iter().filter_map(|key| self.lose(key)).collect();
            acks::spend(lost).await;
        }
        match models::seen(&self.pool, self.announcement.worker).await? {
            Seen::Working => {}
            Seen::Draining if self.drain.is_cancelled() => {}
            Seen::Draining => {
                tracing::info!("told to drain: this worker takes no more jobs");
                self.drain.cancel();
            }
            Seen::Unknown => {
                tracing::warn!("the database does not know this worker (any more): announcing again");
                self.announcement.once().await?;
            }
        }
        Ok(())
    }

    fn stop(&self, keys: Vec<JobKey>, reason: StopReason) {
        for key in keys {
            if self.in_flight.stop(key, reason) {
                self.engine.cancel(key);
            }
        }
    }

    /// The job has ended or is somebody else's. Its own settle may just have ended it: then there is nothing to stop.
    fn lose(&self, key: JobKey) -> Option<Acker> {
        self.engine.cancel(key);
        let acker = self.in_flight.lose(key)?;
        tracing::info!(job = %key.id, fence = key.fence, "the job is no longer this worker's");
        Some(acker)
    }
}
