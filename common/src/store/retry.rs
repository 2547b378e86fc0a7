//! Doing an ended job again: always as a new job, since terminal states never change.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::jobs::{self, JobView};
use super::row::{get, ids};
use super::selection::{Chunk, Selection, lock_chunk};
use super::{Pool, StoreError, StoreResult, transaction};
use crate::domain::{JobId, ProjectId};

/// What became of a wish to do a job again.
#[derive(Debug)]
pub enum Retried {
    /// The new job.
    Accepted(Box<JobView>),
    /// It has not ended.
    Running,
    /// Its prompt is erased.
    Erased,
    /// The project has no such job.
    Unknown,
}

/// Does one ended job again: same prompt, parameters (the seed too) and model revision, a full count of attempts, no
/// deadline. `actor` goes to the audit log (`user:<uuid>`).
pub async fn retry(pool: &Pool, project: ProjectId, id: JobId, actor: String) -> StoreResult<Retried> {
    let new = JobId::new();
    transaction(pool, move |connection| {
        let actor = actor.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT finished_at IS NOT NULL AS ended, erased_at IS NOT NULL AS erased FROM jobs
                 WHERE id = $1 AND project_id = $2 FOR SHARE",
            )
            .bind(id.uuid())
            .bind(project.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(Retried::Unknown) };
            if !get::<bool, _>(&row, "ended")? {
                return Ok(Retried::Running);
            }
            if get(&row, "erased")? {
                return Ok(Retried::Erased);
            }
            run_again(connection, &[(id, new)], &actor).await?;
            let view = jobs::get(connection, project, new)
                .await?
                .ok_or_else(|| StoreError::contradiction("a job vanished within its own transaction"))?;
            Ok(Retried::Accepted(Box::new(view)))
        })
    })
    .await
}

/// Does one chunk of the selected ended jobs again; those whose prompt is erased are passed over. `actor` goes to the audit
/// log (`user:<uuid>`).
///
/// Not for repeating blindly: who asks again from the start makes new jobs again.
pub async fn retry_selected(pool: &Pool, selection: Selection, actor: String) -> StoreResult<Chunk> {
    transaction(pool, move |connection| {
        let (selection, actor) = (selection.clone(), actor.clone());
        Box::pin(async move {
            let rows = lock_chunk(connection, &selection, "j.id", "j.finished_at IS NOT NULL").await?;
            let old: Vec<JobId> = ids(&rows, "id")?;
            let made = run_again(connection, &with_new_ids(&old), &actor).await?;
            Ok(Chunk::of(made.len() as u64, &old))
        })
    })
    .await
}

pub(super) fn with_new_ids(old: &[JobId]) -> Vec<(JobId, JobId)> {
    old.iter().map(|id| (*id, JobId::new())).collect()
}

/// Makes a new job for each ended one whose prompt is still there, by (old, new) ids. Answers the pairs that were made.
pub(super) async fn run_again(
    connection: &mut PgConnection,
    pairs: &[(JobId, JobId)],
    actor: &str,
) -> StoreResult<Vec<(JobId, JobId)>> {
    let (old, new): (Vec<Uuid>, Vec<Uuid>) = pairs.iter().map(|(old, new)| (old.uuid(), new.uuid())).unzip();
    let rows = sqlx::query(
        "WITH pair AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS pair (old, new)
         ), made AS (
             INSERT INTO jobs (id, retry_of, tenant_id, project_id, user_id, model, model_revision, class, status,
                               priority, max_attempts, prompt_tokens, store, ttl)
             SELECT pair.new, j.id, j.tenant_id, j.project_id, j.user_id, j.model, j.model_revision, j.class, 'queued',
                 j.priority, j.max_attempts, j.prompt_tokens, j.store, j.ttl
             FROM pair JOIN jobs j ON j.id = pair.old JOIN job_inputs i ON i.job_id = j.id
             WHERE j.finished_at IS NOT NULL
             RETURNING *
         ), input AS (
             INSERT INTO job_inputs (job_id, prompt, parameters, metadata)
             SELECT made.id, i.prompt, i.parameters, i.metadata FROM made JOIN job_inputs i ON i.job_id = made.retry_of
         ), message AS (
             INSERT INTO outbox (job_id, model, class, tenant_id, priority)
             SELECT id, model, class, tenant_id, priority FROM made
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, action, subject, details)
             SELECT tenant_id, $3, 'job.retried', id, jsonb_build_object('retry_of', retry_of) FROM made
         )
         SELECT retry_of, id FROM made",
    )
    .bind(old)
    .bind(new)
    .bind(actor)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok((
                JobId::from_uuid(row.try_get("retry_of")?),
                JobId::from_uuid(row.try_get("id")?),
            ))
        })
        .collect()
}
