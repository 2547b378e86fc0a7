//! The work behind a batch: taking it up under a lease, feeding its lines as jobs, counting what has ended, and its end.
//!
//! One worker at a time holds a batch, by a lease on the database's clock. Every statement here is guarded by the lease that
//! its caller took ([`Held`]): who lost it changes nothing and hears [`Progress::Lost`]. Lines become items and jobs in the
//! transaction that moves the mark, and `(batch_id, line)` is unique, so that no line is lost or doubled wherever its
//! worker is killed.

use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::api_keys::{Grant, grant};
use super::audit::{self, By, Entry};
use super::batches::{BatchView, view};
use super::row::{column, get, unsigned};
use super::submit::{self, NewJob};
use super::{Pool, StoreResult, budgets, cancels, quota, transaction};
use crate::domain::{
    ApiKeyId, BatchId, BatchStatus, EventId, FileId, Id, JobError, LineProblem, ProjectId, TenantId, UserId,
};
use crate::policy::Hit;

/// A batch that this process works at.
#[derive(Debug, Clone)]
pub struct Held {
    /// The batch as it was when it was taken up.
    pub view: BatchView,
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
    /// Who asked for it.
    pub user_id: UserId,
    /// With which key.
    pub api_key_id: Option<ApiKeyId>,
    /// What that key is good for, also after it was revoked: the batch was accepted before.
    pub grant: Option<Grant>,
    /// The input's length.
    pub input_bytes: u64,
    /// How far the input was fed.
    pub mark: Mark,
    /// Its output files go by themselves after this time.
    pub output_ttl: Option<Duration>,
    /// Its waiting jobs were put off while it was paused.
    pub holding: bool,
    late: bool,
    lease: Uuid,
    lease_time: Duration,
}

/// How far a batch's input was fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Bytes: where the next line begins.
    pub bytes: u64,
    /// The number of the last line.
    pub line: u32,
    /// Lines that became items.
    pub items: u32,
}

impl Held {
    /// Items whose jobs have not ended, as far as they were counted.
    pub const fn open(&self) -> u32 {
        self.mark.items.saturating_sub(self.view.completed + self.view.failed)
    }

    /// Whether every line has become an item.
    pub const fn is_fed(&self) -> bool {
        self.mark.items >= self.view.total || self.mark.bytes >= self.input_bytes
    }

    /// How often long work should say that it goes on.
    pub fn keep_every(&self) -> Duration {
        self.lease_time / 4
    }

    /// Whether its window is over, by the database's clock.
    pub const fn is_late(&self) -> bool {
        self.late
    }
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<T = ()> {
    /// It is done.
    Done(T),
    /// The batch is another worker's by now, or a caller has changed its way: nothing was done.
    Lost,
}

/// A line that is taken up.
#[derive(Debug, Clone)]
pub struct FedLine {
    /// Its number.
    pub line: u32,
    /// Where the next line begins.
    pub end: u64,
    /// The caller's name for it. Unknown where the input is lost.
    pub custom_id: Option<String>,
    /// Its job, or why it comes to none.
    pub outcome: Result<Box<NewJob>, JobError>,
    /// The rule of the content policy that its prompt is rejected by.
    pub rejected_by: Option<Hit>,
}

/// Takes the batch that has waited longest, if one is due.
pub async fn take(pool: &Pool, lease_time: Duration) -> StoreResult<Option<Held>> {
    let lease = Uuid::now_v7();
    let row = sqlx::query(
        "WITH due AS MATERIALIZED (
             SELECT id, api_key_id FROM batches
             WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND due_at <= now()
                 AND (lease IS NULL OR lease_expires_at < now())
             ORDER BY due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
         )
         UPDATE batches b SET lease = $1, lease_expires_at = now() + $2::interval
         FROM due LEFT JOIN api_keys k ON k.id = due.api_key_id WHERE b.id = due.id
         RETURNING b.*, b.expires_at <= now() AS late, k.scopes, k.models, k.max_tokens",
    )
    .bind(lease)
    .bind(lease_time)
    .fetch_optional(pool)
    .await?;
    row.map(|row| held(&row, lease, lease_time)).transpose()
}

