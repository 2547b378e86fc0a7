//! How many jobs a tenant may have waiting, kept within the transaction that adds to them.

use sqlx::PgConnection;

use super::StoreResult;
use crate::domain::TenantId;

/// Whether `more` jobs of a tenant fit within its limit: its own, or else `default`. `Some` is the limit that is reached.
///
/// Submits of a tenant that has a limit stand in line here until each other's commit, so that a thousand at once let in
/// exactly as many as there is room for; a tenant without one never waits.
pub async fn exceeded(
    connection: &mut PgConnection,
    tenant: TenantId,
    default: Option<u32>,
    more: u32,
) -> StoreResult<Option<u32>> {
    let own: Option<i32> = sqlx::query_scalar("SELECT max_queued FROM tenant_limits WHERE tenant_id = $1")
        .bind(tenant.uuid())
        .fetch_optional(&mut *connection)
        .await?
        .flatten();
    let Some(limit) = own.map(i32::cast_unsigned).or(default) else {
        return Ok(None);
    };
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('quota:' || $1::text, 0))")
        .bind(tenant.uuid())
        .execute(&mut *connection)
        .await?;
    // A statement of its own, after the lock: it sees what those before have committed.
    let waiting: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (
             SELECT FROM jobs WHERE tenant_id = $1 AND finished_at IS NULL AND status IN ('scheduled', 'queued') LIMIT $2
         ) counted",
    )
    .bind(tenant.uuid())
    .bind(i64::from(limit))
    .fetch_one(connection)
    .await?;
    Ok((waiting + i64::from(more) > i64::from(limit)).then_some(limit))
}
