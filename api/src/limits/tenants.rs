//! What the limiter knows besides the configuration: tenants that have a plan of their own, projects that have a rate of their own,
//! and how old the queue is.
//!
//! Looked up every two seconds and kept, so that no request asks the database for it. When the oldest interactive job that
//! was released waits for longer than the overload age, rates shrink to that age's part of its wait, a tenth at least:
//! at an overload age of 30 s and a wait of 60 s everybody has half. Nobody is told a smaller number while it lasts than
//! that of the rate in force (`RateLimit-Policy`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use claimcheck_common::config::{LimitsConfig, Plan};
use claimcheck_common::domain::{ProjectId, Rate, TenantId};
use claimcheck_common::store::{Pool, StoreResult, limits, project_limits, within};
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(2);
const LOOK_LIMIT: Duration = Duration::from_secs(5);
const SMALLEST_PART: f64 = 0.1;
/// The part of the rates is kept in thousandths.
const WHOLE: u32 = 1000;

pub(super) struct Tenants {
    plans: RwLock<HashMap<TenantId, Plan>>,
    projects: RwLock<HashMap<ProjectId, Rate>>,
    part: AtomicU32,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            plans: RwLock::default(),
            projects: RwLock::default(),
            part: AtomicU32::new(WHOLE),
        }
    }
}

impl Tenants {
    pub(super) fn plan(&self, tenant: TenantId, config: &LimitsConfig) -> Plan {
        let own = self.plans.read().unwrap_or_else(PoisonError::into_inner);
        own.get(&tenant)
            .copied()
            .or_else(|| config.plans.find(&config.plan))
            .unwrap_or(Plan::UNLIMITED)
    }

    /// The rate that the project's organization has given it, if any.
    pub(super) fn rate(&self, project: ProjectId) -> Option<Rate> {
        let own = self.projects.read().unwrap_or_else(PoisonError::into_inner);
        own.get(&project).copied()
    }

    /// The part of their rates that callers have at this moment.
    pub(super) fn part(&self) -> f64 {
        f64::from(self.part.load(Ordering::Relaxed)) / f64::from(WHOLE)
    }

    pub(super) async fn watch(&self, pool: Pool, config: &LimitsConfig, stop: CancellationToken) {
        let looks = async {
            loop {
                if let Err(error) = self.look(&pool, config).await {
                    tracing::debug!(%error, "plans and the queue's age stay as they were");
                }
                tokio::time::sleep(PERIOD).await;
            }
        };
        let _stopped: Option<()> = stop.run_until_cancelled(looks).await;
    }

    async fn look(&self, pool: &Pool, config: &LimitsConfig) -> StoreResult<()> {
        let own = within(LOOK_LIMIT, limits::own_plans(pool)).await?;
        let known = own.into_iter().filter_map(|(tenant, name)| {
            // A plan that was taken out of the configuration.
            Some((tenant, config.plans.find(&name)?))
        });
        *self.plans.write().unwrap_or_else(PoisonError::into_inner) = known.collect();
        let rates = within(LOOK_LIMIT, project_limits::rates(pool)).await?;
        *self.projects.write().unwrap_or_else(PoisonError::into_inner) = rates.into_iter().collect();
        let age = within(LOOK_LIMIT, limits::queue_age(pool)).await?;
        let part = part(age, config.overload_age);
        let before = self.part.swap((part * f64::from(WHOLE)) as u32, Ordering::Relaxed);
        metrics::gauge!("claimcheck_rate_part").set(part);
        if (before == WHOLE) != (part >= 1.0) {
            tracing::info!(part, queue_age = ?age, "rates follow the age of the queue");
        }
        Ok(())
    }
}

fn part(age: Duration, bearable: Duration) -> f64 {
    if age <= bearable {
        return 1.0;
    }
    (bearable.as_secs_f64() / age.as_secs_f64()).max(SMALLEST_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_shrink_as_the_queue_ages_and_never_to_nothing() {
        let part = |seconds| part(Duration::from_secs(seconds), Duration::from_secs(30));
        let percent = |seconds| (part(seconds) * 100.0).round() as u32;
        assert_eq!([0, 30, 60, 120, 3000].map(percent), [100, 100, 50, 25, 10]);
    }
}
