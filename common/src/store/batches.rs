//! Batches as their owner sees and steers them. The work itself is in [`super::batch_work`].

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::audit::{self, By, Entry};
use super::batch_window::{self, Feasibility, Forecast};
use super::idempotency::{Answer, Claim};
use super::once::{Once, once};
use super::row::{get as column, json, parse, unsigned};
use super::{Pool, StoreError, StoreResult, transaction};
use crate::domain::{
    ApiKeyId, BatchId, BatchStatus, CompletionWindow, FileId, Id, LineProblem, ProjectId, TenantId, UserId,
};

/// The states of a batch that has not ended, as SQL.
macro_rules! unfinished {
    () => {
        "('validating', 'in_progress', 'finalizing', 'cancelling')"
    };
}
pub(super) use unfinished;

/// For so long after a request its retry by a client library may find the batch.
const RETRY_WITHIN: Duration = Duration::from_mins(1);

/// A batch that passed the checks of the API.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Drawn by the caller.
    pub id: BatchId,
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
    /// Who asks.
    pub user_id: UserId,
    /// The same for the audit log.
    pub by: By,
    /// With which key.
    pub api_key_id: Option<ApiKeyId>,
    /// What every line is for (`/v1/completions`).
    pub endpoint: String,
    /// Where its lines stand.
    pub source: Source,
    /// How long it may take.
    pub window: CompletionWindow,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Its output files go by themselves after this time.
    pub output_ttl: Option<Duration>,
    /// SHA-256 of the request.
    pub request_sha256: [u8; 32],
    /// How often a client library has sent the request before, if it counts.
    pub sdk_retry: Option<u32>,
    /// Most lines that a batch may have.
    pub lines_max: u32,
}

/// Where a batch's lines stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In an uploaded file.
    File(FileId),
    /// In the file of an ended batch: those that failed there.
    FailedOf(BatchId),
}

/// What became of a wish to make a batch.
#[derive(Debug)]
pub enum Created {
    /// It is recorded and will be done.
    Accepted(Box<BatchView>),
    /// The same request came before: this is its batch now.
    Found(Box<BatchView>),
    /// The project has no such file.
    UnknownFile,
    /// The file is not for batches.
    WrongPurpose,
    /// The file has so many lines, which is none or too many.
    WrongLength(u64),
    /// Its lines cannot be done within its window, whatever happens.
    Infeasible(Box<Forecast>),
    /// The project has no such batch to do again.
    UnknownBatch,
    /// The batch to do again has not ended.
    Running,
    /// The batch to do again has no failed lines.
    NothingFailed,
}

/// A batch with everything its owner may see.
#[derive(Debug, Clone)]
pub struct BatchView {
    /// The batch.
    pub id: BatchId,
    /// What every line is for.
    pub endpoint: String,
    /// Where its lines stand.
    pub input_file_id: FileId,
    /// How long it may take, as it was asked.
    pub completion_window: String,
    /// Where it stands.
    pub status: BatchStatus,
    /// How it is to end, where that is not `completed`.
    pub ending: Option<BatchStatus>,
    /// The first of what is wrong with its input, and of how many.
    pub errors: Vec<LineProblem>,
    /// All that is wrong with its input.
    pub errors_count: u32,
    /// Lines.
    pub total: u32,
    /// Lines that came to an output.
    pub completed: u32,
    /// Lines that came to none.
    pub failed: u32,
    /// Tokens of the prompts of lines that have ended.
    pub prompt_tokens: u64,
    /// Tokens generated for lines that have ended.
    pub completion_tokens: u64,
    /// The outputs, once it has ended.
    pub output_file_id: Option<FileId>,
    /// The lines that came to none, once it has ended.
    pub error_file_id: Option<FileId>,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The batch whose failed lines it does again.
    pub retry_of: Option<BatchId>,
    /// What was said at submit of whether the window is feasible.
    pub forecast: Option<Forecast>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// The end of its window.
    pub expires_at: OffsetDateTime,
    /// Since when no more of its lines are taken up.
    pub paused_at: Option<OffsetDateTime>,
    /// When its lines were found in order.
    pub in_progress_at: Option<OffsetDateTime>,
    /// When all its lines had ended.
    pub finalizing_at: Option<OffsetDateTime>,
    /// When a caller asked to stop it.
    pub cancelling_at: Option<OffsetDateTime>,
    /// When it ended as completed.
    pub completed_at: Option<OffsetDateTime>,
    /// When it ended as failed.
    pub failed_at: Option<OffsetDateTime>,
    /// When it ended as expired.
    pub expired_at: Option<OffsetDateTime>,
    /// When it ended as cancelled.
    pub cancelled_at: Option<OffsetDateTime>,
}

