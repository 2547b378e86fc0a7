//! Settling: the one way by which a job ends, whoever ends it.
//!
//! State, output, audit row, event, dead letter and budgets change in one transaction. It is guarded twice: by the fence (a newer claim owns the
//! job) and by the legal transitions of [`JobStatus`]. A key that is not in the answer was refused: discard its result.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::audit::{self, By};
use super::lease::columns;
use super::pool::{ANSWER_LIMIT, Extent, KEPT_PLANS, transaction_under};
use super::row::{column, get, parse};
use super::{Lane, StoreError, StoreResult, budgets, events, notify, outbox};
use crate::domain::{
    Choice, Completion, EventId, FinishReason, Id, JobError, JobId, JobKey, JobStatus, Runtime, Spent,
};
use crate::policy::Hit;

/// What is not to be stored and never fetched is kept this long all the same.
const UNFETCHED_KEPT: Duration = Duration::from_hours(24);

/// How an attempt at a job is to end.
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
    /// When its first prefill began, if nobody wrote that down yet.
    pub started: Option<Instant>,
    /// The rules of the content policy that its text met.
    pub hits: Vec<Hit>,
    /// Another attempt may do better: while the job has one left it goes back to the outbox, after a pause.
    pub again: bool,
    /// What the attempt took, if a worker brings this ending.
    pub measured: Option<Measured>,
}

/// What an attempt took, and on what it ran: for the job's receipt.
#[derive(Debug, Clone)]
pub struct Measured {
    /// As the engine measured it.
    pub spent: Spent,
    /// The worker's weights and build.
    pub runtime: Arc<Runtime>,
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The job and the claim under which it ended.
    pub key: JobKey,
    /// How it ended: `cancelled` where a cancel came before the result, `queued` where it is to be tried again.
    pub status: JobStatus,
    /// How long ago the caller asked to stop it.
    pub cancel_latency: Option<Duration>,
}

impl Settlement {
    /// The job ended with its output.
    pub fn completed(key: JobKey, completion: Completion) -> Self {
        Self::ended(key, JobStatus::Completed).with(completion)
    }

    /// The job was stopped; what it had generated is kept.
    pub fn cancelled_with(key: JobKey, completion: Completion) -> Self {
        Self::ended(key, JobStatus::Cancelled).with(completion)
    }

    /// The job was stopped before it generated anything.
    pub const fn cancelled(key: JobKey) -> Self {
        Self::ended(key, JobStatus::Cancelled)
    }

    /// The job's deadline passed while it ran; what it had generated is kept.
    pub fn expired_with(key: JobKey, completion: Completion) -> Self {
        Self::expired(key, deadline_exceeded()).with(completion)
    }

    /// The job's time was up before it ran.
    pub fn expired(key: JobKey, error: JobError) -> Self {
        Self {
            error: Some(error),
            ..Self::ended(key, JobStatus::Expired)
        }
    }

    /// The job cannot be done.
    pub fn failed(key: JobKey, error: JobError) -> Self {
        Self {
            error: Some(error),
            ..Self::ended(key, JobStatus::Failed)
        }
    }

    /// This attempt failed; the next may do better.
    pub fn attempt_failed(key: JobKey, error: JobError) -> Self {
        Self {
            again: true,
            ..Self::failed(key, error)
        }
    }

    const fn ended(key: JobKey, status: JobStatus) -> Self {
        Self {
            key,
            status,
            choices: None,
            completion_tokens: 0,
            error: None,
            started: None,
            hits: Vec::new(),
            again: false,
            measured: None,
        }
    }

    /// Seconds since the start that nobody wrote down yet.
    fn started_ago(&self) -> Option<f64> {
        self.started.map(|began| began.elapsed().as_secs_f64())
    }

    /// The tokens of each choice; none at all where a text was withheld, since a replay has nothing to be held against then.
    fn tokens(&self) -> Option<Json<Vec<&[u32]>>> {
        let choices = self.choices.as_ref()?;
        let shown = |choice: &Choice| choice.finish_reason != Some(FinishReason::ContentFilter);
        let tokens = choices.iter().map(|choice| choice.tokens.as_slice()).collect();
        choices.iter().all(shown).then_some(Json(tokens))
    }

    fn with(self, completion: Completion) -> Self {
        Self {
            completion_tokens: completion.usage.completion_tokens,
            choices: Some(completion.choices),
            ..self
        }
    }
}

