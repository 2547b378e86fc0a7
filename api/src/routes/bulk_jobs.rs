//! `POST /v1/jobs/cancel` and `POST /v1/jobs/retry`: one change to many jobs, chunk by chunk.

use axum::extract::State;
use claimcheck_common::store::{cancels, retry};

use crate::app::AppState;
use crate::docs::{BadBody, NeedsAdmin, NeedsToken, Trouble};
use crate::error::ApiError;
use crate::extract::{Caller, Json};
use crate::validate::selection::SelectJobs;
use crate::view::BulkBody;

/// Cancel many jobs
///
/// At most 500 in one call, the oldest first; safe to repeat. Go on with `after` while `has_more`.
#[utoipa::path(post, path = "/v1/jobs/cancel", tag = "Jobs", security(("bearer" = [])), request_body = SelectJobs,
    responses(
        (status = 200, body = BulkBody, description = "How many were cancelled or are being cancelled"),
        BadBody, NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn cancel_jobs(
    State(state): State<AppState>,
    caller: Caller,
    body: Json<SelectJobs>,
) -> Result<axum::Json<BulkBody>, ApiError> {
    let selection = body.value.into_selection(&caller)?;
    let chunk = cancels::cancel_selected(&state.pool, selection, caller.actor()).await?;
    Ok(axum::Json(chunk.into()))
}

/// Retry many jobs
///
/// Makes a new job for each ended one that is selected and not erased; at most 500 in one call, the oldest first. Go on
/// with `after` while `has_more`: who starts anew makes new jobs anew.
#[utoipa::path(post, path = "/v1/jobs/retry", tag = "Jobs", security(("bearer" = [])), request_body = SelectJobs,
    responses(
        (status = 200, body = BulkBody, description = "How many new jobs there are"),
        BadBody, NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn retry_jobs(
    State(state): State<AppState>,
    caller: Caller,
    body: Json<SelectJobs>,
) -> Result<axum::Json<BulkBody>, ApiError> {
    let selection = body.value.into_selection(&caller)?;
    let chunk = retry::retry_selected(&state.pool, selection, caller.actor()).await?;
    state.submitted.notify_one();
    Ok(axum::Json(chunk.into()))
}
