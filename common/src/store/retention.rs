//! Forgetting: ended jobs after the operator's time, idempotency keys after theirs; and next month's audit partition.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::batches::unfinished;
use super::rescue::CHUNK;
use super::row::ids;
use super::{Pool, StoreResult, transaction};
use crate::domain::BatchId;

/// Deletes one chunk of jobs that ended longer than `keep` ago, with their inputs and outputs. Events of such jobs go
/// with them; the audit log stays. Answers how many jobs went.
pub async fn forget_jobs(pool: &Pool, keep: Duration) -> StoreResult<u64> {
    let done = sqlx::query(concat!(
        "WITH old AS MATERIALIZED (
             SELECT id FROM jobs j WHERE finished_at < now() - $1::interval
                 -- What a batch came to is needed until its files are written.
                 AND NOT EXISTS (
                     SELECT FROM batch_items i JOIN batches b ON b.id = i.batch_id
                     WHERE i.id = j.id AND b.status IN ",
        unfinished!(),
        ")
             ORDER BY finished_at LIMIT $2
         ), event AS (
             DELETE FROM events WHERE job_id IN (SELECT id FROM old)
         )
         DELETE FROM jobs WHERE id IN (SELECT id FROM old)",
    ))
    .bind(keep)
    .bind(CHUNK)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes one chunk of events that are no job's and older than `keep`; those of jobs go with them. Answers how many.
pub async fn forget_events(pool: &Pool, keep: Duration) -> StoreResult<u64> {
    let done = sqlx::query(
        "DELETE FROM events WHERE id IN (
             SELECT id FROM events WHERE job_id IS NULL AND created_at < now() - $1::interval ORDER BY created_at LIMIT $2)",
    )
    .bind(keep)
    .bind(CHUNK)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Whether the failed lines of the batch `b` are being done again: which ones they are stands in its items.
const IN_USE: &str = concat!(
    "EXISTS (SELECT FROM batches r WHERE r.retry_of = b.id AND r.status IN ",
    unfinished!(),
    ")"
);

/// Deletes one chunk of the lines of batches that ended longer than `keep` ago, and one of such batches that have none left; their
/// files have times of their own. Answers how many lines and batches went: none if there is nothing more to delete.
pub async fn forget_batches(pool: &Pool, keep: Duration) -> StoreResult<u64> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            let rows = sqlx::query(AssertSqlSafe(format!(
                "SELECT id FROM batches b
                 WHERE greatest(completed_at, failed_at, expired_at, cancelled_at) < now() - $1::interval AND NOT {IN_USE}
                 ORDER BY greatest(completed_at, failed_at, expired_at, cancelled_at) LIMIT $2 FOR UPDATE SKIP LOCKED"
            )))
            .bind(keep)
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            let old: Vec<BatchId> = ids(&rows, "id")?;
            // Whoever does one of them again held it until that was committed: a statement of its own sees it.
            let gone: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
                "WITH old AS MATERIALIZED (
                     SELECT id FROM batches b WHERE id = ANY ($1) AND NOT {IN_USE}
                 ), line AS MATERIALIZED (
                     SELECT i.batch_id, i.line FROM old JOIN batch_items i ON i.batch_id = old.id LIMIT $2
                 ), gone AS (
                     DELETE FROM batch_items i USING line WHERE i.batch_id = line.batch_id AND i.line = line.line RETURNING 1
                 ), empty AS (
                     DELETE FROM batches b USING old WHERE b.id = old.id
                         AND NOT EXISTS (SELECT FROM batch_items i WHERE i.batch_id = b.id) RETURNING 1
                 )
                 SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM empty)"
            )))
            .bind(old.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(CHUNK)
            .fetch_one(connection)
            .await?;
            Ok(gone.cast_unsigned())
        })
    })
    .await
}

/// Deletes one chunk of idempotency keys whose time is over. Answers how many.
pub async fn forget_idempotency_keys(pool: &Pool) -> StoreResult<u64> {
    let done = sqlx::query(
        "DELETE FROM idempotency_keys WHERE (user_id, key) IN (
             SELECT user_id, key FROM idempotency_keys WHERE expires_at < now() ORDER BY expires_at LIMIT $1)",
    )
    .bind(CHUNK)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Makes sure that the audit log has a partition for this month and the next.
pub async fn prepare_audit_partitions(pool: &Pool) -> StoreResult<()> {
    sqlx::query(
        "SELECT ensure_audit_partition(current_date), ensure_audit_partition((current_date + interval '1 month')::date)",
    )
    .execute(pool)
    .await?;
    Ok(())
}