/// A job's own deadline passed.
pub fn deadline_exceeded() -> JobError {
    JobError::server("deadline_exceeded", "The job was not finished by its `deadline_at`.")
}

/// Settles a group in one commit; answers what became of each.
///
/// A settlement that the database refuses (an output it cannot hold) spoils no other: the group is then settled one by
/// one, and the refused one ends as failed.
pub async fn settle_group(
    lane: impl Into<Lane>,
    group: Vec<Settlement>,
    by: impl Into<By>,
) -> StoreResult<Vec<Settled>> {
    let (lane, by) = (&lane.into(), by.into());
    match settle_in_one(lane, group.clone(), by.clone()).await {
        Err(StoreError::Refused(cause)) => {
            tracing::warn!(%cause, jobs = group.len(), "a group of results was refused, settling them one by one");
        }
        outcome => return outcome,
    }
    let mut settled = Vec::new();
    for settlement in group {
        let key = settlement.key;
        let outcome = match settle_in_one(lane, vec![settlement], by.clone()).await {
            Err(StoreError::Refused(cause)) => {
                tracing::error!(job = %key.id, %cause, "a result was refused");
                let error = JobError::server("output_not_storable", "The output of this job could not be stored.");
                settle_in_one(lane, vec![Settlement::failed(key, error)], by.clone()).await
            }
            outcome => outcome,
        };
        settled.extend(outcome?);
    }
    Ok(settled)
}

async fn settle_in_one(lane: &Lane, group: Vec<Settlement>, by: By) -> StoreResult<Vec<Settled>> {
    let group: Arc<[Settlement]> = group.into();
    let by = Arc::new(by);
    let mut settled = Vec::new();
    if group.iter().all(|one| one.hits.is_empty()) {
        let (group, by) = (group.clone(), by.clone());
        settled = transaction_under(lane, Extent::Statement, KEPT_PLANS, ANSWER_LIMIT, move |connection| {
            let (group, by) = (group.clone(), by.clone());
            Box::pin(async move { settle_as_asked(connection, &group, &by).await })
        })
        .await?;
    }
    let left: Arc<[_]> = left(&group, &settled).into_iter().cloned().collect();
    if !left.is_empty() {
        let others = transaction_under(lane, Extent::Statements, KEPT_PLANS, ANSWER_LIMIT, move |connection| {
            let (left, by) = (left.clone(), by.clone());
            Box::pin(async move { settle(connection, &left, &*by).await })
        });
        settled.extend(others.await?);
    }
    Ok(settled)
}

/// Settles within the caller's transaction. `by` goes to the audit log (`worker:<uuid>`, `service`).
pub async fn settle(
    connection: &mut PgConnection,
    group: &[Settlement],
    by: impl Into<By>,
) -> StoreResult<Vec<Settled>> {
    let by = &by.into();
    let mut settled = settle_as_asked(connection, group, by).await?;
    let left = left(group, &settled);
    if !left.is_empty() {
        settled.extend(settle_as_allowed(connection, &left, by).await?);
    }
    Ok(settled)
}

/// Those of a group that are not settled yet.
fn left<'g>(group: &'g [Settlement], settled: &[Settled]) -> Vec<&'g Settlement> {
    if settled.len() == group.len() {
        return Vec::new();
    }
    let settled: HashSet<_> = settled.iter().map(|one| one.key).collect();
    group.iter().filter(|one| !settled.contains(&one.key)).collect()
}

/// Settles what is completed of jobs that still run and are not late: they end as asked, by one statement, which finds what changed while
/// it waited for a job's lock. That is the way of almost every job.
async fn settle_as_asked(connection: &mut PgConnection, group: &[Settlement], by: &By) -> StoreResult<Vec<Settled>> {
    let mut completed: Vec<_> = group.iter().filter(|one| one.status == JobStatus::Completed).collect();
    // Locked in id order.
    completed.sort_by_key(|one| (one.key.id.uuid(), one.key.fence));
    completed.dedup_by_key(|one| one.key);
    let ended = end(connection, &completed, Which::Running, by).await?;
    completed.retain(|one| ended.contains(&one.key));
    audit::record_hits(connection, by, hits(&completed)).await?;
    let settled = |one: &&Settlement| Settled {
        key: one.key,
        status: one.status,
        cancel_latency: None,
    };
    Ok(completed.iter().map(settled).collect())
}