fn held(row: &PgRow, lease: Uuid, lease_time: Duration) -> StoreResult<Held> {
    let ttl: Option<sqlx::postgres::types::PgInterval> = get(row, "output_ttl")?;
    let api_key_id: Option<Uuid> = get(row, "api_key_id")?;
    Ok(Held {
        view: view(row)?,
        tenant_id: Id::from_uuid(get(row, "tenant_id")?),
        project_id: Id::from_uuid(get(row, "project_id")?),
        user_id: Id::from_uuid(get(row, "user_id")?),
        api_key_id: api_key_id.map(Id::from_uuid),
        grant: api_key_id.map(|_| grant(row)).transpose()?,
        input_bytes: get::<i64, _>(row, "input_bytes")?.cast_unsigned(),
        mark: Mark {
            bytes: get::<i64, _>(row, "fed_bytes")?.cast_unsigned(),
            line: unsigned(row, "fed_line")?,
            items: unsigned(row, "fed")?,
        },
        output_ttl: ttl.map(|ttl| Duration::from_micros(ttl.microseconds.unsigned_abs())),
        holding: get(row, "holding")?,
        late: get(row, "late")?,
        lease,
        lease_time,
    })
}

/// Holds a batch for another lease: long work says every now and then that it goes on.
pub async fn keep(executor: impl PgExecutor<'_>, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query("UPDATE batches SET lease_expires_at = now() + $3::interval WHERE id = $1 AND lease = $2")
        .bind(held.view.id.uuid())
        .bind(held.lease)
        .bind(held.lease_time)
        .execute(executor)
        .await?;
    Ok(progress(done.rows_affected()))
}

/// Lets a batch go; it is taken up again after `pause`, or sooner if a caller steers it.
pub async fn let_go(executor: impl PgExecutor<'_>, held: &Held, pause: Duration) -> StoreResult<()> {
    sqlx::query("UPDATE batches SET lease = NULL, lease_expires_at = NULL, due_at = now() + $3::interval WHERE id = $1 AND lease = $2")
        .bind(held.view.id.uuid())
        .bind(held.lease)
        .bind(pause)
        .execute(executor)
        .await?;
    Ok(())
}

/// What validation found.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// So many lines, all in order.
    InOrder(u32),
    /// The first of what is wrong, and of how many.
    Wrong(Vec<LineProblem>, u32),
}

