//! Accepting a job: idempotency claim, job, input, reservations, outbox and audit rows in one transaction. Nothing is answered before
//! its commit and nothing published before it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::audit::{self, By, Origin};
use super::idempotency::{self, Before, Claim, Render};
use super::jobs::{self, JobInput, JobView};
use super::pool::{ANSWER_LIMIT, Extent, KEPT_PLANS, Settings, kept_plans, transaction_under};
use super::quota::{After, Asked, Refusal};
use super::row::{column, get};
use super::webhooks::endpoints::{JobWebhook, attach};
use super::{Lane, StoreError, StoreResult, attend, budgets, quota};
use crate::domain::{
    ApiKeyId, BudgetStanding, Class, Encoded, GenerationParams, JobId, JobKey, JobStatus, ModelRef, Price, ProjectId,
    Prompt, TenantId, Tokens, Usage, UserId,
};
use crate::policy::Hit;

/// A job that passed every check of the API.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Drawn by the caller, so that it can be logged before the commit.
    pub id: JobId,
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
    /// Who asks.
    pub user_id: UserId,
    /// The API key that the request showed, if it was one.
    pub api_key_id: Option<ApiKeyId>,
    /// Name and revision that the request's alias led to.
    pub model: ModelRef,
    /// The alias that the request named, if it named one.
    pub requested_model: Option<String>,
    /// Which queue.
    pub class: Class,
    /// The text or tokens.
    pub prompt: Prompt,
    /// How many tokens the prompt has by the model's tokenizer.
    pub prompt_tokens: u32,
    /// The tokens of a text, for the worker; without them it encodes the text itself.
    pub encoded: Option<Encoded>,
    /// How to continue it; the seed is drawn already.
    pub params: GenerationParams,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not before this time; `None` is at once.
    pub scheduled_at: Option<OffsetDateTime>,
    /// When it must be done, how often it is tried, what is kept of it.
    pub options: JobOptions,
    /// Most jobs of the tenant that may wait, unless it has a limit of its own.
    pub queue_limit: Option<u32>,
    /// What its tokens cost.
    pub price: Price,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Where its events go, besides the project's endpoints.
    pub webhook: Option<JobWebhook>,
    /// How the user came, for the audit log.
    pub origin: Origin,
    /// The rules of the content policy that its prompt met.
    pub hits: Vec<Hit>,
}

/// What a caller may say of a job besides what to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobOptions {
    /// Greater goes first among the jobs of a class and tenant.
    pub priority: i16,
    /// It expires unless it is finished by then.
    pub deadline_at: Option<OffsetDateTime>,
    /// It expires unless an attempt has begun by then.
    pub start_by: Option<OffsetDateTime>,
    /// How often it may be claimed, at least once.
    pub max_attempts: u32,
    /// `false`: prompt and output go some minutes after the output was first fetched.
    pub store: bool,
    /// Prompt and output go this long after the job's end.
    pub ttl: Option<Duration>,
    /// Somebody waits at an open connection and has said so for this long: unless that is renewed, the job is cancelled.
    pub attended: Option<Duration>,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            priority: 0,
            deadline_at: None,
            start_by: None,
            max_attempts: 5,
            store: true,
            ttl: None,
            attended: None,
        }
    }
}

/// A job to be recorded, and how the request is known when it comes again.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The job.
    pub job: NewJob,
    /// `None`: each such request is a job of its own.
    pub claim: Option<Claim>,
}

/// What became of a submit.
#[derive(Debug)]
pub enum Submitted {
    /// The job is recorded and will run. Of the budgets with a limit of tokens, the one with the fewest left.
    Accepted(Box<JobView>, Option<BudgetStanding>),
    /// The same request was accepted before: this is its job now.
    Found(Box<JobView>),
    /// The request came before, and there is no job to show for it.
    Before(Before),
    /// There is no room for it.
    Refused(Refusal),
}

impl From<Before> for Submitted {
    fn from(before: Before) -> Self {
        Self::Before(before)
    }
}

/// How long a group may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It gives up soon, so that whatever holds one job up does not hold the others ([`StoreError::is_out_of_time`]).
    Short,
    /// As long as any statement may take.
    Full,
}