/// Settles whatever it is, as far and in the way that its job allows.
async fn settle_as_allowed(connection: &mut PgConnection, group: &[&Settlement], by: &By) -> StoreResult<Vec<Settled>> {
    let locked = lock(connection, group).await?;
    let waiting: HashSet<_> = locked
        .iter()
        .filter(|(_, job)| job.waits())
        .map(|(key, _)| *key)
        .collect();
    let verdicts = verdicts(locked, group);
    let (again, ended): (Vec<_>, Vec<_>) = verdicts.into_iter().partition(|(one, _)| one.again);
    let waited = ended.iter().filter(|(one, _)| waiting.contains(&one.key));
    let waited: Vec<_> = waited.map(|(one, _)| one.key.id.uuid()).collect();
    outbox::recall(connection, &waited).await?;
    end(connection, &endings(&ended), Which::Locked, by).await?;
    audit::record_hits(connection, by, hits(&endings(&ended))).await?;
    try_again(connection, &endings(&again), by).await?;
    let settled: Vec<_> = ended
        .into_iter()
        .chain(again)
        .map(|(Settlement { key, status, .. }, cancel_latency)| Settled {
            key,
            status,
            cancel_latency,
        })
        .collect();
    Ok(settled)
}

fn endings(verdicts: &[(Settlement, Option<Duration>)]) -> Vec<&Settlement> {
    verdicts.iter().map(|(ending, _)| ending).collect()
}

/// The rules of the content policy that the texts met, each with its job.
fn hits(ended: &[&Settlement]) -> Vec<(JobId, Hit)> {
    let of_one = |one: &Settlement| one.hits.iter().map(|hit| (one.key.id, hit.clone())).collect::<Vec<_>>();
    ended.iter().flat_map(|one| of_one(one)).collect()
}

/// Which jobs a statement may end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All of them: they are locked and may end so.
    Locked,
    /// Those that run, uncancelled and in time.
    Running,
}

