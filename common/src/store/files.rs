//! Uploaded files as their owner sees them. Their bytes lie in the object store (`files.rs` of the crate).
//!
//! A row comes before its object and goes after it, so that nothing lies there which no row speaks of.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgExecutor};
use time::OffsetDateTime;

use super::batches::unfinished;
use super::idempotency::{Answer, Claim};
use super::once::{Once, make_once};
use super::row::{get as column, parse};
use super::{Pool, StoreResult, transaction};
use crate::domain::{FileId, FilePurpose, Id, ProjectId, TenantId};

/// An upload that is not finished by then was given up.
const UPLOAD_LIMIT: Duration = Duration::from_hours(2);
/// Files that are cleared away at a time.
const SWEPT: i64 = 100;

/// A file that is about to be written.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// Drawn by the caller.
    pub id: FileId,
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
    /// What it is for.
    pub purpose: FilePurpose,
    /// What its owner calls it.
    pub filename: String,
    /// It goes by itself after this time.
    pub ttl: Option<Duration>,
}

/// An upload that has come to its end.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// Its length.
    pub bytes: u64,
    /// Its lines that are not blank.
    pub lines: u64,
    /// It goes by itself after this time, if its owner said so by the way.
    pub ttl: Option<Duration>,
    /// What its owner calls it, if they said so by the way.
    pub filename: Option<String>,
}

/// A file as its owner sees it.
#[derive(Debug, Clone)]
pub struct FileView {
    /// The file.
    pub id: FileId,
    /// What it is for.
    pub purpose: FilePurpose,
    /// What its owner calls it.
    pub filename: String,
    /// Its length.
    pub bytes: u64,
    /// Its lines that are not blank.
    pub lines: u64,
    /// When its upload began.
    pub created_at: OffsetDateTime,
    /// When it goes by itself.
    pub expires_at: Option<OffsetDateTime>,
}

/// Which part of a project's list.
#[derive(Debug, Clone, Copy)]
pub struct FilePage {
    /// Only files of this purpose.
    pub purpose: Option<FilePurpose>,
    /// Only files behind this one.
    pub after: Option<FileId>,
    /// At most so many.
    pub limit: u32,
    /// Oldest first.
    pub ascending: bool,
}

/// What became of a wish to delete a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Nobody sees it any more; its object has still to go ([`forget`]).
    Done,
    /// A batch that has not ended reads it.
    InUse,
    /// The project has no such file.
    Unknown,
}

/// Notes a file that is about to be written; callers do not see it yet.
pub async fn begin(executor: impl PgExecutor<'_>, file: &NewFile) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO files (id, tenant_id, project_id, purpose, filename, status, expires_at)
         VALUES ($1, $2, $3, $4, $5, 'uploading', now() + $6::interval)",
    )
    .bind(file.id.uuid())
    .bind(file.tenant_id.uuid())
    .bind(file.project_id.uuid())
    .bind(file.purpose.as_str())
    .bind(&file.filename)
    .bind(file.ttl)
    .execute(executor)
    .await?;
    Ok(())
}

/// The file is whole; what its owner said of it by the way, if anything, counts. `None`: it was given up meanwhile.
pub async fn finish(executor: impl PgExecutor<'_>, id: FileId, whole: Whole) -> StoreResult<Option<FileView>> {
    let row = sqlx::query(
        "UPDATE files SET status = 'processed', bytes = $2, lines = $3, filename = coalesce($5, filename),
             expires_at = coalesce(created_at + $4::interval, expires_at)
         WHERE id = $1 AND status = 'uploading' RETURNING *",
    )
    .bind(id.uuid())
    .bind(whole.bytes.cast_signed())
    .bind(whole.lines.cast_signed())
    .bind(whole.ttl)
    .bind(whole.filename)
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(view).transpose()
}

/// As [`finish`], once for each claim: what came before leaves this one unfinished, to be removed. `render` makes the answer that a
/// repeated request with the same key will be shown.
pub async fn finish_once(
    pool: &Pool,
    id: FileId,
    whole: Whole,
    claim: Option<Claim>,
    render: fn(&FileView) -> Answer,
) -> StoreResult<Once<Option<FileView>>> {
    make_once(pool, claim, render, move |connection| {
        let whole = whole.clone();
        Box::pin(async move { finish(connection, id, whole).await })
    })
    .await
}

