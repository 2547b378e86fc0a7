//! Lines of a batch's input become items, and jobs as far as there is room.

use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::{Held, Mark, Progress, progress};
use crate::domain::{BatchId, JobError};
use crate::policy::Hit;
use crate::store::audit::{self, By, Entry};
use crate::store::row::{column, unsigned};
use crate::store::submit::{self, NewJob};
use crate::store::{Pool, StoreResult, budgets, quota, transaction};

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
                submit::insert(connection, &jobs, submit::Room::Given).await?;
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
