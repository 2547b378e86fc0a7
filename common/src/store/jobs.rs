//! Reading jobs as their owner sees them, and asking one to stop.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::row::{get as column, json, parse, present, unsigned};
use super::settle::{self, Settlement};
use super::{Pool, StoreResult, notify, transaction};
use crate::domain::{
    Choice, Class, GenerationParams, Id, JobError, JobId, JobKey, JobStatus, ModelRef, ProjectId, Prompt, Usage,
};

/// A job with everything its owner may see.
#[derive(Debug, Clone)]
pub struct JobView {
    /// The job and its newest claim.
    pub key: JobKey,
    /// Where it stands.
    pub status: JobStatus,
    /// Which weights.
    pub model: ModelRef,
    /// Which queue.
    pub class: Class,
    /// How often it was claimed.
    pub attempt: u32,
    /// How often it may be claimed.
    pub max_attempts: u32,
    /// What was sent; `None` once it is erased.
    pub input: Option<JobInput>,
    /// What came of it; also the part that a cancelled job had generated.
    pub choices: Option<Vec<Choice>>,
    /// Prompt tokens, and what was generated so far as it was settled.
    pub usage: Usage,
    /// Why it failed.
    pub error: Option<JobError>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// It is not run before this time.
    pub available_at: OffsetDateTime,
    /// When its first prefill began.
    pub started_at: Option<OffsetDateTime>,
    /// When a caller asked to stop it.
    pub cancel_requested_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// What the caller sent.
#[derive(Debug, Clone)]
pub struct JobInput {
    /// The text or tokens.
    pub prompt: Prompt,
    /// How to continue it.
    pub params: GenerationParams,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Which jobs of a project a list shows.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub status: Option<JobStatus>,
    /// Only jobs of this model name.
    pub model: Option<String>,
}

/// Which part of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only jobs older than this one.
    pub after: Option<JobId>,
    /// At most this many.
    pub limit: u32,
}

const VIEW: &str = "SELECT j.*, i.prompt, i.parameters, i.metadata, o.choices
     FROM jobs j LEFT JOIN job_inputs i ON i.job_id = j.id LEFT JOIN job_outputs o ON o.job_id = j.id ";

/// One job of a project. A foreign job does not exist.
pub async fn get(executor: impl PgExecutor<'_>, project: ProjectId, id: JobId) -> StoreResult<Option<JobView>> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{VIEW} WHERE j.id = $1 AND j.project_id = $2"
    )))
    .bind(id.uuid())
    .bind(project.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(view).transpose()
}

/// A page of a project's jobs, newest first. Each filter walks its own index, whatever the project's size.
pub async fn list(
    executor: impl PgExecutor<'_>,
    project: ProjectId,
    filter: &JobFilter,
    page: Page,
) -> StoreResult<Vec<JobView>> {
    // Conditions are written out only where they apply: the planner then sees the index that fits.
    let status = if filter.status.is_some() {
        "AND j.status = $2"
    } else {
        "AND $2::text IS NULL"
    };
    let model = if filter.model.is_some() {
        "AND j.model = $3"
    } else {
        "AND $3::text IS NULL"
    };
    let after = if page.after.is_some() {
        "AND j.id < $4"
    } else {
        "AND $4::uuid IS NULL"
    };
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{VIEW} WHERE j.project_id = $1 {status} {model} {after} ORDER BY j.id DESC LIMIT $5"
    )))
    .bind(project.uuid())
    .bind(filter.status.map(JobStatus::as_str))
    .bind(filter.model.as_deref())
    .bind(page.after.map(Id::uuid))
    .bind(i64::from(page.limit))
    .fetch_all(executor)
    .await?;
    rows.iter().map(view).collect()
}

/// Asks a job to stop: a waiting one ends at once, a running one becomes `cancelling`, an ended one stays as it is.
///
/// Answers the job as it is then, or `None` if the project has no such job.
pub async fn request_cancel(pool: &Pool, project: ProjectId, id: JobId) -> StoreResult<Option<JobView>> {
    transaction(pool, move |connection| Box::pin(cancel(connection, project, id))).await
}

async fn cancel(connection: &mut PgConnection, project: ProjectId, id: JobId) -> StoreResult<Option<JobView>> {
    let row = sqlx::query("SELECT status, fence FROM jobs WHERE id = $1 AND project_id = $2 FOR UPDATE")
        .bind(id.uuid())
        .bind(project.uuid())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let status: JobStatus = parse(&row, "status")?;
    if status.transition(JobStatus::Cancelled).is_ok() && status != JobStatus::Cancelling {
        let key = JobKey {
            id,
            fence: column(&row, "fence")?,
        };
        settle::settle(connection, &[Settlement::cancelled(key)], "service").await?;
    } else if status.transition(JobStatus::Cancelling).is_ok() {
        sqlx::query("UPDATE jobs SET status = 'cancelling', cancel_requested_at = now() WHERE id = $1")
            .bind(id.uuid())
            .execute(&mut *connection)
            .await?;
        notify::jobs_changed(connection, &[id]).await?;
    }
    get(connection, project, id).await
}

fn view(row: &PgRow) -> StoreResult<JobView> {
    let input = json(row, "prompt")?
        .map(|prompt| {
            let params = present(json(row, "parameters")?, "parameters")?;
            StoreResult::Ok(JobInput {
                prompt,
                params,
                metadata: json(row, "metadata")?,
            })
        })
        .transpose()?;
    Ok(JobView {
        key: JobKey {
            id: Id::from_uuid(column(row, "id")?),
            fence: column(row, "fence")?,
        },
        status: parse(row, "status")?,
        model: ModelRef {
            name: column(row, "model")?,
            revision: column(row, "model_revision")?,
        },
        class: parse(row, "class")?,
        attempt: unsigned(row, "attempt")?,
        max_attempts: unsigned(row, "max_attempts")?,
        input,
        choices: json(row, "choices")?,
        usage: Usage::new(unsigned(row, "prompt_tokens")?, unsigned(row, "completion_tokens")?),
        error: json(row, "error")?,
        created_at: column(row, "created_at")?,
        available_at: column(row, "available_at")?,
        started_at: column(row, "started_at")?,
        cancel_requested_at: column(row, "cancel_requested_at")?,
        finished_at: column(row, "finished_at")?,
    })
}
