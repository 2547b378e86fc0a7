//! Leases: a worker keeps its jobs by beating, learns which of them to drop, and hands back what it will not finish.

use std::time::{Duration, Instant};

use sqlx::{PgExecutor, Row};

use super::row::column;
use super::{Pool, StoreResult, events, notify, transaction};
use crate::domain::{Id, JobKey};

/// What a heartbeat brings back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// A caller asked to stop these: end them as cancelled, with what was generated.
    pub cancelled: Vec<JobKey>,
    /// The deadlines of these have passed: end them as expired, with what was generated.
    pub expired: Vec<JobKey>,
    /// These attempts take longer than one may: end them as failed attempts.
    pub overdue: Vec<JobKey>,
    /// These are no longer this worker's: stop and discard.
    pub lost: Vec<JobKey>,
}

/// Extends the leases of all `keys` in one statement, save those of attempts that are overdue by more than a lease: a
/// worker that cannot stop a job loses it.
pub async fn heartbeat(
    executor: impl PgExecutor<'_>,
    keys: &[JobKey],
    lease: Duration,
    attempt_limit: Duration,
) -> StoreResult<Beat> {
    let (ids, fences) = columns(keys);
    let rows = sqlx::query(
        // SKIP LOCKED: one row that a cancel or settle holds must not stall the leases of the others.
        "WITH held AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS held (id, fence)
         ), mine AS MATERIALIZED (
             SELECT j.id FROM jobs j JOIN held USING (id, fence) WHERE j.status IN ('in_progress', 'cancelling')
                 AND j.claimed_at > now() - $4::interval - $3::interval
             ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
         ), beat AS (
             UPDATE jobs j SET lease_expires_at = now() + $3::interval FROM mine WHERE j.id = mine.id
         ), seen AS (
             SELECT held.id, held.fence,
                 CASE WHEN j.id IS NULL THEN 'lost'
                      WHEN j.status = 'cancelling' THEN 'cancelled'
                      WHEN j.deadline_at <= now() THEN 'expired'
                      WHEN j.claimed_at <= now() - $4::interval THEN 'overdue' END AS verdict
             FROM held LEFT JOIN jobs j ON j.id = held.id AND j.fence = held.fence
                 AND j.status IN ('in_progress', 'cancelling')
         )
         SELECT * FROM seen WHERE verdict IS NOT NULL",
    )
    .bind(ids)
    .bind(fences)
    .bind(lease)
    .bind(attempt_limit)
    .fetch_all(executor)
    .await?;
    let mut beat = Beat::default();
    for row in rows {
        let key = JobKey {
            id: Id::from_uuid(row.try_get("id")?),
            fence: row.try_get("fence")?,
        };
        let list = match row.try_get("verdict")? {
            "cancelled" => &mut beat.cancelled,
            "expired" => &mut beat.expired,
            "overdue" => &mut beat.overdue,
            _ => &mut beat.lost,
        };
        list.push(key);
    }
    Ok(beat)
}

/// Records when the first prefill of these claims began.
pub async fn mark_started(pool: &Pool, begun: Vec<(JobKey, Instant)>) -> StoreResult<()> {
    transaction(pool, move |connection| {
        let keys: Vec<_> = begun.iter().map(|(key, _)| *key).collect();
        let (ids, fences) = columns(&keys);
        let ago = column(&begun, |(_, began)| began.elapsed().as_secs_f64());
        Box::pin(async move {
            sqlx::query(concat!(
                "WITH started AS MATERIALIZED (
                     SELECT j.id, held.ago FROM jobs j
                     JOIN unnest($1::uuid[], $2::bigint[], $3::float8[]) AS held (id, fence, ago) USING (id, fence)
                     WHERE j.status IN ('in_progress', 'cancelling') AND j.started_at IS NULL
                     ORDER BY j.id FOR NO KEY UPDATE OF j
                 ), begun AS (
                     UPDATE jobs j SET started_at = now() - make_interval(secs => started.ago)
                     FROM started WHERE j.id = started.id RETURNING j.*
                 ), ",
                events::starts!("begun", "true"),
                ", ",
                notify::changed!("begun", begun),
                " SELECT payloads FROM told",
            ))
            .bind(ids)
            .bind(fences)
            .bind(ago)
            .execute(connection)
            .await?;
            Ok(())
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
                         lease_expires_at = NULL, available_at = now(), dispatches = 0
                     FROM held WHERE j.id = held.id RETURNING j.*
                 )
                 INSERT INTO outbox (job_id, model, class, tenant_id, priority, deadline_at)
                 SELECT id, model, class, tenant_id, priority, deadline_at FROM released",
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

/// Ends the leases of claims that their worker has lost hold of, perhaps because of one of them: they count as lapsed at
/// once, and the rescuer sends them on. Answers how many were still this worker's.
pub async fn give_up(pool: &Pool, keys: Vec<JobKey>) -> StoreResult<u64> {
    transaction(pool, move |connection| {
        let (ids, fences) = columns(&keys);
        Box::pin(async move {
            let done = sqlx::query(
                "WITH held AS MATERIALIZED (
                     SELECT j.id FROM jobs j JOIN unnest($1::uuid[], $2::bigint[]) AS held (id, fence) USING (id, fence)
                     WHERE j.status IN ('in_progress', 'cancelling') ORDER BY j.id FOR NO KEY UPDATE OF j
                 )
                 UPDATE jobs j SET lease_expires_at = now() FROM held WHERE j.id = held.id",
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