/// Renders a newly made batch.
pub type RenderBatch = fn(&BatchView) -> Answer;

/// Makes a batch. `render` makes the answer that a repeated request with the same key will be shown.
pub async fn create(
    pool: &Pool,
    batch: NewBatch,
    claim: Option<Claim>,
    render: RenderBatch,
) -> StoreResult<Once<Created>> {
    let answer = move |created: &Created| match created {
        Created::Accepted(view) => Some((None, render(view))),
        _ => None,
    };
    once(pool, claim, answer, move |connection| {
        let batch = batch.clone();
        Box::pin(async move {
            if let Some(view) = sent_before(connection, &batch).await? {
                return Ok(Created::Found(Box::new(view)));
            }
            let origin = match batch.source {
                Source::File(id) => of_file(connection, &batch, id).await?,
                Source::FailedOf(id) => of_batch(connection, &batch, id).await?,
            };
            match origin {
                Ok(origin) => insert(connection, &batch, origin).await,
                Err(refused) => Ok(refused),
            }
        })
    })
    .await
}

/// Where the lines of a batch stand that is only asked about.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    /// In an uploaded file.
    File(FileId),
    /// In the request: so many.
    Inline(u64),
}

/// How many lines a batch would have, and whether its window would be long enough. Nothing is stored, so whoever asks next may
/// hear the same.
pub async fn foresee(pool: &Pool, batch: NewBatch, asked: Asked) -> StoreResult<Result<(u64, Forecast), Created>> {
    transaction(pool, move |connection| {
        let batch = batch.clone();
        Box::pin(async move {
            let lines = match asked {
                Asked::Inline(lines) => lines,
                Asked::File(id) => match of_file(connection, &batch, id).await? {
                    Ok(origin) => origin.lines,
                    Err(refused) => return Ok(Err(refused)),
                },
            };
            let length = batch.window.length();
            let forecast = batch_window::forecast(connection, batch.tenant_id, lines, length).await?;
            Ok(Ok((lines, forecast)))
        })
    })
    .await
}

/// Where a new batch's lines come from.
struct Origin {
    file: FileId,
    bytes: i64,
    lines: u64,
    retry_of: Option<BatchId>,
}

/// The newest batch of the same user and request that no retry of this number has found. Whoever makes such a batch is waited
/// for.
async fn sent_before(connection: &mut sqlx::PgConnection, batch: &NewBatch) -> StoreResult<Option<BatchView>> {
    let Some(retry) = batch.sdk_retry else {
        return Ok(None);
    };
    let request = format!("batch:{}:{}", batch.user_id.uuid(), hex::encode(batch.request_sha256));
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(request)
        .execute(&mut *connection)
        .await?;
    if retry == 0 {
        return Ok(None);
    }
    // A statement of its own, after the lock: it sees what those before have committed.
    let row = sqlx::query(
        "UPDATE batches SET sdk_retry = $3 WHERE id = (
             SELECT id FROM batches WHERE user_id = $1 AND project_id = $5 AND request_sha256 = $2
                 AND created_at > now() - $4::interval AND sdk_retry < $3
             ORDER BY created_at DESC, id DESC LIMIT 1)
         RETURNING *",
    )
    .bind(batch.user_id.uuid())
    .bind(&batch.request_sha256[..])
    .bind(retry.cast_signed())
    .bind(RETRY_WITHIN)
    .bind(batch.project_id.uuid())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(view).transpose()
}

async fn of_file(
    connection: &mut sqlx::PgConnection,
    batch: &NewBatch,
    id: FileId,
) -> StoreResult<Result<Origin, Created>> {
    let row = sqlx::query(
        "SELECT purpose, bytes, lines FROM files WHERE id = $1 AND project_id = $2 AND status = 'processed'
             AND (expires_at IS NULL OR expires_at > now()) FOR SHARE",
    )
    .bind(id.uuid())
    .bind(batch.project_id.uuid())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else {
        return Ok(Err(Created::UnknownFile));
    };
    if column::<&str, _>(&row, "purpose")? != "batch" {
        return Ok(Err(Created::WrongPurpose));
    }
    let lines = column::<i64, _>(&row, "lines")?.cast_unsigned();
    if !(1..=u64::from(batch.lines_max)).contains(&lines) {
        return Ok(Err(Created::WrongLength(lines)));
    }
    Ok(Ok(Origin {
        file: id,
        bytes: column(&row, "bytes")?,
        lines,
        retry_of: None,
    }))
}

