//! Doing one thing to many jobs: which ones, and how far it has come.
//!
//! A call takes one chunk, oldest first, in a transaction of its own, and says where the next one goes on: whoever is cut
//! off goes on from there, and asking twice changes nothing twice.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection};
use time::OffsetDateTime;

use super::StoreResult;
use super::quota::Refusal;
use super::rescue::CHUNK;
use crate::domain::{Id, JobId, JobStatus, ProjectId, TenantId};

/// Which jobs. What is `None` does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of one project.
    pub project: Option<ProjectId>,
    /// Of one tenant.
    pub tenant: Option<TenantId>,
    /// In one state.
    pub status: Option<JobStatus>,
    /// Of one model name.
    pub model: Option<String>,
    /// With all these notes of the caller's.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Accepted at this time or later.
    pub created_after: Option<OffsetDateTime>,
    /// Accepted before this time.
    pub created_before: Option<OffsetDateTime>,
    /// Younger than this one: where the chunk before ended.
    pub after: Option<JobId>,
}

/// What became of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Jobs that it was done to.
    pub count: u64,
    /// The last job that was looked at: where the next chunk goes on.
    pub last: Option<JobId>,
    /// Whether there may be more.
    pub has_more: bool,
    /// Why it stopped short of the chunk's end.
    pub refused: Option<Refusal>,
}

impl Chunk {
    pub(super) fn of(count: u64, looked_at: &[JobId]) -> Self {
        Self {
            count,
            last: looked_at.last().copied(),
            has_more: looked_at.len() as i64 == CHUNK,
            refused: None,
        }
    }
}

/// Locks one chunk of the selected jobs that `condition` (SQL over `j`) holds for, and answers their `columns`.
pub(super) async fn lock_chunk(
    connection: &mut PgConnection,
    selection: &Selection,
    columns: &'static str,
    condition: &'static str,
) -> StoreResult<Vec<PgRow>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT {columns} FROM jobs j
         WHERE {condition} AND ($1::uuid IS NULL OR j.project_id = $1) AND ($2::uuid IS NULL OR j.tenant_id = $2
                 AND j.project_id IN (SELECT id FROM projects WHERE organization_id = $2))
             AND ($3::text IS NULL OR j.status = $3) AND ($4::text IS NULL OR j.model = $4)
             AND ($5::jsonb IS NULL OR EXISTS (
                 SELECT FROM job_inputs i WHERE i.job_id = j.id AND i.metadata @> $5))
             AND ($6::timestamptz IS NULL OR j.created_at >= $6) AND ($7::timestamptz IS NULL OR j.created_at < $7)
             AND ($8::uuid IS NULL OR j.id > $8)
         ORDER BY j.id LIMIT $9 FOR UPDATE OF j"
    )))
    .bind(selection.project.map(Id::uuid))
    .bind(selection.tenant.map(Id::uuid))
    .bind(selection.status.map(JobStatus::as_str))
    .bind(selection.model.as_deref())
    .bind(selection.metadata.as_ref().map(sqlx::types::Json))
    .bind(selection.created_after)
    .bind(selection.created_before)
    .bind(selection.after.map(Id::uuid))
    .bind(CHUNK)
    // Planned anew for what is asked: one plan for all filters would walk the whole table.
    .persistent(false)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
