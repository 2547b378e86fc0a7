//! Dead letters: jobs that failed for good, why, and doing them again.

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::jobs::Page;
use super::once::{Once, once};
use super::rescue::CHUNK;
use super::retry::{Asker, Purpose, RenderChunk, run_again};
use super::row::{get, ids, json, unsigned};
use super::selection::Chunk;
use super::{Pool, StoreResult};
use crate::domain::{Id, JobError, JobId, ProjectId, TenantId};

/// A job that failed for good.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The job.
    pub job_id: JobId,
    /// Its model's name.
    pub model: String,
    /// `attempts_exhausted`, or the code of the error that no other attempt could mend.
    pub reason: String,
    /// How often it was claimed.
    pub attempts: u32,
    /// Leases of it that ran out.
    pub lapses: u32,
    /// Who had it last.
    pub worker_id: Option<uuid::Uuid>,
    /// Why its last attempt failed.
    pub last_error: Option<JobError>,
    /// When it failed.
    pub created_at: OffsetDateTime,
    /// When it was done again.
    pub redriven_at: Option<OffsetDateTime>,
    /// The new job.
    pub redriven_as: Option<JobId>,
}

/// Which dead letters to do again. What is `None` does not narrow.
#[derive(Debug, Clone, Default)]
pub struct RedriveFilter {
    /// Of one tenant.
    pub tenant: Option<TenantId>,
    /// Of one model name.
    pub model: Option<String>,
    /// For one reason.
    pub reason: Option<String>,
    /// Failed at this time or later.
    pub created_after: Option<OffsetDateTime>,
    /// Failed before this time.
    pub created_before: Option<OffsetDateTime>,
    /// Younger than this one: where the chunk before ended.
    pub after: Option<JobId>,
}

/// A page of dead letters, newest job first; of all projects if none is named.
pub async fn list(
    executor: impl PgExecutor<'_>,
    project: Option<ProjectId>,
    page: Page,
) -> StoreResult<Vec<DeadLetter>> {
    let rows = sqlx::query(
        "SELECT * FROM dead_letters WHERE ($1::uuid IS NULL OR project_id = $1) AND ($2::uuid IS NULL OR job_id < $2)
         ORDER BY job_id DESC LIMIT $3",
    )
    .bind(project.map(Id::uuid))
    .bind(page.after.map(Id::uuid))
    .bind(i64::from(page.limit))
    // Planned anew for what is asked, as in `selection.rs`.
    .persistent(false)
    .fetch_all(executor)
    .await?;
    rows.iter().map(letter).collect()
}

/// Does one chunk of dead letters again, each as a new job and each once: safe to repeat. It stops at the first one that has
/// no room.
pub async fn redrive(
    pool: &Pool,
    filter: RedriveFilter,
    asker: Asker,
    render: RenderChunk,
) -> StoreResult<Once<Chunk>> {
    let claim = asker.claim.clone();
    let answer = move |chunk: &Chunk| Some((None, render(chunk)));
    once(pool, claim, answer, move |connection| {
        let (filter, asker) = (filter.clone(), asker.clone());
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT job_id FROM dead_letters WHERE redriven_at IS NULL
                     AND ($1::uuid IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR model = $2)
                     AND ($3::text IS NULL OR reason = $3)
                     AND ($4::timestamptz IS NULL OR created_at >= $4)
                     AND ($5::timestamptz IS NULL OR created_at < $5) AND ($6::uuid IS NULL OR job_id > $6)
                 ORDER BY job_id LIMIT $7 FOR UPDATE",
            )
            .bind(filter.tenant.map(Id::uuid))
            .bind(filter.model)
            .bind(filter.reason)
            .bind(filter.created_after)
            .bind(filter.created_before)
            .bind(filter.after.map(Id::uuid))
            .bind(CHUNK)
            .persistent(false)
            .fetch_all(&mut *connection)
            .await?;
            let old: Vec<JobId> = ids(&rows, "job_id")?;
            let again = run_again(connection, &old, Purpose::Retry, &asker).await?;
            let (dead, new): (Vec<_>, Vec<_>) = again.made.iter().map(|(old, new)| (old.uuid(), new.uuid())).unzip();
            sqlx::query(
                "UPDATE dead_letters d SET redriven_at = now(), redriven_as = made.new
                 FROM unnest($1::uuid[], $2::uuid[]) AS made (old, new) WHERE d.job_id = made.old",
            )
            .bind(dead)
            .bind(new)
            .execute(connection)
            .await?;
            Ok(again.chunk(&old, filter.after))
        })
    })
    .await
}

fn letter(row: &PgRow) -> StoreResult<DeadLetter> {
    Ok(DeadLetter {
        job_id: Id::from_uuid(get(row, "job_id")?),
        model: get(row, "model")?,
        reason: get(row, "reason")?,
        attempts: unsigned(row, "attempts")?,
        lapses: unsigned(row, "lapses")?,
        worker_id: get(row, "worker_id")?,
        last_error: json(row, "last_error")?,
        created_at: get(row, "created_at")?,
        redriven_at: get(row, "redriven_at")?,
        redriven_as: get::<Option<_>, _>(row, "redriven_as")?.map(Id::from_uuid),
    })
}
