//! Sweeps: work that stands in the tables and is done chunk after chunk until none is due.

use std::time::Duration;

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::rescue::CHUNK;
use claimcheck_common::store::{Pool, StoreResult, erase, expire, schedule, seal, sessions, sign_ins};
use futures::future::BoxFuture;

use super::{MaintenanceError, Task};

/// Does one chunk and answers how many rows it had.
type Chunk = for<'p> fn(&'p Pool) -> BoxFuture<'p, StoreResult<u64>>;

pub(super) struct Sweep {
    name: &'static str,
    chunk: Chunk,
    pool: Pool,
    period: Duration,
}

impl Sweep {
    /// All sweeps: scheduled jobs whose time has come are queued, waiting ones whose time is up expire, texts that are due
    /// (`ttl`, `store: false`) are erased, sessions and sign-ins that are over are forgotten, audit rows that are final are sealed.
    pub(super) fn all(pool: &Pool, config: &DeliveryConfig) -> [Self; 6] {
        let sweep = |name, chunk| Self {
            name,
            chunk,
            pool: pool.clone(),
            period: config.maintenance_interval,
        };
        [
            sweep("schedule", |pool| Box::pin(schedule::promote_due(pool))),
            sweep("expire", |pool| Box::pin(expire::expire_waiting(pool))),
            sweep("erase", |pool| Box::pin(erase::erase_due(pool))),
            sweep("sessions", |pool| Box::pin(sessions::forget(pool))),
            sweep("sign_ins", |pool| Box::pin(sign_ins::forget(pool))),
            sweep("seal", |pool| Box::pin(seal::seal(pool, seal::FINAL_AFTER))),
        ]
    }
}

impl Task for Sweep {
    fn name(&self) -> &'static str {
        self.name
    }

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        while (self.chunk)(&self.pool).await? == CHUNK.cast_unsigned() {}
        Ok(())
    }
}
