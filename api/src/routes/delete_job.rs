//! `DELETE /v1/jobs/{id}`: erases an ended job's prompt and output; its facts and its audit rows stay.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::erase::{self, Erased};
use claimcheck_common::store::jobs;

use super::retry_job::not_ended;
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};
use crate::view::JobBody;

/// Erase a job's texts
///
/// Prompt, parameters, metadata and output go at once and for good. What happened when stays. Safe to repeat.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "Jobs",
    params(("id" = String, Path, description = "The ended job's id")),
    responses(
        (status = 200, body = JobBody, description = "What is left of the job"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        (status = 409, body = ErrorBody, description = "It has not ended (`job_not_ended`)"),
        NeedsToken, Trouble,
    ))]
pub async fn delete_job(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
) -> Result<Json<JobBody>, ApiError> {
    query.only(&[])?;
    match erase::erase(&state.pool, caller.project_id, id, caller.by()).await? {
        Erased::Done => {}
        Erased::Running => return Err(not_ended("erased")),
        Erased::Unknown => return Err(job_not_found()),
    }
    let left = jobs::get(&state.pool, caller.project_id, id).await?;
    Ok(Json(JobBody::from(&left.ok_or_else(job_not_found)?)))
}