impl Patience {
    const fn settings(self) -> Settings {
        match self {
            Self::Short => kept_plans!("lock_timeout = '200ms'", "statement_timeout = '2s'"),
            Self::Full => KEPT_PLANS,
        }
    }

    const fn limit(self) -> Duration {
        match self {
            Self::Short => Duration::from_secs(5),
            Self::Full => ANSWER_LIMIT,
        }
    }
}

/// Records a job in a transaction of its own. `render` makes the answer that a repeated request will be shown.
pub async fn submit(
    lane: impl Into<Lane>,
    job: NewJob,
    claim: Option<Claim>,
    render: Render,
) -> StoreResult<Submitted> {
    let group = submit_group(lane, [Submission { job, claim }].into(), Patience::Full, render);
    let only = group.await?.pop();
    only.ok_or_else(|| StoreError::contradiction("a submit without an outcome"))
}

/// Records jobs in one transaction, and answers for each in its place. An error means that none is recorded, or, when
/// the connection was lost, that nobody knows: submitting the same job again, alone, then answers
/// as if it were the first time.
pub async fn submit_group(
    lane: impl Into<Lane>,
    group: Arc<[Submission]>,
    patience: Patience,
    render: Render,
) -> StoreResult<Vec<Submitted>> {
    let (lane, jobs) = (&lane.into(), group.clone());
    match (submit_as(lane, group, patience, render).await, &*jobs) {
        // Its id was drawn for this one submit: it is there from an earlier try whose answer was lost.
        (Err(StoreError::Conflict { constraint }), [Submission { job, .. }]) if constraint == "jobs_pkey" => {
            let view = jobs::get(lane.pool(), job.project_id, job.id).await?;
            let view = view.ok_or_else(|| StoreError::contradiction("a job's id is taken in another project"))?;
            Ok(vec![Submitted::Accepted(Box::new(view), None)])
        }
        (outcome, _) => outcome,
    }
}

async fn submit_as(
    lane: &Lane,
    group: Arc<[Submission]>,
    patience: Patience,
    render: Render,
) -> StoreResult<Vec<Submitted>> {
    if group.iter().all(Submission::is_plain) {
        let group = group.clone();
        let submitted = transaction_under(
            lane,
            Extent::Statement,
            patience.settings(),
            patience.limit(),
            move |connection| {
                let group = group.clone();
                Box::pin(async move { submit_unlimited(connection, &group).await })
            },
        );
        if let Some(submitted) = submitted.await? {
            return Ok(submitted);
        }
    }
    transaction_under(
        lane,
        Extent::Statements,
        patience.settings(),
        patience.limit(),
        move |connection| {
            let group = group.clone();
            Box::pin(async move { submit_all(connection, &group, render).await })
        },
    )
    .await
}

/// Records plain jobs by one statement, unless one of them counts against a limit or a budget: then none.
async fn submit_unlimited(connection: &mut PgConnection, group: &[Submission]) -> StoreResult<Option<Vec<Submitted>>> {
    let jobs: Vec<_> = group.iter().map(|submission| &submission.job).collect();
    let mut views = insert(connection, &jobs, Room::IfUnlimited).await?;
    let accepted = |job: &&NewJob| Some(Submitted::Accepted(Box::new(views.remove(&job.id)?), None));
    Ok(jobs.iter().map(accepted).collect())
}

