//! What ended jobs cost: one receipt each, and their sums.
//!
//! Receipts are written by [`super::settle`] and read here. They outlive their jobs, and never change.

use sqlx::postgres::PgRow;
use sqlx::{PgExecutor, PgPool};
use time::{Date, OffsetDateTime};

use super::StoreResult;
use super::row::{get, json, parse, unsigned};
use crate::domain::{ApiKeyId, Class, GenerationParams, Id, JobId, JobStatus, ModelRef, ProjectId, Runtime, Usage};

/// What one ended job cost, and on what it ran.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The job.
    pub job_id: JobId,
    /// How it ended.
    pub status: JobStatus,
    /// Which weights it asked for.
    pub model: ModelRef,
    /// Which queue.
    pub class: Class,
    /// The API key that it came by.
    pub api_key_id: Option<ApiKeyId>,
    /// How it was generated; `None` once it is erased.
    pub params: Option<GenerationParams>,
    /// Tokens read and written; none where there is no output.
    pub usage: Usage,
    /// How often it was claimed.
    pub attempts: u32,
    /// Leases of it that ran out.
    pub lapses: u32,
    /// When it was accepted.
    pub accepted_at: OffsetDateTime,
    /// When it ended.
    pub finished_at: OffsetDateTime,
    /// Seconds from the time at which the last attempt could have run to its first prefill.
    pub queue_seconds: f64,
    /// What the attempt that ended it took; `None` if none did.
    pub attempt: Option<Attempt>,
}

/// What an attempt took, in seconds, and on what it ran.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// From its first prefill to its first token.
    pub prefill: f64,
    /// From its first token to its last.
    pub decode: f64,
    /// Its share of the device's time.
    pub device: f64,
    /// The part of that share which went into padding.
    pub padding: f64,
    /// Weights and build.
    pub runtime: Runtime,
}

impl Attempt {
    /// The part of the device's time that went into padding: 0 to 1.
    pub fn padding_share(&self) -> f64 {
        if self.device > 0.0 {
            self.padding / self.device
        } else {
            0.0
        }
    }
}

/// What there is of a receipt.
#[derive(Debug)]
pub enum Found {
    /// The receipt.
    Receipt(Box<Receipt>),
    /// The job has not ended.
    Running,
    /// The job ended before receipts were kept.
    Missing,
    /// The project has no such job.
    Unknown,
}

/// The receipt of a project's job, also of one that is no longer kept.
pub async fn find(pool: &PgPool, project: ProjectId, id: JobId) -> StoreResult<Found> {
    let row = sqlx::query(
        "SELECT r.*, i.parameters FROM receipts r LEFT JOIN job_inputs i ON i.job_id = r.job_id
         WHERE r.job_id = $1 AND r.project_id = $2",
    )
    .bind(id.uuid())
    .bind(project.uuid())
    .fetch_optional(pool)
    .await?;
    if let Some(row) = row {
        return Ok(Found::Receipt(Box::new(receipt(&row)?)));
    }
    let ended: Option<bool> =
        sqlx::query_scalar("SELECT finished_at IS NOT NULL FROM jobs WHERE id = $1 AND project_id = $2")
            .bind(id.uuid())
            .bind(project.uuid())
            .fetch_optional(pool)
            .await?;
    Ok(match ended {
        None => Found::Unknown,
        Some(false) => Found::Running,
        Some(true) => Found::Missing,
    })
}

fn receipt(row: &PgRow) -> StoreResult<Receipt> {
    Ok(Receipt {
        job_id: Id::from_uuid(get(row, "job_id")?),
        status: parse(row, "status")?,
        model: ModelRef {
            name: get(row, "model")?,
            revision: get(row, "model_revision")?,
        },
        class: parse(row, "class")?,
        api_key_id: get::<Option<_>, _>(row, "api_key_id")?.map(Id::from_uuid),
        params: json(row, "parameters")?,
        usage: Usage::new(unsigned(row, "prompt_tokens")?, unsigned(row, "completion_tokens")?),
        attempts: unsigned(row, "attempts")?,
        lapses: unsigned(row, "lapses")?,
        accepted_at: get(row, "accepted_at")?,
        finished_at: get(row, "finished_at")?,
        queue_seconds: get(row, "queue_seconds")?,
        attempt: attempt(row)?,
    })
}

fn attempt(row: &PgRow) -> StoreResult<Option<Attempt>> {
    let Some(device) = get(row, "device_seconds")? else {
        return Ok(None);
    };
    Ok(Some(Attempt {
        prefill: get(row, "prefill_seconds")?,
        decode: get(row, "decode_seconds")?,
        device,
        padding: get(row, "padding_seconds")?,
        runtime: Runtime {
            weights_sha256: get(row, "weights_sha256")?,
            dtype: get(row, "dtype")?,
            build: get(row, "build")?,
        },
    }))
}

/// Which receipts are added up.
#[derive(Debug, Clone)]
pub struct UsageFilter {
    /// Of jobs that ended on this day (UTC) or later.
    pub from: Date,
    /// Of jobs that ended on this day (UTC) or earlier.
    pub to: Date,
    /// Of this model alone.
    pub model: Option<String>,
    /// Of this API key alone.
    pub api_key_id: Option<ApiKeyId>,
}

/// The receipts of one day, one API key and one model, added up.
#[derive(Debug, Clone)]
pub struct DayUsage {
    /// The day (UTC) on which the jobs ended.
    pub day: Date,
    /// `None`: with access tokens.
    pub api_key_id: Option<ApiKeyId>,
    /// The model's name.
    pub model: String,
    /// How many jobs ended.
    pub jobs: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Their shares of the device's time.
    pub device_seconds: f64,
}

/// A project's usage, by day, API key and model. Reads the receipts of those days.
pub async fn usage(
    executor: impl PgExecutor<'_>,
    project: ProjectId,
    filter: &UsageFilter,
) -> StoreResult<Vec<DayUsage>> {
    let rows = sqlx::query(
        "SELECT (finished_at AT TIME ZONE 'UTC')::date AS day, api_key_id, model, count(*) AS jobs,
             sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
             coalesce(sum(device_seconds), 0)::float8 AS device_seconds
         FROM receipts
         WHERE project_id = $1 AND finished_at >= $2 AND finished_at < $3
             AND ($4::text IS NULL OR model = $4) AND ($5::uuid IS NULL OR api_key_id = $5)
         GROUP BY 1, 2, 3 ORDER BY 1, 2 NULLS FIRST, 3",
    )
    .bind(project.uuid())
    .bind(filter.from.midnight().assume_utc())
    .bind(filter.to.midnight().assume_utc() + time::Duration::DAY)
    .bind(filter.model.as_deref())
    .bind(filter.api_key_id.map(Id::uuid))
    .fetch_all(executor)
    .await?;
    let count = |row: &PgRow, column| StoreResult::Ok(get::<i64, _>(row, column)?.cast_unsigned());
    rows.iter()
        .map(|row| {
            Ok(DayUsage {
                day: get(row, "day")?,
                api_key_id: get::<Option<_>, _>(row, "api_key_id")?.map(Id::from_uuid),
                model: get(row, "model")?,
                jobs: count(row, "jobs")?,
                prompt_tokens: count(row, "prompt_tokens")?,
                completion_tokens: count(row, "completion_tokens")?,
                device_seconds: get(row, "device_seconds")?,
            })
        })
        .collect()
}