/// Writes endings, and answers whose jobs ended.
async fn end(
    connection: &mut PgConnection,
    endings: &[&Settlement],
    which: Which,
    by: &By,
) -> StoreResult<HashSet<JobKey>> {
    if endings.is_empty() {
        return Ok(HashSet::new());
    }
    let (ids, fences) = columns(&column(endings, |ending| ending.key));
    let spent = |part: fn(&Spent) -> Option<Duration>| {
        let seconds = |ending: &Settlement| Some(part(&ending.measured.as_ref()?.spent)?.as_secs_f64());
        column(endings, |ending| seconds(ending))
    };
    let runtime = |word: fn(&Runtime) -> &str| column(endings, |ending| Some(word(&ending.measured.as_ref()?.runtime)));
    let rows = sqlx::query(concat!(
        "WITH ending AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::jsonb[], $5::int[], $6::jsonb[], $7::uuid[],
                     $8::float8[], $9::jsonb[], $10::float8[], $11::float8[], $12::float8[], $13::float8[], $14::float8[],
                     $15::text[], $16::text[], $17::text[])
                 AS ending (id, fence, status, choices, completion_tokens, error, event_id, started_ago, tokens,
                     began_ago, prefill, decode, device, padding, weights_sha256, dtype, build)
         ), settled AS (
             UPDATE jobs j SET status = e.status, error = e.error, completion_tokens = e.completion_tokens,
                 finished_at = now(), lease_expires_at = NULL,
                 started_at = coalesce(started_at, now() - make_interval(secs => e.started_ago)),
                 cancel_requested_at = CASE e.status WHEN 'cancelled' THEN coalesce(cancel_requested_at, now()) END,
                 erase_at = now() + coalesce(ttl, CASE WHEN NOT store THEN $18::interval END)
             FROM ending e WHERE j.id = ANY($1) AND j.id = e.id AND j.fence = e.fence
                 AND ($23 OR j.status = 'in_progress' AND (j.deadline_at <= now()) IS NOT TRUE)
             RETURNING j.*, e.choices, e.event_id, e.tokens, e.started_ago, e.began_ago, e.prefill, e.decode, e.device,
                 e.padding, e.weights_sha256, e.dtype, e.build
         ), ",
        events::starts!("settled", "j.started_at = now() - make_interval(secs => j.started_ago)"),
        ", output AS (
             INSERT INTO job_outputs (job_id, choices, tokens)
             SELECT id, choices, tokens FROM settled WHERE choices IS NOT NULL
         ), receipt AS (
             INSERT INTO receipts (job_id, tenant_id, project_id, user_id, api_key_id, model, model_revision, class, status,
                 prompt_tokens, completion_tokens, attempts, lapses, accepted_at, finished_at, queue_seconds,
                 prefill_seconds, decode_seconds, device_seconds, padding_seconds, weights_sha256, dtype, build)
             SELECT id, tenant_id, project_id, user_id, api_key_id, model, model_revision, class, status,
                 CASE WHEN choices IS NULL THEN 0 ELSE prompt_tokens END, completion_tokens, attempt, lapses,
                 created_at, finished_at,
                 greatest(0, date_part('epoch', now() - available_at) - coalesce(began_ago, 0)),
                 prefill, decode, device, padding, weights_sha256, dtype, build
             FROM settled
         ), ",
        budgets::settled!("$1"),
        ", audit AS (
             INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
             SELECT tenant_id, $19, $20, $21, $22, 'job.' || status, id FROM settled
         ), event AS (
             INSERT INTO events (id, project_id, type, job_id)
             SELECT event_id, project_id, 'job.' || status, id FROM settled
         ), dead_letter AS (
             INSERT INTO dead_letters (job_id, tenant_id, project_id, model, reason, attempts, lapses, worker_id, last_error)
             SELECT id, tenant_id, project_id, model,
                 CASE WHEN attempt >= max_attempts THEN 'attempts_exhausted' ELSE coalesce(error ->> 'code', 'unknown') END,
                 attempt, lapses, worker_id,
                 CASE WHEN error ->> 'code' = 'attempts_exhausted' THEN coalesce(last_error, error) ELSE error END
             FROM settled WHERE status = 'failed'
         ), ",
        notify::changed!("settled"),
        " SELECT id, fence FROM settled CROSS JOIN told",
    ))
    .bind(ids)
    .bind(fences)
    .bind(column(endings, |ending| ending.status.as_str()))
    .bind(column(endings, |ending| ending.choices.as_ref().map(Json)))
    .bind(column(endings, |ending| ending.completion_tokens.cast_signed()))
    .bind(column(endings, |ending| ending.error.as_ref().map(Json)))
    .bind(column(endings, |_| EventId::new().uuid()))
    .bind(column(endings, |ending| ending.started_ago()))
    .bind(column(endings, |ending| ending.tokens()))
    .bind(spent(|spent| Some(spent.began?.elapsed())))
    .bind(spent(|spent| Some(spent.prefill)))
    .bind(spent(|spent| Some(spent.decode)))
    .bind(spent(|spent| Some(spent.device)))
    .bind(spent(|spent| Some(spent.padding)))
    .bind(runtime(|runtime| &runtime.weights_sha256))
    .bind(runtime(|runtime| &runtime.dtype))
    .bind(runtime(|runtime| &runtime.build))
    .bind(UNFETCHED_KEPT)
    .bind(&by.actor)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .bind(which == Which::Locked)
    .fetch_all(connection)
    .await?;
    rows.iter().map(key).collect()
}

fn key(row: &PgRow) -> StoreResult<JobKey> {
    Ok(JobKey {
        id: Id::from_uuid(get(row, "id")?),
        fence: get(row, "fence")?,
    })
}

/// Sends locked jobs whose attempt failed back to the outbox, each after a pause that doubles with every attempt.
async fn try_again(connection: &mut PgConnection, failures: &[&Settlement], by: &By) -> StoreResult<()> {
    if failures.is_empty() {
        return Ok(());
    }
    let (ids, fences) = columns(&column(failures, |failure| failure.key));
    sqlx::query(concat!(
        // From a second to five minutes; the jitter keeps jobs that failed together from coming back together.
        "WITH failure AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[], $5::float8[])
                 AS failure (id, fence, error, started_ago)
         ), queued AS (
             UPDATE jobs j SET status = 'queued', last_error = f.error, worker_id = NULL, lease_expires_at = NULL,
                 available_at = now() + interval '1 second' * least(300, power(2, attempt - 1)) * (0.5 + random()),
                 started_at = coalesce(started_at, now() - make_interval(secs => f.started_ago)),
                 dispatches = 0
             FROM failure f WHERE j.id = f.id AND j.fence = f.fence
             RETURNING j.*, f.started_ago
         ), ",
        events::starts!("queued", "j.started_at = now() - make_interval(secs => j.started_ago)"),
        ", audit AS (
             INSERT INTO audit_log (tenant_id, actor, action, subject)
             SELECT tenant_id, $4, 'job.attempt_failed', id FROM queued
         ), ",
        notify::changed!("queued"),
        " INSERT INTO outbox (job_id, model, class, available_at, tenant_id, priority, deadline_at)
         SELECT id, model, class, available_at, tenant_id, priority, deadline_at FROM queued CROSS JOIN told",
    ))
    .bind(ids)
    .bind(fences)
    .bind(column(failures, |failure| failure.error.as_ref().map(Json)))
    .bind(&by.actor)
    .bind(column(failures, |failure| failure.started_ago()))
    .execute(connection)
    .await?;
    Ok(())
}

