//! Settling: the one way by which a job ends, whoever ends it.
//!
//! State, output, audit row and event change in one statement. It is guarded twice: by the fence (a newer claim owns the
//! job) and by the legal transitions of [`JobStatus`]. A key that is not in the answer was refused: discard its result.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::lease::columns;
use super::{Pool, StoreError, StoreResult, notify, transaction};
use crate::domain::{Choice, Completion, EventId, Id, JobError, JobKey, JobStatus};

/// How a job is to end.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The job and the claim under which it ended.
    pub key: JobKey,
    /// Terminal. A job that is `cancelling` ends as `cancelled` whatever stands here.
    pub status: JobStatus,
    /// What was generated, if anything.
    pub choices: Option<Vec<Choice>>,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Why it failed.
    pub error: Option<JobError>,
}

impl Settlement {
    /// The job ended with its output.
    pub fn completed(key: JobKey, completion: Completion) -> Self {
        Self::with_output(key, JobStatus::Completed, completion)
    }

    /// The job was stopped; what it had generated is kept.
    pub fn cancelled_with(key: JobKey, completion: Completion) -> Self {
        Self::with_output(key, JobStatus::Cancelled, completion)
    }

    /// The job was stopped before it generated anything.
    pub const fn cancelled(key: JobKey) -> Self {
        Self {
            key,
            status: JobStatus::Cancelled,
            choices: None,
            completion_tokens: 0,
            error: None,
        }
    }

    /// The job cannot be finished.
    pub const fn failed(key: JobKey, error: JobError) -> Self {
        Self {
            key,
            status: JobStatus::Failed,
            choices: None,
            completion_tokens: 0,
            error: Some(error),
        }
    }

    fn with_output(key: JobKey, status: JobStatus, completion: Completion) -> Self {
        let completion_tokens = completion.usage.completion_tokens;
        Self {
            key,
            status,
            choices: Some(completion.choices),
            completion_tokens,
            error: None,
        }
    }
}

/// Settles a group in one commit; answers the keys that were settled.
///
/// A settlement that the database refuses (an output it cannot hold) spoils no other: the group is then settled one by
/// one, and the refused one ends as failed.
pub async fn settle_group(pool: &Pool, group: Vec<Settlement>, actor: String) -> StoreResult<Vec<JobKey>> {
    match settle_in_one(pool, group.clone(), actor.clone()).await {
        Err(StoreError::Refused(cause)) => {
            tracing::warn!(%cause, jobs = group.len(), "a group of results was refused, settling them one by one");
        }
        outcome => return outcome,
    }
    let mut settled = Vec::new();
    for settlement in group {
        let key = settlement.key;
        let outcome = match settle_in_one(pool, vec![settlement], actor.clone()).await {
            Err(StoreError::Refused(cause)) => {
                tracing::error!(job = %key.id, %cause, "a result was refused");
                let error = JobError::server("output_not_storable", "The output of this job could not be stored.");
                settle_in_one(pool, vec![Settlement::failed(key, error)], actor.clone()).await
            }
            outcome => outcome,
        };
        settled.extend(outcome?);
    }
    Ok(settled)
}

async fn settle_in_one(pool: &Pool, group: Vec<Settlement>, actor: String) -> StoreResult<Vec<JobKey>> {
    transaction(pool, move |connection| {
        let (group, actor) = (group.clone(), actor.clone());
        Box::pin(async move { settle(connection, &group, &actor).await })
    })
    .await
}

/// Settles within the caller's transaction. `actor` goes to the audit log (`worker:<uuid>`, `service`).
pub async fn settle(connection: &mut PgConnection, group: &[Settlement], actor: &str) -> StoreResult<Vec<JobKey>> {
    debug_assert!(
        group.iter().all(|one| one.status.is_terminal()),
        "only endings are settled"
    );
    let keys: Vec<_> = group.iter().map(|one| one.key).collect();
    let (ids, fences) = columns(&keys);
    let (from, to) = legal_endings();
    let rows = sqlx::query(
        "WITH ending AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::jsonb[], $5::int[], $6::jsonb[], $7::uuid[])
                 AS ending (id, fence, status, choices, completion_tokens, error, event_id)
         ), legal AS MATERIALIZED (
             SELECT * FROM unnest($8::text[], $9::text[]) AS legal (was, becomes)
         ), locked AS MATERIALIZED (
             -- A newer claim has a greater fence: a worker that lost its job finds no row here.
             SELECT j.id FROM jobs j JOIN ending e USING (id, fence)
             WHERE j.finished_at IS NULL ORDER BY j.id FOR UPDATE OF j
         ), settled AS (
             UPDATE jobs j SET
                 status = legal.becomes,
                 error = CASE legal.becomes WHEN 'failed' THEN e.error END,
                 completion_tokens = e.completion_tokens,
                 finished_at = now(), lease_expires_at = NULL, dispatched_at = NULL,
                 cancel_requested_at = CASE legal.becomes WHEN 'cancelled' THEN coalesce(cancel_requested_at, now()) END
             FROM locked JOIN ending e USING (id), legal
             WHERE j.id = locked.id AND legal.was = j.status
                 -- Who was told `cancelling` is never told `completed`.
                 AND legal.becomes = CASE j.status WHEN 'cancelling' THEN 'cancelled' ELSE e.status END
             RETURNING j.id, j.fence, j.status, j.project_id, j.tenant_id, e.choices, e.event_id
         ), output AS (
             INSERT INTO job_outputs (job_id, choices) SELECT id, choices FROM settled WHERE choices IS NOT NULL
         ), event AS (
             INSERT INTO events (id, project_id, type, job_id)
             SELECT event_id, project_id, 'job.' || status, id FROM settled
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, action, subject)
             SELECT tenant_id, $10, 'job.' || status, id FROM settled
         )
         SELECT id, fence FROM settled ORDER BY id",
    )
    .bind(ids)
    .bind(fences)
    .bind(group.iter().map(|one| one.status.as_str()).collect::<Vec<_>>())
    .bind(
        group
            .iter()
            .map(|one| one.choices.as_ref().map(sqlx::types::Json))
            .collect::<Vec<_>>(),
    )
    .bind(
        group
            .iter()
            .map(|one| one.completion_tokens.cast_signed())
            .collect::<Vec<_>>(),
    )
    .bind(
        group
            .iter()
            .map(|one| one.error.as_ref().map(sqlx::types::Json))
            .collect::<Vec<_>>(),
    )
    .bind(group.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
    .bind(from)
    .bind(to)
    .bind(actor)
    .fetch_all(&mut *connection)
    .await?;
    let settled = rows
        .iter()
        .map(|row| {
            Ok(JobKey {
                id: Id::from_uuid(row.try_get::<Uuid, _>("id")?),
                fence: row.try_get("fence")?,
            })
        })
        .collect::<StoreResult<Vec<_>>>()?;
    let changed: Vec<_> = settled.iter().map(|key| key.id).collect();
    notify::jobs_changed(connection, &changed).await?;
    Ok(settled)
}

/// The arrows of the state diagram that end a job, as two columns.
fn legal_endings() -> (Vec<&'static str>, Vec<&'static str>) {
    JobStatus::ALL
        .into_iter()
        .filter(|to| to.is_terminal())
        .flat_map(|to| to.sources().iter().map(move |from| (from.as_str(), to.as_str())))
        .unzip()
}
