//! Jobs whose callers waited at an open connection and hung up are cancelled (`common/src/store/attend.rs`).

use std::time::{Duration, Instant};

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::attend::cancel_abandoned;
use claimcheck_common::store::rescue::{self, CHUNK};
use claimcheck_common::store::{Pool, StoreResult};

use super::reap_clock::ReapClock;
use super::{MaintenanceError, Task};

pub(super) struct CancelAbandoned {
    pool: Pool,
    period: Duration,
    /// An attendance that lapsed while nobody could renew it says nothing, like a lease.
    clock: ReapClock,
}

impl CancelAbandoned {
    pub(super) fn new(pool: Pool, config: &DeliveryConfig) -> Self {
        Self {
            pool,
            period: config.maintenance_interval.min(config.hangup_grace / 4),
            clock: ReapClock::new(config.hangup_grace),
        }
    }

    async fn sweep(&mut self) -> StoreResult<()> {
        let uptime = rescue::database_uptime(&self.pool).await?;
        if !self.clock.succeeded(Instant::now(), uptime) {
            return Ok(());
        }
        loop {
            let abandoned = cancel_abandoned(&self.pool).await?;
            metrics::counter!("claimcheck_jobs_abandoned_total").increment(abandoned.cancelled);
            if abandoned.lapsed < CHUNK.cast_unsigned() {
                return Ok(());
            }
        }
    }
}

impl Task for CancelAbandoned {
    fn name(&self) -> &'static str {
        "abandoned"
    }

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        let outcome = self.sweep().await;
        if outcome.is_err() {
            self.clock.failed();
        }
        Ok(outcome?)
    }
}