/// What decides how a locked job may end.
struct Locked {
    status: JobStatus,
    attempts_left: bool,
    late: bool,
    cancel_latency: Option<Duration>,
}

impl Locked {
    const fn waits(&self) -> bool {
        matches!(self.status, JobStatus::Scheduled | JobStatus::Queued)
    }
}

/// Locks the group's jobs, as far as their claims are the newest ones.
///
/// A statement of its own, before that which ends them: how a job may end is decided by what is found when it is locked. What changed
/// while [`settle_as_asked`] waited for its lock comes here too.
async fn lock(connection: &mut PgConnection, group: &[&Settlement]) -> StoreResult<HashMap<JobKey, Locked>> {
    let keys: Vec<_> = group.iter().map(|one| one.key).collect();
    let (ids, fences) = columns(&keys);
    let rows = sqlx::query(
        // A newer claim has a greater fence: a worker that lost its job finds no row here.
        "SELECT j.id, j.fence, j.status, j.attempt < j.max_attempts AS attempts_left,
             coalesce(j.deadline_at <= now(), false) AS late,
             extract(epoch FROM now() - j.cancel_requested_at)::float8 AS cancel_latency
         FROM jobs j JOIN unnest($1::uuid[], $2::bigint[]) AS ending (id, fence) USING (id, fence)
         WHERE j.id = ANY($1) ORDER BY j.id FOR UPDATE OF j",
    )
    .bind(ids)
    .bind(fences)
    .fetch_all(connection)
    .await?;
    // By key: a group may hold the ending of an old claim beside that of the newest one.
    rows.iter()
        .map(|row| {
            let latency: Option<f64> = get(row, "cancel_latency")?;
            let locked = Locked {
                status: parse(row, "status")?,
                attempts_left: get(row, "attempts_left")?,
                late: get(row, "late")?,
                cancel_latency: latency.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
            };
            Ok((key(row)?, locked))
        })
        .collect()
}

/// What becomes of each job of the group: those that are not in the answer stay as they are.
fn verdicts(mut locked: HashMap<JobKey, Locked>, group: &[&Settlement]) -> Vec<(Settlement, Option<Duration>)> {
    group
        .iter()
        .filter_map(|wanted| {
            // Taken out, so that a key that stands twice in a group settles once.
            let job = locked.remove(&wanted.key)?;
            Some((verdict(&job, wanted)?, job.cancel_latency))
        })
        .collect()
}

/// The ending that `wanted` means for a job as it stands, if the diagram has it.
fn verdict(job: &Locked, wanted: &Settlement) -> Option<Settlement> {
    let without_attempt =
        matches!(wanted.status, JobStatus::Cancelled | JobStatus::Expired) && wanted.choices.is_none();
    if job.waits() && !without_attempt {
        // The fence is still that of its last claim, whose worker was given up: what it brings comes from no attempt.
        return None;
    }
    let mut ending = wanted.clone();
    ending.again &= job.attempts_left && !job.late;
    if job.status == JobStatus::Cancelling {
        // Who was told `cancelling` is never told `completed` or `failed`.
        ending.status = JobStatus::Cancelled;
        ending.error = None;
        ending.again = false;
    } else if ending.again {
        ending.status = JobStatus::Queued;
    } else if job.late && wanted.status != JobStatus::Cancelled {
        // A result that comes too late is kept, and the job says that it came too late.
        ending.status = JobStatus::Expired;
        ending.error = Some(deadline_exceeded());
    }
    let ends = ending.status.is_terminal() || ending.again;
    (ends && job.status.transition(ending.status).is_ok()).then_some(ending)
}
