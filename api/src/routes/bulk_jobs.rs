//! `POST /v1/jobs/cancel` and `POST /v1/jobs/retry`: one change to many jobs, chunk by chunk.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use claimcheck_common::store::{cancels, retry};

use crate::app::AppState;
use crate::docs::{BadBody, NeedsAdmin, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Json, Metered};
use crate::idempotent::{asker, chunk_done, render_chunk};
use crate::validate::selection::SelectJobs;
use crate::view::BulkBody;

/// Cancel many jobs
///
/// At most 500 in one call, the oldest first; safe to repeat. Go on with `after` while `has_more`.
#[utoipa::path(post, path = "/v1/jobs/cancel", tag = "Jobs", request_body = SelectJobs,
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
    let chunk = cancels::cancel_selected(&state.pool, selection, caller.by()).await?;
    Ok(axum::Json(chunk.into()))
}

/// Retry many jobs
///
/// Makes a new job for each ended one that is selected and not erased; at most 500 in one call, the oldest first. Go on
/// with `after` while `has_more`: who starts anew makes new jobs anew. An `Idempotency-Key` makes a call safe to repeat for 24
/// hours; each call of a series wants a key of its own. It stops before the first job that would exceed the quota of waiting
/// jobs, and says so in `stopped_by`.
#[utoipa::path(post, path = "/v1/jobs/retry", tag = "Jobs", request_body = SelectJobs,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, body = BulkBody, description = "How many new jobs there are"),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        BadBody, NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn retry_jobs(
    State(state): State<AppState>,
    Metered(caller): Metered,
    headers: HeaderMap,
    body: Json<SelectJobs>,
) -> Result<Response, ApiError> {
    let asker = asker(&state, &caller, &headers, "retry", &body.raw)?;
    let selection = body.value.into_selection(&caller)?;
    let once = retry::retry_selected(&state.pool, selection, asker, render_chunk).await?;
    state.outgoing.anywhere();
    chunk_done(once)
}