async fn of_batch(
    connection: &mut sqlx::PgConnection,
    batch: &NewBatch,
    id: BatchId,
) -> StoreResult<Result<Origin, Created>> {
    let row = sqlx::query(
        "SELECT status, input_file_id, input_bytes, total FROM batches WHERE id = $1 AND project_id = $2 FOR SHARE",
    )
    .bind(id.uuid())
    .bind(batch.project_id.uuid())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        return Ok(Err(Created::UnknownBatch));
    };
    if !parse::<BatchStatus>(&row, "status")?.is_terminal() {
        return Ok(Err(Created::Running));
    }
    // A statement of its own, after the lock: retention may have taken lines until then.
    let (kept, failed): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE NOT completed) FROM batch_items WHERE batch_id = $1")
            .bind(id.uuid())
            .fetch_one(&mut *connection)
            .await?;
    if kept < i64::from(column::<i32, _>(&row, "total")?) {
        return Ok(Err(Created::UnknownBatch));
    }
    let failed = failed.cast_unsigned();
    if failed == 0 {
        return Ok(Err(Created::NothingFailed));
    }
    let file = Id::from_uuid(column(&row, "input_file_id")?);
    let there = sqlx::query("SELECT FROM files WHERE id = $1 AND status = 'processed' FOR SHARE")
        .bind(file.uuid())
        .fetch_optional(connection)
        .await?;
    if there.is_none() {
        return Ok(Err(Created::UnknownFile));
    }
    Ok(Ok(Origin {
        file,
        bytes: column(&row, "input_bytes")?,
        lines: failed,
        retry_of: Some(id),
    }))
}

/// Lines that are done again were found in order before: they need no validation.
async fn insert(connection: &mut sqlx::PgConnection, batch: &NewBatch, origin: Origin) -> StoreResult<Created> {
    let forecast = batch_window::forecast(connection, batch.tenant_id, origin.lines, batch.window.length()).await?;
    // What is done again has the window that it had: there is none to choose.
    if origin.retry_of.is_none() && forecast.feasibility() == Feasibility::Infeasible {
        return Ok(Created::Infeasible(Box::new(forecast)));
    }
    let row = sqlx::query(
        "INSERT INTO batches (id, tenant_id, project_id, user_id, endpoint, input_file_id, input_bytes, completion_window,
                              metadata, retry_of, status, total, in_progress_at, output_ttl, forecast, request_sha256,
                              sdk_retry, expires_at, api_key_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, CASE WHEN $10 IS NULL THEN 'validating' ELSE 'in_progress' END, $11,
                 CASE WHEN $10 IS NOT NULL THEN now() END, $12, $13, $14, $15, now() + $16::interval, $17)
         RETURNING *",
    )
    .bind(batch.id.uuid())
    .bind(batch.tenant_id.uuid())
    .bind(batch.project_id.uuid())
    .bind(batch.user_id.uuid())
    .bind(&batch.endpoint)
    .bind(origin.file.uuid())
    .bind(origin.bytes)
    .bind(batch.window.as_str())
    .bind(batch.metadata.as_ref().map(Json))
    .bind(origin.retry_of.map(Id::uuid))
    .bind(i32::try_from(origin.lines).map_err(StoreError::contradiction)?)
    .bind(batch.output_ttl)
    .bind(Json(&forecast))
    .bind(&batch.request_sha256[..])
    .bind(batch.sdk_retry.map(u32::cast_signed))
    .bind(batch.window.length())
    .bind(batch.api_key_id.map(Id::uuid))
    .fetch_one(&mut *connection)
    .await?;
    let entry = Entry::done(Some(batch.tenant_id), "batch.created", Some(batch.id.uuid()));
    audit::record(connection, &batch.by, entry).await?;
    Ok(Created::Accepted(Box::new(view(&row)?)))
}

/// One batch of a project.
pub async fn get(executor: impl PgExecutor<'_>, project: ProjectId, id: BatchId) -> StoreResult<Option<BatchView>> {
    let row = sqlx::query("SELECT * FROM batches WHERE id = $1 AND project_id = $2")
        .bind(id.uuid())
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(view).transpose()
}

/// A page of a project's batches, newest first.
pub async fn list(
    executor: impl PgExecutor<'_>,
    project: ProjectId,
    after: Option<BatchId>,
    limit: u32,
) -> StoreResult<Vec<BatchView>> {
    let rows = sqlx::query(
        "SELECT * FROM batches WHERE project_id = $1 AND id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
         ORDER BY id DESC LIMIT $3",
    )
    .bind(project.uuid())
    .bind(after.map(Id::uuid))
    .bind(i64::from(limit))
    .fetch_all(executor)
    .await?;
    rows.iter().map(view).collect()
}

