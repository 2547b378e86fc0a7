//! How many jobs a tenant may have waiting, kept within the transaction that adds to them.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreResult;
use super::row::get;
use crate::domain::{Id, TenantId};

/// A new job's tenant, and the limit of a tenant that has none of its own.
pub(super) type Asked = (TenantId, Option<u32>);

/// For each new job the limit that it would exceed, if it would.
///
/// Submits of a tenant that has a limit stand in line here until each other's commit, so that a thousand at once let in
/// exactly as many as there is room for; a tenant without one never waits.
pub(super) async fn exceeded(connection: &mut PgConnection, asked: &[Asked]) -> StoreResult<Vec<Option<u32>>> {
    let own = own_limits(connection, asked).await?;
    // In the order of their ids: two groups never wait for each other.
    let limits: BTreeMap<Uuid, u32> = asked
        .iter()
        .filter_map(|(tenant, limit)| Some((tenant.uuid(), own.get(&tenant.uuid()).copied().or(*limit)?)))
        .collect();
    let mut rooms = BTreeMap::new();
    for (tenant, limit) in &limits {
        rooms.insert(*tenant, room(connection, Id::from_uuid(*tenant), *limit).await?);
    }
    let exceeded = |(tenant, _): &Asked| {
        let tenant = tenant.uuid();
        let room = rooms.get_mut(&tenant)?;
        if *room > 0 {
            *room -= 1;
            return None;
        }
        limits.get(&tenant).copied()
    };
    Ok(asked.iter().map(exceeded).collect())
}

/// How many more lines of a tenant's batches may become waiting jobs: as many as its limit has room for, less one part in
/// `left_to_others` of it. `None`: it has no limit.
pub(super) async fn room_for_batch(
    connection: &mut PgConnection,
    tenant: TenantId,
    limit: Option<u32>,
    left_to_others: u32,
) -> StoreResult<Option<u32>> {
    let own = own_limits(connection, &[(tenant, limit)]).await?;
    let Some(limit) = own.get(&tenant.uuid()).copied().or(limit) else {
        return Ok(None);
    };
    Ok(Some(room(connection, tenant, limit - limit / left_to_others).await?))
}

async fn own_limits(connection: &mut PgConnection, asked: &[Asked]) -> StoreResult<BTreeMap<Uuid, u32>> {
    let tenants: Vec<_> = asked.iter().map(|(tenant, _)| tenant.uuid()).collect();
    let rows = sqlx::query(
        "SELECT tenant_id, max_queued FROM tenant_limits WHERE tenant_id = ANY($1) AND max_queued IS NOT NULL",
    )
    .bind(tenants)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok((
                get(row, "tenant_id")?,
                get::<i32, _>(row, "max_queued")?.cast_unsigned(),
            ))
        })
        .collect()
}

/// How many more jobs of a tenant may wait. Nobody else changes it until the transaction ends.
async fn room(connection: &mut PgConnection, tenant: TenantId, limit: u32) -> StoreResult<u32> {
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
    Ok(limit.saturating_sub(u32::try_from(waiting).unwrap_or(u32::MAX)))
}
