//! What becomes of the jobs of a batch: those that have ended are counted, those that wait are held, those that run are stopped.

use super::{Held, Progress};
use crate::store::rescue::CHUNK;
use crate::store::row::unsigned;
use crate::store::{Pool, StoreResult, cancels, transaction};

/// Counts the items whose jobs have ended since the last count. Answers the batch's counts as they are then.
pub async fn count(pool: &Pool, held: &Held) -> StoreResult<Progress<(u32, u32)>> {
    let (id, lease, lease_time) = (held.view.id, held.lease, held.lease_time);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let row = sqlx::query(
                // The items without a place are those that were fed and not counted: their number is bounded, however long
                // the batch is.
                "WITH ended AS MATERIALIZED (
                     SELECT i.line, j.status = 'completed' AS completed, j.prompt_tokens, j.completion_tokens,
                         row_number() OVER (ORDER BY j.finished_at, i.line)::int AS place
                     FROM batch_items i JOIN jobs j ON j.id = i.id
                     WHERE i.batch_id = $1 AND i.seq IS NULL AND j.finished_at IS NOT NULL
                 ), counted AS (
                     SELECT count(*)::int AS ended, (count(*) FILTER (WHERE completed))::int AS completed,
                         coalesce(sum(prompt_tokens) FILTER (WHERE completion_tokens > 0), 0)::int8 AS prompt_tokens,
                         coalesce(sum(completion_tokens), 0)::int8 AS completion_tokens
                     FROM ended
                 ), batch AS (
                     UPDATE batches b SET completed = b.completed + c.completed, failed = b.failed + c.ended - c.completed,
                         prompt_tokens = b.prompt_tokens + c.prompt_tokens,
                         completion_tokens = b.completion_tokens + c.completion_tokens,
                         lease_expires_at = now() + $3::interval
                     FROM counted c WHERE b.id = $1 AND b.lease = $2
                     RETURNING b.completed, b.failed, b.completed + b.failed - c.ended AS before
                 ), placed AS (
                     UPDATE batch_items i SET seq = batch.before + ended.place, completed = ended.completed
                     FROM ended, batch WHERE i.batch_id = $1 AND i.line = ended.line
                 )
                 SELECT completed, failed FROM batch",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(lease_time)
            .fetch_optional(connection)
            .await?;
            Ok(match row {
                Some(row) => Progress::Done((unsigned(&row, "completed")?, unsigned(&row, "failed")?)),
                None => Progress::Lost,
            })
        })
    })
    .await
}

/// Asks one chunk of the batch's running jobs to stop. Answers whether there may be more.
pub async fn cancel_jobs(pool: &Pool, held: &Held) -> StoreResult<bool> {
    let id = held.view.id;
    transaction(pool, move |connection| {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT j.id, j.status, j.fence FROM jobs j
                 WHERE j.id IN (SELECT i.id FROM batch_items i WHERE i.batch_id = $1 AND i.seq IS NULL)
                     AND j.finished_at IS NULL AND j.status <> 'cancelling'
                 ORDER BY j.id LIMIT $2 FOR UPDATE OF j",
            )
            .bind(id.uuid())
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            cancels::cancel_locked(connection, &rows, "service").await?;
            Ok(rows.len() as i64 == CHUNK)
        })
    })
    .await
}

/// While a batch is paused its waiting jobs are not available until the end of its window; afterwards they are at once.
pub async fn hold_waiting(pool: &Pool, held: &Held, paused: bool) -> StoreResult<u64> {
    let (id, until) = (held.view.id, held.view.expires_at);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let done = sqlx::query(
                "WITH waiting AS MATERIALIZED (
                     SELECT j.id FROM jobs j
                     WHERE j.id IN (SELECT i.id FROM batch_items i WHERE i.batch_id = $1 AND i.seq IS NULL)
                         AND j.status = 'queued' AND (j.available_at < $2) = $3
                     ORDER BY j.id FOR NO KEY UPDATE OF j
                 ), moved AS (
                     UPDATE jobs j SET available_at = CASE WHEN $3 THEN $2 ELSE now() END FROM waiting w WHERE j.id = w.id
                     RETURNING j.id, j.available_at
                 ), noted AS (
                     UPDATE batches SET holding = $3 WHERE id = $1
                 )
                 -- Those that are with the broker come back by their claim, with the new time.
                 UPDATE outbox o SET available_at = m.available_at FROM moved m WHERE o.job_id = m.id",
            )
            .bind(id.uuid())
            .bind(until)
            .bind(paused)
            .execute(connection)
            .await?;
            Ok(done.rows_affected())
        })
    })
    .await
}
