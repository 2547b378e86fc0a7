//! Asking jobs to stop, and the push by which a worker hears of it within milliseconds.
//!
//! The push is a hint, like every notification: what is lost while nobody listens comes with the next heartbeat.

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use tokio_util::sync::CancellationToken;

use super::audit::By;
use super::jobs::{self, JobView};
use super::row::{get, ids, parse};
use super::selection::{Chunk, Selection, lock_chunk};
use super::settle::{Settlement, settle};
use super::{Pool, StoreResult, notify, transaction};
use crate::domain::{Id, JobId, JobKey, JobStatus, ProjectId};

const CHANNEL: &str = "claimcheck_cancels";

/// Asks a job to stop: a waiting one ends at once, a running one becomes `cancelling`, an ended one stays as it is.
///
/// Answers the job as it is then, or `None` if the project has no such job.
pub async fn request_cancel(
    pool: &Pool,
    project: ProjectId,
    id: JobId,
    by: impl Into<By>,
) -> StoreResult<Option<JobView>> {
    let by = by.into();
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let rows = sqlx::query("SELECT id, status, fence FROM jobs WHERE id = $1 AND project_id = $2 FOR UPDATE")
                .bind(id.uuid())
                .bind(project.uuid())
                .fetch_all(&mut *connection)
                .await?;
            cancel_locked(connection, &rows, &by).await?;
            jobs::get(connection, project, id).await
        })
    })
    .await
}

/// Asks one chunk of the selected jobs to stop. `by` goes to the audit log.
pub async fn cancel_selected(pool: &Pool, selection: Selection, by: impl Into<By>) -> StoreResult<Chunk> {
    let by = by.into();
    transaction(pool, move |connection| {
        let (selection, by) = (selection.clone(), by.clone());
        Box::pin(async move {
            let condition = "j.finished_at IS NULL AND j.status <> 'cancelling'";
            let rows = lock_chunk(connection, &selection, "j.id, j.status, j.fence", condition).await?;
            let count = cancel_locked(connection, &rows, &by).await?;
            Ok(Chunk::of(count, &ids(&rows, "id")?))
        })
    })
    .await
}

/// Cancels jobs that are locked, given as rows of `id`, `status` and `fence`. Answers how many changed.
pub(super) async fn cancel_locked(
    connection: &mut PgConnection,
    rows: &[PgRow],
    by: impl Into<By>,
) -> StoreResult<u64> {
    let by = &by.into();
    let (mut waiting, mut running) = (Vec::new(), Vec::new());
    for row in rows {
        let status: JobStatus = parse(row, "status")?;
        let key = JobKey {
            id: Id::from_uuid(get(row, "id")?),
            fence: get(row, "fence")?,
        };
        if status.transition(JobStatus::Cancelling).is_ok() {
            running.push(key.id);
        } else if status != JobStatus::Cancelling && status.transition(JobStatus::Cancelled).is_ok() {
            waiting.push(Settlement::cancelled(key));
        }
    }
    settle(connection, &waiting, by).await?;
    if !running.is_empty() {
        let ids: Vec<_> = running.iter().map(|id| id.uuid()).collect();
        sqlx::query(concat!(
            "WITH asked AS (
                 UPDATE jobs SET status = 'cancelling', cancel_requested_at = now() WHERE id = ANY($1) RETURNING *
             ), ",
            notify::changed!("asked"),
            " INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
             SELECT tenant_id, $2, $3, $4, $5, 'job.cancelling', id FROM asked CROSS JOIN told",
        ))
        .bind(ids)
        .bind(&by.actor)
        .bind(by.credential())
        .bind(by.address())
        .bind(by.request_id())
        .execute(&mut *connection)
        .await?;
        notify::tell(connection, CHANNEL, &running).await?;
    }
    Ok((waiting.len() + running.len()) as u64)
}

/// Calls `heard` for every job that is to be stopped, anybody's, until `stop` and through every failure of the database.
pub async fn listen(pool: Pool, heard: impl Fn(JobId) + Send + Sync, stop: CancellationToken) {
    let heard = |payload: Option<&str>| payload.into_iter().flat_map(notify::told).for_each(&heard);
    // What is lost while the connection is made anew is left to the heartbeat.
    notify::listen(&pool, CHANNEL, heard, stop).await;
}