/// Asks a batch to stop. One that is finalizing or has ended stays as it is. Answers the batch as it is then.
pub async fn request_cancel(pool: &Pool, project: ProjectId, id: BatchId, by: By) -> StoreResult<Option<BatchView>> {
    let change = "status = 'cancelling', ending = 'cancelled', cancelling_at = now(), paused_at = NULL, due_at = now()";
    let condition = "status IN ('validating', 'in_progress')";
    steer(
        pool,
        project,
        id,
        by,
        Steering {
            change,
            condition,
            action: "batch.cancel_requested",
        },
    )
    .await
}

/// Takes no more of a batch's lines up; those that run go on, those that wait wait on. Safe to repeat.
pub async fn pause(pool: &Pool, project: ProjectId, id: BatchId, by: By) -> StoreResult<Option<BatchView>> {
    let change = "paused_at = now(), due_at = now()";
    let condition = "status IN ('validating', 'in_progress') AND paused_at IS NULL AND ending IS NULL";
    steer(
        pool,
        project,
        id,
        by,
        Steering {
            change,
            condition,
            action: "batch.paused",
        },
    )
    .await
}

/// Goes on with a paused batch. Safe to repeat.
pub async fn resume(pool: &Pool, project: ProjectId, id: BatchId, by: By) -> StoreResult<Option<BatchView>> {
    let change = "paused_at = NULL, due_at = now()";
    let condition = "paused_at IS NOT NULL";
    steer(
        pool,
        project,
        id,
        by,
        Steering {
            change,
            condition,
            action: "batch.resumed",
        },
    )
    .await
}

/// A caller's change of a batch, as SQL, and its word in the audit log.
#[derive(Clone, Copy)]
struct Steering {
    change: &'static str,
    condition: &'static str,
    action: &'static str,
}

async fn steer(
    pool: &Pool,
    project: ProjectId,
    id: BatchId,
    by: By,
    steering: Steering,
) -> StoreResult<Option<BatchView>> {
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let Steering { change, condition, action } = steering;
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "WITH changed AS (
                     UPDATE batches SET {change} WHERE id = $1 AND project_id = $2 AND {condition} RETURNING id, tenant_id
                 )
                 INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject)
                 SELECT tenant_id, $3, $5, $6, $7, $4, id FROM changed"
            )))
            .bind(id.uuid())
            .bind(project.uuid())
            .bind(&by.actor)
            .bind(action)
            .bind(by.credential())
            .bind(by.address())
            .bind(by.request_id())
            .execute(&mut *connection)
            .await?;
            get(connection, project, id).await
        })
    })
    .await
}

pub(super) fn view(row: &PgRow) -> StoreResult<BatchView> {
    let ending: Option<&str> = column(row, "ending")?;
    Ok(BatchView {
        id: Id::from_uuid(column(row, "id")?),
        endpoint: column(row, "endpoint")?,
        input_file_id: Id::from_uuid(column(row, "input_file_id")?),
        completion_window: column(row, "completion_window")?,
        status: parse(row, "status")?,
        ending: ending.map(str::parse).transpose().map_err(StoreError::contradiction)?,
        errors: json(row, "errors")?.unwrap_or_default(),
        errors_count: unsigned(row, "errors_count")?,
        total: unsigned(row, "total")?,
        completed: unsigned(row, "completed")?,
        failed: unsigned(row, "failed")?,
        prompt_tokens: column::<i64, _>(row, "prompt_tokens")?.cast_unsigned(),
        completion_tokens: column::<i64, _>(row, "completion_tokens")?.cast_unsigned(),
        output_file_id: column::<Option<_>, _>(row, "output_file_id")?.map(Id::from_uuid),
        error_file_id: column::<Option<_>, _>(row, "error_file_id")?.map(Id::from_uuid),
        metadata: json(row, "metadata")?,
        retry_of: column::<Option<_>, _>(row, "retry_of")?.map(Id::from_uuid),
        forecast: json(row, "forecast")?,
        created_at: column(row, "created_at")?,
        expires_at: column(row, "expires_at")?,
        paused_at: column(row, "paused_at")?,
        in_progress_at: column(row, "in_progress_at")?,
        finalizing_at: column(row, "finalizing_at")?,
        cancelling_at: column(row, "cancelling_at")?,
        completed_at: column(row, "completed_at")?,
        failed_at: column(row, "failed_at")?,
        expired_at: column(row, "expired_at")?,
        cancelled_at: column(row, "cancelled_at")?,
    })
}
