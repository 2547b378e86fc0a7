//! Messages that the broker lost (a purged queue, a lost disk) are sent again, by way of the outbox.
//!
//! Never more than are missing: those that were confirmed and whose jobs nobody claimed, less those that are ready in the
//! queue. A message that is on its way to a worker counts as missing for that moment; the doubled one finds nothing to claim.
//! So does one that a silent worker holds whose connection stands: what was rescued from it may have been sent to it again.

use std::time::Duration;

use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::queue::Broker;
use claimcheck_common::store::Pool;
use claimcheck_common::store::rescue::{self, ReleasedQueue};

use super::{MaintenanceError, Task};

pub(super) struct Reemit {
    pool: Pool,
    broker: Broker,
    after: Duration,
    period: Duration,
}

impl Reemit {
    pub(super) fn new(pool: Pool, broker: Broker, config: &DeliveryConfig) -> Self {
        Self {
            pool,
            broker,
            after: config.reemit_after,
            period: config.maintenance_interval,
        }
    }
}

impl Task for Reemit {
    fn name(&self) -> &'static str {
        "reemit"
    }

    fn period(&self) -> Duration {
        self.period
    }

    async fn run(&mut self) -> Result<(), MaintenanceError> {
        let mut outcome = Ok(());
        for queue in rescue::overdue_queues(&self.pool, self.after).await? {
            // A queue that cannot be looked at keeps none of the others from it; the first failure is told.
            let looked = self.look(queue).await;
            outcome = outcome.and(looked);
        }
        outcome
    }
}

impl Reemit {
    async fn look(&self, queue: ReleasedQueue) -> Result<(), MaintenanceError> {
        let ready = self.broker.ready(&queue.queue).await?;
        let missing = missing(queue.messages, ready);
        if missing == 0 {
            return Ok(());
        }
        let name = self.broker.queue(&queue.queue);
        let sent = rescue::reemit(&self.pool, queue.queue, missing, self.after).await?;
        if sent > 0 {
            tracing::warn!(
                queue = name,
                sent,
                ready,
                "messages were missing in the broker, their jobs are sent again"
            );
            metrics::counter!("claimcheck_reemitted_total").increment(sent);
        }
        Ok(())
    }
}

/// How many messages of a queue nobody has, at most.
const fn missing(confirmed: u64, ready: u64) -> u64 {
    confirmed.saturating_sub(ready)
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn a_long_queue_lacks_nothing_and_a_purged_one_lacks_all() {
        assert_eq!(missing(256, 256), 0);
        assert_eq!(missing(256, 300), 0, "duplicates");
        assert_eq!(missing(256, 0), 256);
        assert_eq!(missing(256, 250), 6);
    }
}
