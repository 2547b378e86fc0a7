//! Jobs that somebody waits for at an open connection: they are cancelled when nobody does any more.
//!
//! Attendance is a lease that the API process renews. It outlives a hang-up for some seconds, in which a retry of the same
//! request may take the job up again, and it lapses by itself when the process dies.

use std::time::Duration;

use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::pool::rehearsal;
use super::rescue::CHUNK;
use super::row::column;
use super::{Pool, StoreResult, cancels, transaction};
use crate::domain::JobId;

/// Notes within the caller's transaction that these new jobs are attended.
pub(super) async fn begin(connection: &mut PgConnection, jobs: &[(JobId, Duration)]) -> StoreResult<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO attended_jobs (job_id, attended_until)
         SELECT id, now() + make_interval(secs => lease) FROM unnest($1::uuid[], $2::float8[]) AS new (id, lease)",
    )
    .bind(column(jobs, |(id, _)| id.uuid()))
    .bind(column(jobs, |(_, lease)| lease.as_secs_f64()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Somebody attends these jobs for `lease` from now. Jobs that have ended need nobody.
pub async fn attend(executor: impl PgExecutor<'_>, ids: &[JobId], lease: Duration) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO attended_jobs (job_id, attended_until)
         SELECT id, now() + $2::interval FROM jobs WHERE id = ANY($1) AND finished_at IS NULL ORDER BY id
         ON CONFLICT (job_id) DO UPDATE SET attended_until = excluded.attended_until",
    )
    .bind(column(ids, |id| id.uuid()))
    .bind(lease)
    .execute(executor)
    .await?;
    Ok(())
}

/// Nobody attends these jobs any more: who comes back does so within `grace`. Those that have ended are forgotten.
pub async fn leave(executor: impl PgExecutor<'_>, ids: &[JobId], grace: Duration) -> StoreResult<()> {
    sqlx::query(
        "WITH left_alone AS MATERIALIZED (
             SELECT a.job_id, j.finished_at IS NOT NULL AS ended
             FROM attended_jobs a JOIN jobs j ON j.id = a.job_id WHERE a.job_id = ANY($1)
             ORDER BY a.job_id FOR UPDATE OF a
         ), forgotten AS (
             DELETE FROM attended_jobs a USING left_alone l WHERE a.job_id = l.job_id AND l.ended
         )
         UPDATE attended_jobs a SET attended_until = now() + $2::interval
         FROM left_alone l WHERE a.job_id = l.job_id AND NOT l.ended",
    )
    .bind(column(ids, |id| id.uuid()))
    .bind(grace)
    .execute(executor)
    .await?;
    Ok(())
}

/// What one chunk of lapsed attendances came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// Attendances that had lapsed.
    pub lapsed: u64,
    /// Jobs of them that had not ended and were cancelled, or told to stop.
    pub cancelled: u64,
}

/// Cancels one chunk of jobs that nobody attends any more.
pub async fn cancel_abandoned(pool: &Pool) -> StoreResult<Abandoned> {
    transaction(pool, |connection| Box::pin(abandon(connection))).await
}

/// Does the same to a chunk and takes it all back: fails where the database takes no writes, though it may be read.
pub async fn rehearse(pool: &Pool) -> StoreResult<()> {
    rehearsal(pool, |connection| Box::pin(abandon(connection))).await
}

async fn abandon(connection: &mut PgConnection) -> StoreResult<Abandoned> {
    let lapsed: Vec<Uuid> = sqlx::query_scalar(
        "DELETE FROM attended_jobs WHERE job_id IN (
             SELECT job_id FROM attended_jobs WHERE attended_until <= now()
             ORDER BY attended_until LIMIT $1 FOR UPDATE SKIP LOCKED)
         RETURNING job_id",
    )
    .bind(CHUNK)
    .fetch_all(&mut *connection)
    .await?;
    let count = lapsed.len() as u64;
    let rows = sqlx::query(
        "SELECT id, status, fence FROM jobs WHERE id = ANY($1) AND finished_at IS NULL ORDER BY id FOR UPDATE",
    )
    .bind(lapsed)
    .fetch_all(&mut *connection)
    .await?;
    Ok(Abandoned {
        lapsed: count,
        cancelled: cancels::cancel_locked(connection, &rows, "service").await?,
    })
}
