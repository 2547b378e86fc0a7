//! Erasing: a job's prompt, parameters, metadata and output go, also from the answer that is kept for a repeated request, and with
//! them what receivers of its webhooks answered. Its facts and its audit rows stay; neither ever held a text.

use std::time::Duration;

use sqlx::PgExecutor;

use super::audit::By;
use super::rescue::CHUNK;
use super::{Pool, StoreResult, transaction};
use crate::domain::{JobId, ProjectId};

/// What is not to be stored goes this long after its first delivery: a caller that lost the answer may ask again.
const AFTER_DELIVERY: Duration = Duration::from_mins(5);

/// What became of a wish to erase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// Nothing of its texts is left.
    Done,
    /// It has not ended: cancel it first.
    Running,
    /// The project has no such job.
    Unknown,
}

/// Erases an ended job's texts now. Safe to repeat. `by` goes to the audit log.
pub async fn erase(pool: &Pool, project: ProjectId, id: JobId, by: impl Into<By>) -> StoreResult<Erased> {
    let by = by.into();
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let ended: Option<bool> = sqlx::query_scalar(
                "SELECT finished_at IS NOT NULL FROM jobs WHERE id = $1 AND project_id = $2 FOR UPDATE",
            )
            .bind(id.uuid())
            .bind(project.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            Ok(match ended {
                None => Erased::Unknown,
                Some(false) => Erased::Running,
                Some(true) => {
                    erase_texts(connection, vec![id.uuid()], &by).await?;
                    Erased::Done
                }
            })
        })
    })
    .await
}

/// Erases one chunk of what is due by `ttl` or `store: false`. Answers how many jobs.
pub async fn erase_due(pool: &Pool) -> StoreResult<u64> {
    transaction(pool, |connection| {
        Box::pin(async move {
            let due: Vec<uuid::Uuid> = sqlx::query_scalar(
                "SELECT id FROM jobs WHERE erase_at <= now() AND erased_at IS NULL
                 ORDER BY erase_at LIMIT $1 FOR UPDATE SKIP LOCKED",
            )
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            erase_texts(connection, due, &By::service()).await
        })
    })
    .await
}

/// An ended job that is not to be stored was handed to its owner: it goes some minutes from now.
pub async fn delivered(executor: impl PgExecutor<'_>, id: JobId) -> StoreResult<()> {
    sqlx::query(
        "UPDATE jobs SET erase_at = least(erase_at, now() + $2::interval)
         WHERE id = $1 AND NOT store AND finished_at IS NOT NULL AND erased_at IS NULL",
    )
    .bind(id.uuid())
    .bind(AFTER_DELIVERY)
    .execute(executor)
    .await?;
    Ok(())
}

async fn erase_texts(executor: impl PgExecutor<'_>, ids: Vec<uuid::Uuid>, by: &By) -> StoreResult<u64> {
    let done = sqlx::query(
        "WITH erased AS (
             UPDATE jobs SET erased_at = now() WHERE id = ANY($1) AND erased_at IS NULL RETURNING id, tenant_id, project_id
         ), input AS (
             DELETE FROM job_inputs WHERE job_id IN (SELECT id FROM erased)
         ), output AS (
             DELETE FROM job_outputs WHERE job_id IN (SELECT id FROM erased)
         ), replay AS (
             UPDATE idempotency_keys
             SET response_body = (response_body::jsonb
                 || jsonb_build_object('parameters', NULL, 'metadata', jsonb_build_object()))::json
             WHERE job_id IN (SELECT id FROM erased)
         ), answer AS (
             -- A receiver may have answered with what it was sent.
             UPDATE webhook_attempts a SET answer = NULL
             FROM erased j JOIN events e ON e.job_id = j.id JOIN webhook_endpoints p ON p.project_id = j.project_id
             WHERE a.endpoint_id = p.id AND a.event_id = e.id AND a.answer IS NOT NULL
         )
         INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
         SELECT tenant_id, $2, $3, $4, $5, 'job.erased', id FROM erased",
    )
    .bind(ids)
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .execute(executor)
    .await?;
    Ok(done.rows_affected())
}
