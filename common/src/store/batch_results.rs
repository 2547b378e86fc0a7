//! What a batch's lines came to, read page by page: in the order in which they ended, while it runs, and in that of their
//! numbers, for its files.

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::row::{get, json, unsigned};
use super::{StoreError, StoreResult};
use crate::domain::{BatchId, BatchItemId, Choice, Id, JobError, JobId, JobStatus, ModelRef, Usage};

/// What a line came to.
#[derive(Debug, Clone)]
pub struct BatchResult {
    /// The line's own id.
    pub id: BatchItemId,
    /// Its number in the input.
    pub line: u32,
    /// Its place in the order in which lines ended.
    pub seq: u32,
    /// The caller's name for it; unknown where the input was lost.
    pub custom_id: Option<String>,
    /// Its end.
    pub outcome: Outcome,
}

/// How a line ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With an output.
    Completed(Box<Output>),
    /// Its job ended without one.
    Ended(JobStatus, Option<JobError>),
    /// It came to no job.
    Refused(JobError),
    /// It had an output, which its owner has erased or the operator's retention has taken.
    Gone,
}

/// An output and what it cost.
#[derive(Debug, Clone)]
pub struct Output {
    /// The job.
    pub job: JobId,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// Which weights.
    pub model: ModelRef,
    /// What was generated.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: Usage,
}

macro_rules! results {
    ($tail:literal) => {
        concat!(
            "SELECT i.id, i.line, i.seq, i.custom_id, i.error AS refused, j.status, j.error, j.model, j.model_revision,
                 j.created_at, j.prompt_tokens, j.completion_tokens, o.choices
             FROM batch_items i LEFT JOIN jobs j ON j.id = i.id LEFT JOIN job_outputs o ON o.job_id = i.id
             WHERE i.batch_id = $1 AND ",
            $tail
        )
    };
}

/// The lines that ended after the `after`th, in that order; at most `limit`.
pub async fn ended_after(
    executor: impl PgExecutor<'_>,
    batch: BatchId,
    after: u32,
    limit: u32,
) -> StoreResult<Vec<BatchResult>> {
    let rows = sqlx::query(results!("i.seq > $2 ORDER BY i.seq LIMIT $3"))
        .bind(batch.uuid())
        .bind(after.cast_signed())
        .bind(i64::from(limit))
        .fetch_all(executor)
        .await?;
    rows.iter().map(result).collect()
}

/// The lines behind number `line`, in that order; at most `limit`. All have ended.
pub async fn behind_line(
    executor: impl PgExecutor<'_>,
    batch: BatchId,
    line: u32,
    limit: u32,
) -> StoreResult<Vec<BatchResult>> {
    let rows = sqlx::query(results!("i.line > $2 AND i.seq IS NOT NULL ORDER BY i.line LIMIT $3"))
        .bind(batch.uuid())
        .bind(line.cast_signed())
        .bind(i64::from(limit))
        .fetch_all(executor)
        .await?;
    rows.iter().map(result).collect()
}

/// The place of a line in the order in which lines ended, if it is one of the batch and has ended.
pub async fn place_of(executor: impl PgExecutor<'_>, batch: BatchId, item: BatchItemId) -> StoreResult<Option<u32>> {
    let place: Option<Option<i32>> = sqlx::query_scalar("SELECT seq FROM batch_items WHERE id = $1 AND batch_id = $2")
        .bind(item.uuid())
        .bind(batch.uuid())
        .fetch_optional(executor)
        .await?;
    Ok(place.flatten().map(i32::cast_unsigned))
}

fn result(row: &PgRow) -> StoreResult<BatchResult> {
    Ok(BatchResult {
        id: Id::from_uuid(get(row, "id")?),
        line: unsigned(row, "line")?,
        seq: unsigned(row, "seq")?,
        custom_id: get(row, "custom_id")?,
        outcome: outcome(row)?,
    })
}

fn outcome(row: &PgRow) -> StoreResult<Outcome> {
    if let Some(error) = json(row, "refused")? {
        return Ok(Outcome::Refused(error));
    }
    let Some(status) = get::<Option<&str>, _>(row, "status")? else {
        return Ok(Outcome::Gone);
    };
    let status: JobStatus = status.parse().map_err(StoreError::contradiction)?;
    if status != JobStatus::Completed {
        return Ok(Outcome::Ended(status, json(row, "error")?));
    }
    let Some(choices) = json(row, "choices")? else {
        return Ok(Outcome::Gone);
    };
    Ok(Outcome::Completed(Box::new(Output {
        job: Id::from_uuid(get(row, "id")?),
        created_at: get(row, "created_at")?,
        model: ModelRef {
            name: get(row, "model")?,
            revision: get(row, "model_revision")?,
        },
        choices,
        usage: Usage::new(unsigned(row, "prompt_tokens")?, unsigned(row, "completion_tokens")?),
    })))
}
