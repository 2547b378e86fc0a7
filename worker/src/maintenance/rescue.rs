//! Jobs whose lease ran out go back to the outbox or to their end (`common/src/store/rescue.rs` decides which).

use std::time::{Duration, Instant};

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::rescue::{self, CHUNK};
use claimcheck_common::store::{Pool, StoreResult};

use super::reap_clock::ReapClock;
use super::{MaintenanceError, Task};

pub(super) struct Rescue {
    pool: Pool,
    period: Duration,
    clock: ReapClock,
}

impl Rescue {
    pub(super) fn new(pool: Pool, config: &DeliveryConfig) -> Self {
        // Often enough that the clock sees no gap in its series, whatever was configured.
        let period = config.maintenance_interval.min(config.lease / 4);
        Self {
            pool,
            period,
            clock: ReapClock::new(config.lease),
        }
    }

    async fn rescue(&mut self) -> StoreResult<()> {
        let uptime = rescue::database_uptime(&self.pool).await?;
        if !self.clock.succeeded(Instant::now(), uptime) {
            // A database that can be read and not written to (a full disk) takes no beats: leases lapse there, and a series
            // may only begin when what would be done can be done.
            return rescue::rehearse(&self.pool).await;
        }
        loop {
            let rescued = rescue::rescue_lapsed(&self.pool).await?;
            let all = rescued.requeued + rescued.ended;
            if all > 0 {
                tracing::warn!(
                    requeued = rescued.requeued,
                    ended = rescued.ended,
                    "rescued jobs of silent workers"
                );
                metrics::counter!("claimcheck_rescued_total", "to" => "queued").increment(rescued.requeued);
                metrics::counter!("claimcheck_rescued_total", "to" => "ended").increment(rescued.ended);
            }
            if all < CHUNK.cast_unsigned() {
                return Ok(());
            }
        }
    }
}

impl Task for Rescue {
    fn name(&self) -> &'static str {
        "rescue"
    }

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        let outcome = self.rescue().await;
        if outcome.is_err() {
            self.clock.failed();
        }
        Ok(outcome?)
    }
}
