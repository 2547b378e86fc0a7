//! Leases: a worker keeps its jobs by beating, learns which of them to drop, and hands back what it will not finish.

use std::time::Duration;

use sqlx::{PgExecutor, Row};

use super::{Pool, StoreResult, notify, transaction};
use crate::domain::{Id, JobKey};

/// What a heartbeat brings back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// A caller asked to stop these: end them as cancelled, with what was generated.
    pub cancel: Vec<JobKey>,
    /// These are no longer this worker's: stop and discard.
    pub lost: Vec<JobKey>,
}

/// Extends the leases of all `keys` in one statement.
pub async fn heartbeat(executor: impl PgExecutor<'_>, keys: &[JobKey], lease: Duration) -> StoreResult<Beat> {
    let (ids, fences) = columns(keys);
    let rows = sqlx::query(
        // SKIP LOCKED: one row that a cancel or settle holds must not stall the leases of the others.
        "WITH held AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS held (id, fence)
         ), mine AS MATERIALIZED (
             SELECT j.id FROM jobs j JOIN held USING (id, fence) WHERE j.status IN ('in_progress', 'cancelling')
             ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
         ), beat AS (
             UPDATE jobs j SET lease_expires_at = now() + $3::interval FROM mine WHERE j.id = mine.id
         )
         SELECT held.id, held.fence, coalesce(j.status = 'cancelling', false) AS cancel
         FROM held LEFT JOIN jobs j ON j.id = held.id AND j.fence = held.fence
             AND j.status IN ('in_progress', 'cancelling')
         WHERE j.id IS NULL OR j.status = 'cancelling'",
    )
    .bind(ids)
    .bind(fences)
    .bind(lease)
    .fetch_all(executor)
    .await?;
    let mut beat = Beat::default();
    for row in rows {
        let key = JobKey {
            id: Id::from_uuid(row.try_get("id")?),
            fence: row.try_get("fence")?,
        };
        let list = if row.try_get("cancel")? {
            &mut beat.cancel
        } else {
            &mut beat.lost
        };
        list.push(key);
    }
    Ok(beat)
}

/// Records that the first prefill of these claims began just now.
pub async fn mark_started(pool: &Pool, keys: Vec<JobKey>) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let keys = keys.clone();
        Box::pin(async move {
            let (ids, fences) = columns(&keys);
            sqlx::query(
                "WITH started AS MATERIALIZED (
                     SELECT j.id FROM jobs j JOIN unnest($1::uuid[], $2::bigint[]) AS held (id, fence) USING (id, fence)
                     WHERE j.status IN ('in_progress', 'cancelling') AND j.started_at IS NULL
                     ORDER BY j.id FOR NO KEY UPDATE OF j
                 )
                 UPDATE jobs j SET started_at = now() FROM started WHERE j.id = started.id",
            )
            .bind(ids)
            .bind(fences)
            .execute(&mut *connection)
            .await?;
            let changed: Vec<_> = keys.iter().map(|key| key.id).collect();
            notify::jobs_changed(connection, &changed).await
        })
    })
    .await
}

/// Hands claims back at once and free of charge: the worker stops, the jobs did nothing wrong. Cancelled ones are left
/// for the rescuer. Answers how many went back to the outbox.
pub async fn release(pool: &Pool, keys: Vec<JobKey>) -> StoreResult<u64> {
    transaction(pool, move |connection| {
        let (ids, fences) = columns(&keys);
        Box::pin(async move {
            let done = sqlx::query(
                "WITH held AS MATERIALIZED (
                     SELECT j.id FROM jobs j JOIN unnest($1::uuid[], $2::bigint[]) AS held (id, fence) USING (id, fence)
                     WHERE j.status = 'in_progress' ORDER BY j.id FOR UPDATE OF j
                 ), released AS (
                     UPDATE jobs j SET status = 'queued', attempt = attempt - 1, worker_id = NULL,
                         lease_expires_at = NULL, available_at = now(), dispatched_at = NULL, dispatches = 0
                     FROM held WHERE j.id = held.id RETURNING j.id, j.model, j.class
                 )
                 INSERT INTO outbox (job_id, model, class) SELECT id, model, class FROM released",
            )
            .bind(ids)
            .bind(fences)
            .execute(connection)
            .await?;
            Ok(done.rows_affected())
        })
    })
    .await
}

pub(super) fn columns(keys: &[JobKey]) -> (Vec<uuid::Uuid>, Vec<i64>) {
    keys.iter().map(|key| (key.id.uuid(), key.fence)).unzip()
}
