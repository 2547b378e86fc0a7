//! Taking a batch up, so that no other worker does, and letting it go.

use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Held, Mark, Progress, progress};
use crate::domain::Id;
use crate::store::api_keys::grant;
use crate::store::batches::{unfinished, view};
use crate::store::row::{get, unsigned};
use crate::store::{Pool, StoreResult};

/// Takes the batch that has waited longest, if one is due.
pub async fn take(pool: &Pool, lease_time: Duration) -> StoreResult<Option<Held>> {
    let lease = Uuid::now_v7();
    let row = sqlx::query(concat!(
        "WITH due AS MATERIALIZED (
             SELECT id, api_key_id FROM batches
             WHERE status IN ",
        unfinished!(),
        " AND due_at <= now()
                 AND (lease IS NULL OR lease_expires_at < now())
             ORDER BY due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
         )
         UPDATE batches b SET lease = $1, lease_expires_at = now() + $2::interval
         FROM due LEFT JOIN api_keys k ON k.id = due.api_key_id WHERE b.id = due.id
         RETURNING b.*, b.expires_at <= now() AS late, k.scopes, k.models, k.max_tokens",
    ))
    .bind(lease)
    .bind(lease_time)
    .fetch_optional(pool)
    .await?;
    row.map(|row| held(&row, lease, lease_time)).transpose()
}

fn held(row: &PgRow, lease: Uuid, lease_time: Duration) -> StoreResult<Held> {
    let ttl: Option<sqlx::postgres::types::PgInterval> = get(row, "output_ttl")?;
    let api_key_id: Option<Uuid> = get(row, "api_key_id")?;
    Ok(Held {
        view: view(row)?,
        tenant_id: Id::from_uuid(get(row, "tenant_id")?),
        project_id: Id::from_uuid(get(row, "project_id")?),
        user_id: Id::from_uuid(get(row, "user_id")?),
        api_key_id: api_key_id.map(Id::from_uuid),
        grant: api_key_id.map(|_| grant(row)).transpose()?,
        input_bytes: get::<i64, _>(row, "input_bytes")?.cast_unsigned(),
        mark: Mark {
            bytes: get::<i64, _>(row, "fed_bytes")?.cast_unsigned(),
            line: unsigned(row, "fed_line")?,
            items: unsigned(row, "fed")?,
        },
        output_ttl: ttl.map(|ttl| Duration::from_micros(ttl.microseconds.unsigned_abs())),
        holding: get(row, "holding")?,
        late: get(row, "late")?,
        lease,
        lease_time,
    })
}

/// Holds a batch for another lease: long work says every now and then that it goes on.
pub async fn keep(executor: impl PgExecutor<'_>, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query("UPDATE batches SET lease_expires_at = now() + $3::interval WHERE id = $1 AND lease = $2")
        .bind(held.view.id.uuid())
        .bind(held.lease)
        .bind(held.lease_time)
        .execute(executor)
        .await?;
    Ok(progress(done.rows_affected()))
}

/// Lets a batch go; it is taken up again after `pause`, or sooner if a caller steers it.
pub async fn let_go(executor: impl PgExecutor<'_>, held: &Held, pause: Duration) -> StoreResult<()> {
    sqlx::query("UPDATE batches SET lease = NULL, lease_expires_at = NULL, due_at = now() + $3::interval WHERE id = $1 AND lease = $2")
        .bind(held.view.id.uuid())
        .bind(held.lease)
        .bind(pause)
        .execute(executor)
        .await?;
    Ok(())
}
