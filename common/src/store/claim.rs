//! Claiming: a delivery becomes an attempt, or nothing.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::pool::{ANSWER_LIMIT, Extent, KEPT_PLANS, transaction_under};
use super::row::{column, get, json, parse, present, unsigned};
use super::{Lane, StoreResult, notify, operators, outbox};
use crate::domain::{Encoded, GenerationParams, Id, JobId, JobKey, Prompt, Share, WorkerId};

/// A job that is now this worker's until its lease ends.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    /// The job and this claim of it.
    pub key: JobKey,
    /// Whose turn it is.
    pub share: Share,
    /// The text or tokens.
    pub prompt: Prompt,
    /// The tokens of a text, by the tokenizer that its model had when it was accepted.
    pub encoded: Option<Encoded>,
    /// How to continue it.
    pub params: GenerationParams,
    /// Leases of it that ran out before: from two on it is to run alone.
    pub lapses: u32,
}

/// Whether a job that waits is to expire instead of running.
macro_rules! late {
    () => {
        "coalesce(least(deadline_at, CASE WHEN fence = 0 THEN start_by END) <= now(), false)"
    };
}

/// Claims those of `ids` that wait. An id that is not in the answer is a duplicate or has ended: nothing need be kept for it.
///
/// A job that is queued but must not run yet (its time has not come, or it is paused) gets its outbox row back in the same
/// transaction, so that acknowledging its message loses nothing.
pub async fn claim(
    lane: impl Into<Lane>,
    worker: WorkerId,
    ids: Vec<JobId>,
    lease: Duration,
) -> StoreResult<Vec<ClaimedJob>> {
    claim_again(lane, worker, ids, Vec::new(), lease).await
}

/// As [`claim`], after a try whose answer did not come: it may have claimed those of `unheard`, and nobody runs them. Those that are in
/// progress as this worker's are claimed anew, as the same attempt, so that they need not wait for their lease to end.
///
/// Must be awaited: a try that is still to come could take a job away from the one that was heard. One that was given up here has at most
/// its commit left to do, and holds the jobs' rows until then.
pub async fn claim_again(
    lane: impl Into<Lane>,
    worker: WorkerId,
    ids: Vec<JobId>,
    unheard: Vec<JobId>,
    lease: Duration,
) -> StoreResult<Vec<ClaimedJob>> {
    // A claim that is answered after its lease is worth nothing.
    let limit = lease.min(ANSWER_LIMIT);
    transaction_under(lane, Extent::Statements, KEPT_PLANS, limit, move |connection| {
        let uuids = |ids: &[JobId]| column(ids, |id| id.uuid());
        let (mut ids, unheard) = (uuids(&ids), uuids(&unheard));
        // As the index does.
        ids.sort_unstable();
        ids.dedup();
        Box::pin(async move {
            let claimed = begin(connection, &ids, worker, &unheard, lease).await?;
            outbox::recall(connection, &column(&claimed, |job| job.key.id.uuid())).await?;
            if claimed.len() < ids.len() {
                send_back(connection, &ids).await?;
            }
            Ok(claimed)
        })
    })
    .await
}

/// Makes attempts of those of `ids` that wait, and of those of `unheard` that this worker has. What is late is left to expire and costs
/// no step.
///
/// The jobs are locked in the order of their ids, as everybody locks them. Their releases are forgotten by a statement after this
/// one: the relay may hold a job to note its release, which a statement that began before does not see.
async fn begin(
    connection: &mut PgConnection,
    ids: &[Uuid],
    worker: WorkerId,
    unheard: &[Uuid],
    lease: Duration,
) -> StoreResult<Vec<ClaimedJob>> {
    let rows = sqlx::query(concat!(
        // No SKIP LOCKED: a row that is skipped would look like a duplicate.
        "WITH claimed AS (
             UPDATE jobs SET status = 'in_progress', attempt = attempt + (status = 'queued')::int, fence = fence + 1, worker_id = $2,
                 lease_expires_at = now() + $3::interval, claimed_at = now()
             WHERE id = ANY($1) AND (
                 status = 'in_progress' AND worker_id = $2 AND id = ANY($4)
                 OR status = 'queued' AND available_at <= now() AND NOT ",
        operators::is_paused!("jobs.model", "jobs.class", "jobs.tenant_id"),
        " AND NOT ", late!(), "
             ) IS TRUE
             RETURNING id, fence, class, lapses, tenant_id, priority, deadline_at
         ), ",
        notify::changed!("claimed", begun),
        " SELECT c.*, i.prompt, i.parameters, i.encoded FROM claimed c JOIN job_inputs i ON i.job_id = c.id CROSS JOIN told ORDER BY c.id",
    ))
    .bind(ids)
    .bind(worker.uuid())
    .bind(lease)
    .bind(unheard)
    .fetch_all(connection)
    .await?;
    rows.iter().map(job).collect()
}

/// Gives those of `ids` that still wait, since they must not run yet, their outbox row back.
async fn send_back(connection: &mut PgConnection, ids: &[Uuid]) -> StoreResult<()> {
    let early: Vec<Uuid> = sqlx::query_scalar(concat!(
        "SELECT id FROM jobs WHERE id = ANY($1) AND (status = 'queued' AND NOT ",
        late!(),
        ") IS TRUE ORDER BY id FOR UPDATE"
    ))
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    if early.is_empty() {
        return Ok(());
    }
    outbox::recall(connection, &early).await?;
    sqlx::query(
        "INSERT INTO outbox (job_id, model, class, available_at, tenant_id, priority, deadline_at)
         SELECT id, model, class, available_at, tenant_id, priority, deadline_at FROM jobs j
         WHERE id = ANY($1) AND NOT EXISTS (SELECT FROM outbox o WHERE o.job_id = j.id)",
    )
    .bind(early)
    .execute(connection)
    .await?;
    Ok(())
}

fn job(row: &PgRow) -> StoreResult<ClaimedJob> {
    Ok(ClaimedJob {
        key: JobKey {
            id: Id::from_uuid(get(row, "id")?),
            fence: get(row, "fence")?,
        },
        share: Share {
            class: parse(row, "class")?,
            tenant: Id::from_uuid(get(row, "tenant_id")?),
            priority: get(row, "priority")?,
            deadline: get(row, "deadline_at")?,
        },
        prompt: present(json(row, "prompt")?, "prompt")?,
        encoded: get::<Option<&[u8]>, _>(row, "encoded")?.and_then(Encoded::from_bytes),
        params: present(json(row, "parameters")?, "parameters")?,
        lapses: unsigned(row, "lapses")?,
    })
}
