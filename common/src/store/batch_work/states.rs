//! A batch's way from state to state (`common/src/domain/batch.rs` draws it). What callers should hear of is written into the audit
//! log, and its end as an event, in the same transaction.

use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Held, Progress, progress};
use crate::domain::{BatchId, BatchStatus, EventId, FileId, LineProblem};
use crate::store::{Pool, StoreResult, files, transaction};

/// What validation found.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// So many lines, all in order.
    InOrder(u32),
    /// The first of what is wrong, and of how many.
    Wrong(Vec<LineProblem>, u32),
}

/// Writes down what validation found: the batch is in progress, or has failed and runs nothing.
pub async fn validated(pool: &Pool, held: &Held, verdict: Verdict) -> StoreResult<Progress> {
    let (id, lease) = (held.view.id, held.lease);
    transaction(pool, move |connection| {
        let verdict = verdict.clone();
        Box::pin(async move {
            let (status, total, errors, count) = match verdict {
                Verdict::InOrder(lines) => (BatchStatus::InProgress, lines, None, 0),
                Verdict::Wrong(errors, count) => (BatchStatus::Failed, 0, Some(Json(errors)), count),
            };
            let done = sqlx::query(
                "UPDATE batches SET status = $3, total = $4, errors = $5, errors_count = $6,
                     in_progress_at = CASE $3 WHEN 'in_progress' THEN now() END,
                     failed_at = CASE $3 WHEN 'failed' THEN now() END,
                     lease = CASE $3 WHEN 'in_progress' THEN lease END
                 WHERE id = $1 AND lease = $2 AND status = 'validating'",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(status.as_str())
            .bind(total.cast_signed())
            .bind(errors)
            .bind(count.cast_signed())
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() > 0 {
                tell(connection, id, status).await?;
            }
            Ok(progress(done.rows_affected()))
        })
    })
    .await
}

/// The window is over, by the database's clock: lines that were not taken up come to nothing, jobs that run expire.
pub async fn expire(pool: &Pool, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET ending = 'expired', paused_at = NULL
         WHERE id = $1 AND lease = $2 AND status = 'in_progress' AND ending IS NULL AND expires_at <= now()",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// The batch cannot go on: what runs is to be stopped, and lines that were not taken up come to nothing.
pub async fn fail(pool: &Pool, held: &Held, problem: LineProblem) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET ending = 'failed', paused_at = NULL, errors = $3, errors_count = 1
         WHERE id = $1 AND lease = $2 AND status = 'in_progress' AND ending IS NULL",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(Json([problem]))
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// Every line has ended: the files are next.
pub async fn begin_finalizing(pool: &Pool, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET finalizing_at = coalesce(finalizing_at, now()), lease_expires_at = now() + $3::interval,
             status = CASE status WHEN 'in_progress' THEN 'finalizing' ELSE status END
         WHERE id = $1 AND lease = $2 AND status IN ('in_progress', 'cancelling') AND completed + failed = fed",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(held.lease_time)
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// A file that a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The file, noted as begun.
    pub id: FileId,
    /// Its length.
    pub bytes: u64,
    /// Its lines.
    pub lines: u32,
}

/// The batch's end: its files are there, and its counts are what stands in them.
pub async fn finish(
    pool: &Pool,
    held: &Held,
    output: Option<Written>,
    errors: Option<Written>,
) -> StoreResult<Progress> {
    let (id, lease) = (held.view.id, held.lease);
    let status = held.view.ending.unwrap_or(BatchStatus::Completed);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let lines = |file: Option<Written>| file.map_or(0, |file| file.lines.cast_signed());
            let done = sqlx::query(
                "UPDATE batches SET status = $3, output_file_id = $4, error_file_id = $5, completed = $6, failed = $7,
                     total = $6 + $7, lease = NULL, lease_expires_at = NULL,
                     completed_at = CASE $3 WHEN 'completed' THEN now() END, failed_at = CASE $3 WHEN 'failed' THEN now() END,
                     expired_at = CASE $3 WHEN 'expired' THEN now() END,
                     cancelled_at = CASE $3 WHEN 'cancelled' THEN now() END
                 WHERE id = $1 AND lease = $2 AND status IN ('finalizing', 'cancelling')",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(status.as_str())
            .bind(output.map(|file| file.id.uuid()))
            .bind(errors.map(|file| file.id.uuid()))
            .bind(lines(output))
            .bind(lines(errors))
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(Progress::Lost);
            }
            for file in [output, errors].into_iter().flatten() {
                let whole = files::Whole {
                    bytes: file.bytes,
                    lines: file.lines.into(),
                    ..files::Whole::default()
                };
                files::finish(&mut *connection, file.id, whole).await?;
            }
            tell(connection, id, status).await?;
            Ok(Progress::Done(()))
        })
    })
    .await
}

/// Writes the audit row of a batch that has just become `status`, and the event if that is its end.
async fn tell(connection: &mut PgConnection, id: BatchId, status: BatchStatus) -> StoreResult<()> {
    let shown = json!({"id": id, "object": "batch", "status": status, "url": format!("/v1/batches/{id}")});
    sqlx::query(
        "WITH batch AS (
             SELECT id, tenant_id, project_id FROM batches WHERE id = $1
         ), event AS (
             INSERT INTO events (id, project_id, type, data) SELECT $2, project_id, 'batch.' || $3, $4 FROM batch WHERE $5
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject) SELECT tenant_id, 'service', 'batch.' || $3, id FROM batch",
    )
    .bind(id.uuid())
    .bind(EventId::new().uuid())
    .bind(status.as_str())
    .bind(Json(shown))
    .bind(status.is_terminal())
    .execute(connection)
    .await?;
    Ok(())
}