/// Records jobs within the caller's transaction, and answers for each in its place. Claims are taken first, then rows
/// are written for what is new: whatever may refuse a single job belongs between the two.
async fn submit_all(
    connection: &mut PgConnection,
    submissions: &[Submission],
    render: Render,
) -> StoreResult<Vec<Submitted>> {
    let mut outcomes = idempotency::take(connection, submissions).await?;
    let unknown: Vec<usize> = (0..submissions.len())
        .filter(|&place| outcomes[place].is_none())
        .collect();
    let asked: Vec<_> = unknown.iter().map(|&place| submissions[place].job.asked()).collect();
    let decision = quota::decide(connection, &asked, After::GoOn).await?;
    let (mut new, mut standings) = (Vec::with_capacity(unknown.len()), Vec::new());
    for (place, verdict) in unknown.into_iter().zip(decision.verdicts) {
        match verdict {
            Err(refusal) => outcomes[place] = Some(Submitted::Refused(refusal)),
            Ok(standing) => {
                new.push(place);
                standings.push(standing);
            }
        }
    }
    let jobs: Vec<&NewJob> = new.iter().map(|&place| &submissions[place].job).collect();
    if !jobs.is_empty() {
        budgets::reserve(connection, &decision.reserved).await?;
        let mut views = insert(connection, &jobs, Room::Given).await?;
        let hooks: Vec<_> = jobs
            .iter()
            .filter_map(|job| Some((job.id, job.webhook.as_ref()?)))
            .collect();
        attach(connection, &hooks).await?;
        for job in jobs.iter().filter(|job| !job.hits.is_empty()) {
            let by = By {
                origin: job.origin.clone(),
                ..By::from(job.user_id)
            };
            let hits = job.hits.iter().map(|hit| (job.id, hit.clone())).collect();
            audit::record_hits(connection, &by, hits).await?;
        }
        let made: Vec<(&Submission, &JobView)> = new
            .iter()
            .filter_map(|&place| Some((&submissions[place], views.get(&submissions[place].job.id)?)))
            .collect();
        idempotency::keep(connection, &made, render).await?;
        let attended = jobs.iter().filter_map(|job| Some((job.id, job.options.attended?)));
        attend::begin(connection, &attended.collect::<Vec<_>>()).await?;
        for (place, standing) in new.into_iter().zip(standings) {
            let view = views.remove(&submissions[place].job.id).map(Box::new);
            outcomes[place] = view.map(|view| Submitted::Accepted(view, standing));
        }
    }
    let all: Option<Vec<_>> = outcomes.into_iter().collect();
    all.ok_or_else(|| StoreError::contradiction("a job vanished within its own transaction"))
}

/// Whether jobs may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// They may: it was decided in this transaction.
    Given,
    /// Only if none of them counts against a limit or a budget.
    IfUnlimited,
}

/// Writes the rows of all jobs, or of none, in one statement; answers them as [`jobs::get`] would.
pub(super) async fn insert(
    connection: &mut PgConnection,
    jobs: &[&NewJob],
    room: Room,
) -> StoreResult<HashMap<JobId, JobView>> {
    let limited = match room {
        Room::Given => Vec::new(),
        Room::IfUnlimited => quota::holders(jobs.iter().map(|job| job.asked())),
    };
    let rows = sqlx::query(concat!(
        "WITH new AS MATERIALIZED (
             SELECT *, coalesce(scheduled_at, now()) AS available_at
             FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                 $8::text[], $9::integer[], $10::timestamptz[], $11::jsonb[], $12::jsonb[], $13::jsonb[], $14::text[],
                 $15::smallint[], $16::timestamptz[], $17::timestamptz[], $18::integer[], $19::boolean[], $20::interval[],
                 $21::uuid[], $22::text[], $23::text[], $24::text[], $25::text[], $26::bytea[])
             AS new (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                 scheduled_at, prompt, parameters, metadata, traceparent, priority, deadline_at, start_by, max_attempts,
                 store, ttl, api_key_id, credential, address, request_id, requested_model, encoded)
             WHERE NOT ",
        quota::is_limited!("$27"),
        "
         ), job AS (
             INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                               available_at, priority, deadline_at, start_by, max_attempts, store, ttl, api_key_id,
                               requested_model)
             SELECT id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                 available_at, priority, deadline_at, start_by, max_attempts, store, ttl, api_key_id, requested_model FROM new
         ), input AS (
             INSERT INTO job_inputs (job_id, prompt, parameters, metadata, encoded)
             SELECT id, prompt, parameters, metadata, encoded FROM new
         ), message AS (
             -- A scheduled job gets its message when its time has come.
             INSERT INTO outbox (job_id, model, class, traceparent, tenant_id, priority, deadline_at)
             SELECT id, model, class, traceparent, tenant_id, priority, deadline_at FROM new WHERE status = 'queued'
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
             SELECT tenant_id, 'user:' || user_id, credential, address, request_id, 'job.submitted', id FROM new
         )
         SELECT id, now() AS created_at, available_at, ",
        jobs::waiting_reason!(),
        " FROM new j"
    ))
    .bind(column(jobs, |job| job.id.uuid()))
    .bind(column(jobs, |job| job.tenant_id.uuid()))
    .bind(column(jobs, |job| job.project_id.uuid()))
    .bind(column(jobs, |job| job.user_id.uuid()))
    .bind(column(jobs, |job| job.model.name.as_str()))
    .bind(column(jobs, |job| job.model.revision.as_str()))
    .bind(column(jobs, |job| job.class.as_str()))
    .bind(column(jobs, |job| job.status().as_str()))
    .bind(column(jobs, |job| job.prompt_tokens.cast_signed()))
    .bind(column(jobs, |job| job.scheduled_at))
    .bind(column(jobs, |job| Json(&job.prompt)))
    .bind(column(jobs, |job| Json(&job.params)))
    .bind(column(jobs, |job| job.metadata.as_ref().map(Json)))
    .bind(column(jobs, |job| job.traceparent.as_deref()))
    .bind(column(jobs, |job| job.options.priority))
    .bind(column(jobs, |job| job.options.deadline_at))
    .bind(column(jobs, |job| job.options.start_by))
    .bind(column(jobs, |job| job.options.max_attempts.cast_signed()))
    .bind(column(jobs, |job| job.options.store))
    .bind(column(jobs, |job| job.options.ttl.map(interval)))
    .bind(column(jobs, |job| job.api_key_id.map(ApiKeyId::uuid)))
    .bind(column(jobs, |job| job.origin.credential.as_deref()))
    .bind(column(jobs, |job| job.origin.address.map(|address| address.to_string())))
    .bind(column(jobs, |job| job.origin.request_id.as_deref()))
    .bind(column(jobs, |job| job.requested_model.as_deref()))
    .bind(column(jobs, |job| job.encoded.as_ref().map(Encoded::to_bytes)))
    .bind(limited)
    .fetch_all(connection)
    .await?;
    let by_id: HashMap<JobId, &PgRow> = rows
        .iter()
        .map(|row| Ok((JobId::from_uuid(get(row, "id")?), row)))
        .collect::<StoreResult<_>>()?;
    jobs.iter()
        .filter_map(|job| Some((job, by_id.get(&job.id)?)))
        .map(|(job, row)| Ok((job.id, accepted(job, row)?)))
        .collect()
}

