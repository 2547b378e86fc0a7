//! Settling: the one way by which a job ends, whoever ends it.
//!
//! State, output, audit row and event change in one transaction. It is guarded twice: by the fence (a newer claim owns the
//! job) and by the legal transitions of [`JobStatus`]. A key that is not in the answer was refused: discard its result.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::lease::columns;
use super::row::{get, parse};
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

/// A job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The job and the claim under which it ended.
    pub key: JobKey,
    /// How it ended: `cancelled` where a cancel came before the result.
    pub status: JobStatus,
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

/// Settles a group in one commit; answers what was settled.
///
/// A settlement that the database refuses (an output it cannot hold) spoils no other: the group is then settled one by
/// one, and the refused one ends as failed.
pub async fn settle_group(pool: &Pool, group: Vec<Settlement>, actor: String) -> StoreResult<Vec<Settled>> {
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

async fn settle_in_one(pool: &Pool, group: Vec<Settlement>, actor: String) -> StoreResult<Vec<Settled>> {
    transaction(pool, move |connection| {
        let (group, actor) = (group.clone(), actor.clone());
        Box::pin(async move { settle(connection, &group, &actor).await })
    })
    .await
}

/// Settles within the caller's transaction. `actor` goes to the audit log (`worker:<uuid>`, `service`).
pub async fn settle(connection: &mut PgConnection, group: &[Settlement], actor: &str) -> StoreResult<Vec<Settled>> {
    let legal = lock_legal(connection, group).await?;
    if legal.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<_> = legal.iter().map(|ending| ending.key).collect();
    let (ids, fences) = columns(&keys);
    sqlx::query(
        "WITH ending AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::jsonb[], $5::int[], $6::jsonb[], $7::uuid[])
                 AS ending (id, fence, status, choices, completion_tokens, error, event_id)
         ), settled AS (
             UPDATE jobs j SET status = e.status, error = e.error, completion_tokens = e.completion_tokens,
                 finished_at = now(), lease_expires_at = NULL, dispatched_at = NULL,
                 cancel_requested_at = CASE e.status WHEN 'cancelled' THEN coalesce(cancel_requested_at, now()) END
             FROM ending e WHERE j.id = e.id AND j.fence = e.fence
             RETURNING j.id, j.status, j.project_id, j.tenant_id, e.choices, e.event_id
         ), output AS (
             INSERT INTO job_outputs (job_id, choices) SELECT id, choices FROM settled WHERE choices IS NOT NULL
         ), event AS (
             INSERT INTO events (id, project_id, type, job_id)
             SELECT event_id, project_id, 'job.' || status, id FROM settled
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject)
         SELECT tenant_id, $8, 'job.' || status, id FROM settled",
    )
    .bind(ids)
    .bind(fences)
    .bind(legal.iter().map(|ending| ending.status.as_str()).collect::<Vec<_>>())
    .bind(
        legal
            .iter()
            .map(|ending| ending.choices.as_ref().map(sqlx::types::Json))
            .collect::<Vec<_>>(),
    )
    .bind(
        legal
            .iter()
            .map(|ending| ending.completion_tokens.cast_signed())
            .collect::<Vec<_>>(),
    )
    .bind(
        legal
            .iter()
            .map(|ending| ending.error.as_ref().map(sqlx::types::Json))
            .collect::<Vec<_>>(),
    )
    .bind(legal.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
    .bind(actor)
    .execute(&mut *connection)
    .await?;
    let changed: Vec<_> = keys.iter().map(|key| key.id).collect();
    notify::jobs_changed(connection, &changed).await?;
    let settled = legal
        .into_iter()
        .map(|Settlement { key, status, .. }| Settled { key, status });
    Ok(settled.collect())
}

/// Locks the group's jobs and keeps those endings that are legal now.
///
/// A statement of its own: a status that changes while one statement waits for its lock is not joined anew in that same
/// statement, and a settle that met a cancel would then be dropped.
async fn lock_legal(connection: &mut PgConnection, group: &[Settlement]) -> StoreResult<Vec<Settlement>> {
    let keys: Vec<_> = group.iter().map(|one| one.key).collect();
    let (ids, fences) = columns(&keys);
    let rows = sqlx::query(
        // A newer claim has a greater fence: a worker that lost its job finds no row here.
        "SELECT j.id, j.fence, j.status FROM jobs j
         JOIN unnest($1::uuid[], $2::bigint[]) AS ending (id, fence) USING (id, fence)
         ORDER BY j.id FOR UPDATE OF j",
    )
    .bind(ids)
    .bind(fences)
    .fetch_all(connection)
    .await?;
    // By key: a group may hold the ending of an old claim beside that of the newest one.
    let mut now: HashMap<JobKey, JobStatus> = HashMap::new();
    for row in &rows {
        let id = Id::from_uuid(get(row, "id")?);
        now.insert(
            JobKey {
                id,
                fence: get(row, "fence")?,
            },
            parse(row, "status")?,
        );
    }
    Ok(group
        .iter()
        .filter_map(|wanted| {
            // Taken out, so that a key that stands twice in a group settles once.
            let status = now.remove(&wanted.key)?;
            legal_ending(status, wanted)
        })
        .collect())
}

/// The ending that `wanted` means for a job in `status`, if the diagram has it.
fn legal_ending(status: JobStatus, wanted: &Settlement) -> Option<Settlement> {
    let mut ending = wanted.clone();
    if status == JobStatus::Cancelling {
        // Who was told `cancelling` is never told `completed` or `failed`.
        ending.status = JobStatus::Cancelled;
        ending.error = None;
    }
    (ending.status.is_terminal() && status.transition(ending.status).is_ok()).then_some(ending)
}
