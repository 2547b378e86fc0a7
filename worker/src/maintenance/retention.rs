//! Forgetting what is over, and making room in the audit log for the month to come.

use std::time::Duration;

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::store::rescue::CHUNK;
use claimcheck_common::store::{Pool, idempotency, models, retention, webhooks};

use super::{MaintenanceError, Task};

const PERIOD: Duration = Duration::from_mins(1);
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
/// Long after it stopped to count as alive: a row is one life of one process, and they pile up.
const FORGET_WORKERS_AFTER: Duration = Duration::from_hours(24);

pub(super) struct Retention {
    pool: Pool,
    /// Ended jobs stay for ever unless the operator said otherwise.
    keep: Option<Duration>,
    keep_log: Duration,
}

impl Retention {
    pub(super) const fn new(pool: Pool, config: &DeliveryConfig, keep_log: Duration) -> Self {
        Self {
            pool,
            keep: config.retention,
            keep_log,
        }
    }
}

impl Task for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn period(&self) -> Duration {
        self.keep.map_or(PERIOD, |keep| keep.clamp(SHORTEST_PERIOD, PERIOD))
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        let chunk = CHUNK.cast_unsigned();
        while retention::forget_idempotency_keys(&self.pool).await? == chunk {}
        while idempotency::forget_sdk_requests(&self.pool).await? == chunk {}
        models::forget_workers(&self.pool, FORGET_WORKERS_AFTER).await?;
        if let Some(keep) = self.keep {
            while retention::forget_jobs(&self.pool, keep).await? == chunk {}
            while retention::forget_events(&self.pool, keep).await? == chunk {}
            while retention::forget_batches(&self.pool, keep).await? > 0 {}
        }
        while webhooks::log::forget(&self.pool, self.keep_log, CHUNK).await? == chunk {}
        Ok(retention::prepare_audit_partitions(&self.pool).await?)
    }
}