/// Writes down what validation found: the batch is in progress, or has failed and runs nothing.
pub async fn validated(pool: &Pool, held: &Held, verdict: Verdict) -> StoreResult<Progress> {
    let (id, lease) = (held.view.id, held.lease);
    transaction(pool, move |connection| {
        let verdict = verdict.clone();
        Box::pin(async move {
            let (status, total, errors, count) = match verdict {
                Verdict::InOrder(lines) => (BatchStatus::InProgress, lines, None, 0),
                Verdict::Wrong(errors, count) => (BatchStatus::Failed, 0, Some(Json(errors)), count),
            };
            let done = sqlx::query(
                "UPDATE batches SET status = $3, total = $4, errors = $5, errors_count = $6,
                     in_progress_at = CASE $3 WHEN 'in_progress' THEN now() END,
                     failed_at = CASE $3 WHEN 'failed' THEN now() END,
                     lease = CASE $3 WHEN 'in_progress' THEN lease END
                 WHERE id = $1 AND lease = $2 AND status = 'validating'",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(status.as_str())
            .bind(total.cast_signed())
            .bind(errors)
            .bind(count.cast_signed())
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() > 0 {
                tell(connection, id, status).await?;
            }
            Ok(progress(done.rows_affected()))
        })
    })
    .await
}

/// Writes the audit row of a batch that has just become `status`, and the event if that is its end.
async fn tell(connection: &mut PgConnection, id: BatchId, status: BatchStatus) -> StoreResult<()> {
    let shown = json!({"id": id, "object": "batch", "status": status, "url": format!("/v1/batches/{id}")});
    sqlx::query(
        "WITH batch AS (
             SELECT id, tenant_id, project_id FROM batches WHERE id = $1
         ), event AS (
             INSERT INTO events (id, project_id, type, data) SELECT $2, project_id, 'batch.' || $3, $4 FROM batch WHERE $5
         )
         INSERT INTO audit_log (tenant_id, actor, action, subject) SELECT tenant_id, 'service', 'batch.' || $3, id FROM batch",
    )
    .bind(id.uuid())
    .bind(EventId::new().uuid())
    .bind(status.as_str())
    .bind(Json(shown))
    .bind(status.is_terminal())
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts the items whose jobs have ended since the last count. Answers the batch's counts as they are then.
pub async fn count(pool: &Pool, held: &Held) -> StoreResult<Progress<(u32, u32)>> {
    let (id, lease, lease_time) = (held.view.id, held.lease, held.lease_time);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let row = sqlx::query(
                // The items without a place are those that were fed and not counted: their number is bounded, however long
                // the batch is.
                "WITH ended AS MATERIALIZED (
                     SELECT i.line, j.status = 'completed' AS completed, j.prompt_tokens, j.completion_tokens,
                         row_number() OVER (ORDER BY j.finished_at, i.line)::int AS place
                     FROM batch_items i JOIN jobs j ON j.id = i.id
                     WHERE i.batch_id = $1 AND i.seq IS NULL AND j.finished_at IS NOT NULL
                 ), counted AS (
                     SELECT count(*)::int AS ended, (count(*) FILTER (WHERE completed))::int AS completed,
                         coalesce(sum(prompt_tokens) FILTER (WHERE completion_tokens > 0), 0)::int8 AS prompt_tokens,
                         coalesce(sum(completion_tokens), 0)::int8 AS completion_tokens
                     FROM ended
                 ), batch AS (
                     UPDATE batches b SET completed = b.completed + c.completed, failed = b.failed + c.ended - c.completed,
                         prompt_tokens = b.prompt_tokens + c.prompt_tokens,
                         completion_tokens = b.completion_tokens + c.completion_tokens,
                         lease_expires_at = now() + $3::interval
                     FROM counted c WHERE b.id = $1 AND b.lease = $2
                     RETURNING b.completed, b.failed, b.completed + b.failed - c.ended AS before
                 ), placed AS (
                     UPDATE batch_items i SET seq = batch.before + ended.place, completed = ended.completed
                     FROM ended, batch WHERE i.batch_id = $1 AND i.line = ended.line
                 )
                 SELECT completed, failed FROM batch",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(lease_time)
            .fetch_optional(connection)
            .await?;
            Ok(match row {
                Some(row) => Progress::Done((unsigned(&row, "completed")?, unsigned(&row, "failed")?)),
                None => Progress::Lost,
            })
        })
    })
    .await
}

/// How a feed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    /// How far the input was fed now.
    pub mark: Mark,
    /// Lines of the chunk that were taken up: fewer, where the tenant has too much waiting.
    pub taken: usize,
    /// Those of them that came to no job.
    pub refused: u32,
}

