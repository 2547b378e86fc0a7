//! `POST /v1/jobs/{id}/cancel`: asks a job to stop. A waiting job ends at once, a running one within a step or two.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::cancels;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};
use crate::view::JobBody;
use crate::waiting::delivered;

/// Cancel a job
///
/// Safe to repeat. A job that has ended stays as it is; one that is running is `cancelling` until its worker has let go
/// and then always `cancelled`, with what was generated.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "Jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, body = JobBody, description = "The job as it is now"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn cancel_job(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
) -> Result<Json<JobBody>, ApiError> {
    query.only(&[])?;
    let job = cancels::request_cancel(&state.pool, caller.project_id, id, caller.by())
        .await?
        .ok_or_else(job_not_found)?;
    delivered(&state, &job).await?;
    Ok(Json(JobBody::from(&job)))
}
