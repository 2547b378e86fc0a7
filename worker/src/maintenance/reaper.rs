//! What lapsed is taken from whoever held it, chunk after chunk, as soon as the lapse may be believed (`reap_clock.rs`).

use std::time::{Duration, Instant};

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::rescue::{self, CHUNK};
use claimcheck_common::store::{Pool, StoreResult, attend};
use futures::future::BoxFuture;

use super::abandoned::cancel_abandoned;
use super::reap_clock::ReapClock;
use super::rescue::rescue_lapsed;
use super::{MaintenanceError, Task};

/// Takes one chunk and answers how many rows it had.
type Chunk = for<'p> fn(&'p Pool) -> BoxFuture<'p, StoreResult<u64>>;
/// Does the same and takes it back.
type Rehearsal = for<'p> fn(&'p Pool) -> BoxFuture<'p, StoreResult<()>>;

pub(super) struct Reaper {
    name: &'static str,
    chunk: Chunk,
    rehearsal: Rehearsal,
    pool: Pool,
    period: Duration,
    clock: ReapClock,
}

impl Reaper {
    /// All reapers: jobs go on without the worker that is silent, and end without the caller who hung up. Either's word is
    /// good for a while, and one that lapsed while nobody could renew it says nothing.
    pub(super) fn all(pool: &Pool, config: &DeliveryConfig) -> [Self; 2] {
        let reaper = |name, lease: Duration, chunk, rehearsal| Self {
            name,
            chunk,
            rehearsal,
            pool: pool.clone(),
            // Often enough that the clock sees no gap in its series, whatever was configured.
            period: config.maintenance_interval.min(lease / 4),
            clock: ReapClock::new(lease),
        };
        [
            reaper(
                "rescue",
                config.lease,
                |pool| Box::pin(rescue_lapsed(pool)),
                |pool| Box::pin(rescue::rehearse(pool)),
            ),
            reaper(
                "abandoned",
                config.hangup_grace,
                |pool| Box::pin(cancel_abandoned(pool)),
                |pool| Box::pin(attend::rehearse(pool)),
            ),
        ]
    }

    async fn reap(&mut self) -> StoreResult<()> {
        let uptime = rescue::database_uptime(&self.pool).await?;
        if !self.clock.succeeded(Instant::now(), uptime) {
            // A database that can be read and not written to (a full disk) takes no word of anybody: all lapse there, and a
            // series may only begin when what would be done can be done.
            return (self.rehearsal)(&self.pool).await;
        }
        while (self.chunk)(&self.pool).await? >= CHUNK.cast_unsigned() {}
        Ok(())
    }
}

impl Task for Reaper {
    fn name(&self) -> &'static str {
        self.name
    }

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        let outcome = self.reap().await;
        if let Err(error) = &outcome
            && !error.is_silence()
        {
            self.clock.refused();
        }
        Ok(outcome?)
    }
}