/// Takes up one chunk of lines, in their order: as jobs as far as the tenant's limits and the budgets have room, as failed items
/// where they come to none. What has no room waits in the file. `batch_tokens` is the most tokens of waiting prompts of a tenant that
/// has no such limit of its own.
pub async fn feed(
    pool: &Pool,
    held: &Held,
    lines: Vec<FedLine>,
    batch_tokens: Option<u64>,
) -> StoreResult<Progress<Fed>> {
    let held = held.clone();
    let lines = std::sync::Arc::new(lines);
    transaction(pool, move |connection| {
        let (held, lines) = (held.clone(), lines.clone());
        Box::pin(async move {
            let wanted = lines.iter().filter_map(|line| line.outcome.as_deref().ok());
            let asked: Vec<_> = wanted.map(NewJob::asked).collect();
            let decision = quota::decide_for_batch(connection, &asked, batch_tokens).await?;
            let room = decision.verdicts.iter().take_while(|verdict| verdict.is_ok()).count();
            let taken = fitting(&lines, room);
            let Some(last) = taken.last() else {
                return Ok(Progress::Done(Fed {
                    mark: held.mark,
                    taken: 0,
                    refused: 0,
                }));
            };
            let mark = Mark {
                bytes: last.end,
                line: last.line,
                items: held.mark.items + taken.len() as u32,
            };
            let refused = taken.iter().filter(|line| line.outcome.is_err()).count() as u32;
            let Some(before) = move_mark(connection, &held, mark, refused, taken).await? else {
                return Ok(Progress::Lost);
            };
            let jobs: Vec<&NewJob> = taken.iter().filter_map(|line| line.outcome.as_deref().ok()).collect();
            if !jobs.is_empty() {
                // Not before the mark has moved: what another worker feeds is reserved there.
                budgets::reserve(connection, &decision.reserved).await?;
                submit::insert(connection, &jobs).await?;
            }
            insert_items(connection, held.view.id, taken, before).await?;
            record_policy(connection, &held, taken).await?;
            Ok(Progress::Done(Fed {
                mark,
                taken: taken.len(),
                refused,
            }))
        })
    })
    .await
}

/// The first lines, up to the job that has no room.
fn fitting(lines: &[FedLine], room: usize) -> &[FedLine] {
    let first_beyond = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.outcome.is_ok())
        .map(|(place, _)| place)
        .nth(room);
    &lines[..first_beyond.unwrap_or(lines.len())]
}

