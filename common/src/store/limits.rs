//! What the rate limiter asks for now and then: who has a plan of their own, and how old the queue is.

use std::time::Duration;

use sqlx::PgExecutor;

use super::row::get;
use super::{StoreResult, operators};
use crate::domain::{Id, TenantId};

/// Tenants that have a plan of their own, with its name.
pub async fn own_plans(executor: impl PgExecutor<'_>) -> StoreResult<Vec<(TenantId, String)>> {
    let rows = sqlx::query("SELECT tenant_id, plan FROM tenant_limits WHERE plan IS NOT NULL")
        .fetch_all(executor)
        .await?;
    rows.iter()
        .map(|row| Ok((Id::from_uuid(get(row, "tenant_id")?), get(row, "plan")?)))
        .collect()
}

/// How long the oldest interactive job that was released has been waiting for a worker, those apart that an operator has
/// paused. What waits in the outbox waits for its tenant's turn, which is no overload.
pub async fn queue_age(executor: impl PgExecutor<'_>) -> StoreResult<Duration> {
    // The release window bounds how many there are.
    let seconds: Option<f64> = sqlx::query_scalar(concat!(
        "SELECT extract(epoch FROM now() - j.available_at)::float8 FROM released r JOIN jobs j ON j.id = r.job_id
         WHERE r.class = 'interactive' AND NOT ",
        operators::is_paused!("j.model", "j.class", "j.tenant_id"),
        " ORDER BY j.available_at LIMIT 1",
    ))
    .fetch_optional(executor)
    .await?;
    Ok(Duration::from_secs_f64(seconds.unwrap_or_default().max(0.0)))
}
