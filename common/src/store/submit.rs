//! Accepting a job: idempotency claim, job, input, outbox and audit rows in one transaction. Nothing is answered before
//! its commit and nothing published before it.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{PgConnection, Row};
use time::OffsetDateTime;

use super::jobs::{self, JobView};
use super::{Pool, StoreError, StoreResult, transaction};
use crate::domain::{Class, GenerationParams, JobId, JobStatus, ModelRef, ProjectId, Prompt, TenantId, UserId};

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
    /// Name and revision that the request's alias led to.
    pub model: ModelRef,
    /// Which queue.
    pub class: Class,
    /// The text or tokens.
    pub prompt: Prompt,
    /// How many tokens the prompt has by the model's tokenizer.
    pub prompt_tokens: u32,
    /// How to continue it; the seed is drawn already.
    pub params: GenerationParams,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not before this time; `None` is at once.
    pub scheduled_at: Option<OffsetDateTime>,
    /// When it must be done, how often it is tried, what is kept of it.
    pub options: JobOptions,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
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
        }
    }
}

/// The caller's promise that equal keys mean the same request.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The header's value.
    pub key: String,
    /// SHA-256 of the raw body.
    pub request_sha256: [u8; 32],
    /// How long the answer is kept.
    pub keep: Duration,
}

/// What became of a submit.
#[derive(Debug)]
pub enum Submitted {
    /// The job is recorded and will run.
    Accepted(Box<JobView>),
    /// The same request was accepted before: this was its answer.
    Replayed {
        /// The first answer's status.
        status: u16,
        /// The first answer's body.
        body: serde_json::Value,
        /// The job it spoke of.
        job_id: JobId,
    },
    /// The key was used with another body.
    KeyReused,
    /// The first request with this key is not committed yet.
    KeyInFlight,
}

/// Records a job. `answer` renders the stored job as the body that a repeated request will be shown.
pub async fn submit(
    pool: &Pool,
    job: NewJob,
    idempotency: Option<IdempotencyKey>,
    answer: impl Fn(&JobView) -> serde_json::Value + Send + Sync + 'static,
) -> StoreResult<Submitted> {
    let answer = std::sync::Arc::new(answer);
    transaction(pool, move |connection| {
        let (job, idempotency, answer) = (job.clone(), idempotency.clone(), answer.clone());
        Box::pin(async move {
            if let Some(key) = &idempotency
                && let Some(earlier) = claim_key(connection, job.user_id, key).await?
            {
                return Ok(earlier);
            }
            insert(connection, &job).await?;
            let view = jobs::get(&mut *connection, job.project_id, job.id)
                .await?
                .ok_or_else(|| StoreError::contradiction("a job vanished within its own transaction"))?;
            if let Some(key) = &idempotency {
                keep_answer(connection, &job, key, &answer(&view)).await?;
            }
            Ok(Submitted::Accepted(Box::new(view)))
        })
    })
    .await
}

/// `None`: the key is ours until the transaction ends.
async fn claim_key(
    connection: &mut PgConnection,
    user: UserId,
    key: &IdempotencyKey,
) -> StoreResult<Option<Submitted>> {
    // The lock tells "in flight" from "done": whoever holds it has not committed yet.
    let free: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("idempotency:{}:{}", user.uuid(), key.key))
        .fetch_one(&mut *connection)
        .await?;
    if !free {
        return Ok(Some(Submitted::KeyInFlight));
    }
    let row = sqlx::query(
        "SELECT request_sha256, response_status, response_body, job_id FROM idempotency_keys
         WHERE user_id = $1 AND key = $2 AND expires_at > now()",
    )
    .bind(user.uuid())
    .bind(&key.key)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<Vec<u8>, _>("request_sha256")? != key.request_sha256 {
        return Ok(Some(Submitted::KeyReused));
    }
    Ok(Some(Submitted::Replayed {
        status: row.try_get::<i16, _>("response_status")?.cast_unsigned(),
        body: row.try_get("response_body")?,
        job_id: JobId::from_uuid(row.try_get("job_id")?),
    }))
}

async fn keep_answer(
    connection: &mut PgConnection,
    job: &NewJob,
    key: &IdempotencyKey,
    body: &serde_json::Value,
) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO idempotency_keys (user_id, key, request_sha256, response_status, response_body, job_id, expires_at)
         VALUES ($1, $2, $3, 202, $4, $5, now() + $6::interval)
         ON CONFLICT (user_id, key) DO UPDATE SET request_sha256 = excluded.request_sha256, job_id = excluded.job_id,
             response_status = excluded.response_status, response_body = excluded.response_body,
             created_at = now(), expires_at = excluded.expires_at",
    )
    .bind(job.user_id.uuid())
    .bind(&key.key)
    .bind(&key.request_sha256[..])
    .bind(body)
    .bind(job.id.uuid())
    .bind(key.keep)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert(connection: &mut PgConnection, job: &NewJob) -> StoreResult<()> {
    let status = if job.scheduled_at.is_some() {
        JobStatus::Scheduled
    } else {
        JobStatus::Queued
    };
    sqlx::query(
        "WITH job AS (
             INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                               available_at, priority, deadline_at, start_by, max_attempts, store, ttl)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce($10, now()), $15, $16, $17, $18, $19, $20)
         ), input AS (
             INSERT INTO job_inputs (job_id, prompt, parameters, metadata) VALUES ($1, $11, $12, $13)
         ), message AS (
             -- A scheduled job gets its message when its time has come.
             INSERT INTO outbox (job_id, model, class, traceparent, tenant_id, priority, deadline_at)
             SELECT $1, $5, $7, $14, $2, $15, $16 WHERE $8 = 'queued'
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject) VALUES ($2, 'user:' || $4::uuid, 'job.submitted', $1)",
    )
    .bind(job.id.uuid())
    .bind(job.tenant_id.uuid())
    .bind(job.project_id.uuid())
    .bind(job.user_id.uuid())
    .bind(&job.model.name)
    .bind(&job.model.revision)
    .bind(job.class.as_str())
    .bind(status.as_str())
    .bind(job.prompt_tokens.cast_signed())
    .bind(job.scheduled_at)
    .bind(sqlx::types::Json(&job.prompt))
    .bind(sqlx::types::Json(&job.params))
    .bind(job.metadata.as_ref().map(sqlx::types::Json))
    .bind(&job.traceparent)
    .bind(job.options.priority)
    .bind(job.options.deadline_at)
    .bind(job.options.start_by)
    .bind(job.options.max_attempts.cast_signed())
    .bind(job.options.store)
    .bind(job.options.ttl)
    .execute(connection)
    .await?;
    Ok(())
}