/// One file of a project.
pub async fn get(executor: impl PgExecutor<'_>, project: ProjectId, id: FileId) -> StoreResult<Option<FileView>> {
    let row = sqlx::query(
        "SELECT * FROM files WHERE id = $1 AND project_id = $2 AND status = 'processed'
             AND (expires_at IS NULL OR expires_at > now())",
    )
    .bind(id.uuid())
    .bind(project.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(view).transpose()
}

/// A page of a project's files.
pub async fn list(executor: impl PgExecutor<'_>, project: ProjectId, page: FilePage) -> StoreResult<Vec<FileView>> {
    let (order, beyond) = if page.ascending { ("ASC", ">") } else { ("DESC", "<") };
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT * FROM files WHERE project_id = $1 AND status = 'processed' AND (expires_at IS NULL OR expires_at > now())
             AND ($2::text IS NULL OR purpose = $2) AND ($3::uuid IS NULL OR id {beyond} $3)
         ORDER BY id {order} LIMIT $4"
    )))
    .bind(project.uuid())
    .bind(page.purpose.map(FilePurpose::as_str))
    .bind(page.after.map(Id::uuid))
    .bind(i64::from(page.limit))
    .persistent(false)
    .fetch_all(executor)
    .await?;
    rows.iter().map(view).collect()
}

/// Hides a file for good, unless a batch still needs it.
pub async fn delete(pool: &Pool, project: ProjectId, id: FileId) -> StoreResult<Deleted> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            // Whoever makes a batch of it holds it shared until that is committed.
            let found =
                sqlx::query("SELECT FROM files WHERE id = $1 AND project_id = $2 AND status = 'processed' FOR UPDATE")
                    .bind(id.uuid())
                    .bind(project.uuid())
                    .fetch_optional(&mut *connection)
                    .await?;
            if found.is_none() {
                return Ok(Deleted::Unknown);
            }
            let hidden = sqlx::query(AssertSqlSafe(format!(
                "UPDATE files f SET status = 'deleted' WHERE id = $1 AND NOT {IN_USE}"
            )))
            .bind(id.uuid())
            .execute(connection)
            .await?;
            Ok(if hidden.rows_affected() == 0 {
                Deleted::InUse
            } else {
                Deleted::Done
            })
        })
    })
    .await
}

/// Whether an unfinished batch reads the file `f`.
const IN_USE: &str = concat!(
    "EXISTS (SELECT FROM batches b WHERE b.input_file_id = f.id AND b.status IN ",
    unfinished!(),
    ")"
);

/// Where a sweep has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Swept {
    /// When the file was made: the oldest go first.
    pub created_at: OffsetDateTime,
    /// The file.
    pub id: FileId,
}

/// Hides one chunk of files whose time is over or whose upload was given up, and answers those and the ones hidden before, as far
/// as they come `after` another: their objects can go.
pub async fn sweep(pool: &Pool, after: Option<Swept>) -> StoreResult<Vec<Swept>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "WITH due AS MATERIALIZED (
             SELECT id FROM files f
             WHERE (status = 'deleted' OR status = 'uploading' AND created_at < now() - $1::interval
                    OR expires_at < now() AND status = 'processed' AND NOT {IN_USE})
                 AND ($3::timestamptz IS NULL OR (created_at, id) > ($3, $4))
             ORDER BY created_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
         )
         UPDATE files f SET status = 'deleted' FROM due WHERE f.id = due.id RETURNING f.created_at, f.id"
    )))
    .bind(UPLOAD_LIMIT)
    .bind(SWEPT)
    .bind(after.map(|file| file.created_at))
    .bind(after.map(|file| file.id.uuid()))
    .fetch_all(pool)
    .await?;
    let swept = |row| {
        Ok(Swept {
            created_at: column(row, "created_at")?,
            id: Id::from_uuid(column(row, "id")?),
        })
    };
    rows.iter().map(swept).collect()
}

/// The object of a hidden or unfinished file is gone, and so is its row.
pub async fn forget(executor: impl PgExecutor<'_>, id: FileId) -> StoreResult<()> {
    sqlx::query("DELETE FROM files WHERE id = $1 AND status IN ('deleted', 'uploading')")
        .bind(id.uuid())
        .execute(executor)
        .await?;
    Ok(())
}

fn view(row: &PgRow) -> StoreResult<FileView> {
    Ok(FileView {
        id: Id::from_uuid(column(row, "id")?),
        purpose: parse(row, "purpose")?,
        filename: column(row, "filename")?,
        bytes: column::<i64, _>(row, "bytes")?.cast_unsigned(),
        lines: column::<i64, _>(row, "lines")?.cast_unsigned(),
        created_at: column(row, "created_at")?,
        expires_at: column(row, "expires_at")?,
    })
}
