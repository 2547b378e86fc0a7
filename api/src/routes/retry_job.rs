//! `POST /v1/jobs/{id}/retry`: does an ended job again, as a new job.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::retry::{self, Purpose, Retried};

use super::submit_job::render;
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::job_not_found;
use crate::extract::{JobIdPath, Metered, Query};
use crate::idempotent::{answered, answered_before, asker};
use crate::refusal::refused;
use crate::view::JobBody;

/// Retry a job
///
/// Makes a new job with the same prompt, parameters and seed; its `retry_of` names this one. It has all its attempts and
/// no deadline. With an `Idempotency-Key` a repeated request gets the first answer again for 24 hours, and no second job.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "Jobs",
    params(
        ("id" = String, Path, description = "The ended job's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
    ),
    responses(
        (status = 202, body = JobBody, description = "The new job", headers(
            ("Location" = String, description = "Where the new job is"),
            ("Retry-After" = u32, description = "Seconds until a first look is worth while"),
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 400, body = ErrorBody, description = "The key is none, or a parameter is unknown"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        (status = 409, body = ErrorBody, description = "It has not ended (`job_not_ended`) or is erased (`job_erased`), or the first \
            request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`), or a budget has too little left (`budget_exceeded`)"),
        NeedsToken, Trouble,
    ))]
pub async fn retry_job(
    State(state): State<AppState>,
    Metered(caller): Metered,
    JobIdPath(id): JobIdPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let asker = asker(&state, &caller, &headers, &format!("retry {id}"), &[])?;
    let retried = match retry::retry(&state.pool, caller.project_id, id, Purpose::Retry, asker, render).await? {
        Once::Done(retried) => retried,
        Once::Before(before) => return answered_before(before),
    };
    accepted(retried, "retried").and_then(|view| {
        state.outgoing.anywhere();
        answered(render(&view))
    })
}

/// The new job, or why there is none; `done` is what an ended job was to be.
pub(super) fn accepted(retried: Retried, done: &str) -> Result<Box<JobView>, ApiError> {
    let refused = match retried {
        Retried::Accepted(view) => return Ok(view),
        Retried::Running => not_ended(done),
        Retried::Erased => ApiError::Conflict(Problem::new(
            "job_erased",
            "The job's prompt is erased; submit it again with its prompt.",
        )),
        Retried::NoTokens => ApiError::Conflict(Problem::new(
            "job_without_tokens",
            "The job has no tokens that a replay could be held against; retry it instead.",
        )),
        Retried::Unknown => job_not_found(),
        Retried::Refused(refusal) => refused(refusal),
    };
    Err(refused)
}

/// Only what has ended can be done again or erased.
pub(super) fn not_ended(what: &str) -> ApiError {
    ApiError::Conflict(Problem::new(
        "job_not_ended",
        format!("The job has not ended; only an ended job can be {what}. Cancel it or wait."),
    ))
}