/// Moves the mark if the batch is still as its holder knows it. Answers how many had ended before.
async fn move_mark(
    connection: &mut PgConnection,
    held: &Held,
    mark: Mark,
    refused: u32,
    taken: &[FedLine],
) -> StoreResult<Option<i32>> {
    let starts_jobs = taken.iter().any(|line| line.outcome.is_ok());
    Ok(sqlx::query_scalar(
        "UPDATE batches SET fed_bytes = $4, fed_line = $5, fed = $6, failed = failed + $7,
             lease_expires_at = now() + $8::interval
         WHERE id = $1 AND lease = $2 AND fed_bytes = $3 AND fed_line = $9 AND finalizing_at IS NULL
             -- A caller may have paused or cancelled it meanwhile: no job begins after that.
             AND (NOT $10 OR status = 'in_progress' AND ending IS NULL AND paused_at IS NULL)
         RETURNING completed + failed - $7",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(held.mark.bytes.cast_signed())
    .bind(mark.bytes.cast_signed())
    .bind(mark.line.cast_signed())
    .bind(mark.items.cast_signed())
    .bind(refused.cast_signed())
    .bind(held.lease_time)
    .bind(held.mark.line.cast_signed())
    .bind(starts_jobs)
    .fetch_optional(connection)
    .await?)
}

async fn insert_items(connection: &mut PgConnection, id: BatchId, lines: &[FedLine], before: i32) -> StoreResult<()> {
    let mut place = before;
    let places: Vec<Option<i32>> = lines
        .iter()
        .map(|line| {
            line.outcome.is_err().then(|| {
                place += 1;
                place
            })
        })
        .collect();
    sqlx::query(
        "INSERT INTO batch_items (batch_id, line, id, custom_id, seq, completed, error)
         SELECT $1, line, id, custom_id, seq, CASE WHEN seq IS NOT NULL THEN false END, error
         FROM unnest($2::int[], $3::uuid[], $4::text[], $5::int[], $6::jsonb[]) AS item (line, id, custom_id, seq, error)",
    )
    .bind(id.uuid())
    .bind(column(lines, |line| line.line.cast_signed()))
    .bind(column(lines, |line| line.outcome.as_ref().map_or_else(|_| Uuid::now_v7(), |job| job.id.uuid())))
    .bind(column(lines, |line| line.custom_id.as_deref()))
    .bind(places)
    .bind(column(lines, |line| line.outcome.as_ref().err().map(Json)))
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes into the audit log which rules the prompts of these lines met: a job's hits belong to it, a rejected line's to the batch.
async fn record_policy(connection: &mut PgConnection, held: &Held, lines: &[FedLine]) -> StoreResult<()> {
    let by = By::from(held.user_id);
    let jobs = lines.iter().filter_map(|line| line.outcome.as_deref().ok());
    let hits = jobs.flat_map(|job| job.hits.iter().map(|hit| (job.id, hit.clone())));
    audit::record_hits(connection, &by, hits.collect()).await?;
    for line in lines {
        if let Some(hit) = &line.rejected_by {
            let mut entry = Entry::rejected(held.tenant_id, Some(held.view.id), hit);
            if let Some(details) = &mut entry.details {
                details["line"] = line.line.into();
            }
            audit::record(&mut *connection, &by, entry).await?;
        }
    }
    Ok(())
}

/// Of these lines those that failed in another batch, which is to be done again.
pub async fn failed_lines(
    executor: impl PgExecutor<'_>,
    batch: BatchId,
    first: u32,
    last: u32,
) -> StoreResult<Vec<u32>> {
    let rows = sqlx::query(
        "SELECT line FROM batch_items WHERE batch_id = $1 AND line BETWEEN $2 AND $3 AND NOT completed ORDER BY line",
    )
    .bind(batch.uuid())
    .bind(first.cast_signed())
    .bind(last.cast_signed())
    .fetch_all(executor)
    .await?;
    rows.iter().map(|row| unsigned(row, "line")).collect()
}

/// The input has no more lines than were taken up.
pub async fn no_more_lines(pool: &Pool, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET fed_bytes = input_bytes, total = fed WHERE id = $1 AND lease = $2 AND fed_bytes = $3",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(held.mark.bytes.cast_signed())
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// The window is over, by the database's clock: lines that were not taken up come to nothing, jobs that run expire.
pub async fn expire(pool: &Pool, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET ending = 'expired', paused_at = NULL
         WHERE id = $1 AND lease = $2 AND status = 'in_progress' AND ending IS NULL AND expires_at <= now()",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// The batch cannot go on: what runs is to be stopped, and lines that were not taken up come to nothing.
pub async fn fail(pool: &Pool, held: &Held, problem: LineProblem) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET ending = 'failed', paused_at = NULL, errors = $3, errors_count = 1
         WHERE id = $1 AND lease = $2 AND status = 'in_progress' AND ending IS NULL",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(Json([problem]))
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// Asks one chunk of the batch's running jobs to stop. Answers whether there may be more.
pub async fn cancel_jobs(pool: &Pool, held: &Held) -> StoreResult<bool> {
    let id = held.view.id;
    transaction(pool, move |connection| {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT j.id, j.status, j.fence FROM jobs j
                 WHERE j.id IN (SELECT i.id FROM batch_items i WHERE i.batch_id = $1 AND i.seq IS NULL)
                     AND j.finished_at IS NULL AND j.status <> 'cancelling'
                 ORDER BY j.id LIMIT $2 FOR UPDATE OF j",
            )
            .bind(id.uuid())
            .bind(super::rescue::CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            cancels::cancel_locked(connection, &rows, "service").await?;
            Ok(rows.len() as i64 == super::rescue::CHUNK)
        })
    })
    .await
}

/// While a batch is paused its waiting jobs are not available until the end of its window; afterwards they are at once.
pub async fn hold_waiting(pool: &Pool, held: &Held, paused: bool) -> StoreResult<u64> {
    let (id, until) = (held.view.id, held.view.expires_at);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let done = sqlx::query(
                "WITH waiting AS MATERIALIZED (
                     SELECT j.id FROM jobs j
                     WHERE j.id IN (SELECT i.id FROM batch_items i WHERE i.batch_id = $1 AND i.seq IS NULL)
                         AND j.status = 'queued' AND (j.available_at < $2) = $3
                     ORDER BY j.id FOR NO KEY UPDATE OF j
                 ), moved AS (
                     UPDATE jobs j SET available_at = CASE WHEN $3 THEN $2 ELSE now() END FROM waiting w WHERE j.id = w.id
                     RETURNING j.id, j.available_at
                 ), noted AS (
                     UPDATE batches SET holding = $3 WHERE id = $1
                 )
                 -- Those that are with the broker come back by their claim, with the new time.
                 UPDATE outbox o SET available_at = m.available_at FROM moved m WHERE o.job_id = m.id",
            )
            .bind(id.uuid())
            .bind(until)
            .bind(paused)
            .execute(connection)
            .await?;
            Ok(done.rows_affected())
        })
    })
    .await
}