/// A job as it is when it was just written.
fn accepted(job: &NewJob, row: &PgRow) -> StoreResult<JobView> {
    Ok(JobView {
        key: JobKey { id: job.id, fence: 0 },
        status: job.status(),
        model: job.model.clone(),
        requested_model: job.requested_model.clone(),
        class: job.class,
        attempt: 0,
        input: Some(JobInput {
            prompt: job.prompt.clone(),
            params: job.params.clone(),
            metadata: job.metadata.clone(),
        }),
        choices: None,
        usage: Usage::new(job.prompt_tokens, 0),
        error: None,
        last_error: None,
        waiting: jobs::waiting(row)?,
        retry_of: None,
        replay_of: None,
        options: job.options.clone(),
        erased_at: None,
        created_at: get(row, "created_at")?,
        available_at: get(row, "available_at")?,
        started_at: None,
        cancel_requested_at: None,
        finished_at: None,
    })
}

impl Submission {
    /// Whether there is nothing to be written for it but the job.
    const fn is_plain(&self) -> bool {
        let NewJob {
            webhook,
            hits,
            options,
            queue_limit,
            ..
        } = &self.job;
        self.claim.is_none()
            && webhook.is_none()
            && hits.is_empty()
            && options.attended.is_none()
            && queue_limit.is_none()
    }
}

impl NewJob {
    /// What it asks room for.
    pub(super) fn asked(&self) -> Asked {
        Asked {
            job: self.id,
            tenant: self.tenant_id,
            project: self.project_id,
            key: self.api_key_id,
            queue_limit: self.queue_limit,
            tokens: self.most_tokens(),
            price: self.price,
        }
    }

    /// The most tokens that it may use.
    pub fn most_tokens(&self) -> Tokens {
        Tokens {
            prompt: self.prompt_tokens.into(),
            completion: u64::from(self.params.max_tokens) * u64::from(self.params.n),
        }
    }

    const fn status(&self) -> JobStatus {
        if self.scheduled_at.is_some() {
            JobStatus::Scheduled
        } else {
            JobStatus::Queued
        }
    }
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}
