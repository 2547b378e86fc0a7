//! Scheduled jobs whose time has come become `queued`.

use std::time::Duration;

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::rescue::CHUNK;
use claimcheck_common::store::{Pool, schedule};

use super::{MaintenanceError, Task};

pub(super) struct Schedule {
    pool: Pool,
    period: Duration,
}

impl Schedule {
    pub(super) const fn new(pool: Pool, config: &DeliveryConfig) -> Self {
        Self {
            pool,
            period: config.maintenance_interval,
        }
    }
}

impl Task for Schedule {
    const NAME: &'static str = "schedule";

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        while schedule::promote_due(&self.pool).await? == CHUNK.cast_unsigned() {}
        Ok(())
    }
}