/// Every line has ended: the files are next.
pub async fn begin_finalizing(pool: &Pool, held: &Held) -> StoreResult<Progress> {
    let done = sqlx::query(
        "UPDATE batches SET finalizing_at = coalesce(finalizing_at, now()), lease_expires_at = now() + $3::interval,
             status = CASE status WHEN 'in_progress' THEN 'finalizing' ELSE status END
         WHERE id = $1 AND lease = $2 AND status IN ('in_progress', 'cancelling') AND completed + failed = fed",
    )
    .bind(held.view.id.uuid())
    .bind(held.lease)
    .bind(held.lease_time)
    .execute(pool)
    .await?;
    Ok(progress(done.rows_affected()))
}

/// A file that a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The file, noted as begun.
    pub id: FileId,
    /// Its length.
    pub bytes: u64,
    /// Its lines.
    pub lines: u32,
}

/// The batch's end: its files are there, and its counts are what stands in them.
pub async fn finish(
    pool: &Pool,
    held: &Held,
    output: Option<Written>,
    errors: Option<Written>,
) -> StoreResult<Progress> {
    let (id, lease) = (held.view.id, held.lease);
    let status = held.view.ending.unwrap_or(BatchStatus::Completed);
    transaction(pool, move |connection| {
        Box::pin(async move {
            let lines = |file: Option<Written>| file.map_or(0, |file| file.lines.cast_signed());
            let done = sqlx::query(
                "UPDATE batches SET status = $3, output_file_id = $4, error_file_id = $5, completed = $6, failed = $7,
                     total = $6 + $7, lease = NULL, lease_expires_at = NULL,
                     completed_at = CASE $3 WHEN 'completed' THEN now() END, failed_at = CASE $3 WHEN 'failed' THEN now() END,
                     expired_at = CASE $3 WHEN 'expired' THEN now() END,
                     cancelled_at = CASE $3 WHEN 'cancelled' THEN now() END
                 WHERE id = $1 AND lease = $2 AND status IN ('finalizing', 'cancelling')",
            )
            .bind(id.uuid())
            .bind(lease)
            .bind(status.as_str())
            .bind(output.map(|file| file.id.uuid()))
            .bind(errors.map(|file| file.id.uuid()))
            .bind(lines(output))
            .bind(lines(errors))
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(Progress::Lost);
            }
            for file in [output, errors].into_iter().flatten() {
                super::files::finish(&mut *connection, file.id, file.bytes, file.lines.into(), None, None).await?;
            }
            tell(connection, id, status).await?;
            Ok(Progress::Done(()))
        })
    })
    .await
}

const fn progress(rows: u64) -> Progress {
    if rows == 0 { Progress::Lost } else { Progress::Done(()) }
}
