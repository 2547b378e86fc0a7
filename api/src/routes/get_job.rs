//! `GET /v1/jobs/{id}`: one job, at once or when it has something new to say (`waiting.rs`).

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::store::notify::Of;
use tokio::time::Instant;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};
use crate::validate::number::from_text;
use crate::view::{IfNoneMatch, JobBody, Rendered};
use crate::waiting::{delivered, read_job, until};

pub(super) const WAIT_MAX: u32 = 60;

/// Get a job
///
/// With `wait`, the answer comes when the job has ended, or (if `If-None-Match` is sent) when it has changed, or when
/// that many seconds have passed.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "Jobs",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("wait" = Option<u32>, Query, minimum = 0, maximum = 60, description = "Seconds to wait for news (0)"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` that the caller has"),
    ),
    responses(
        (status = 200, body = JobBody, description = "The job", headers(
            ("ETag" = String, description = "Strong validator of this body"),
            ("Retry-After" = u32, description = "Present while the job has not ended: seconds until the next look"),
        )),
        (status = 304, description = "Nothing new"),
        (status = 400, body = ErrorBody, description = "`wait` is not a whole number from 0 to 60"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn get_job(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wait = query
        .only(&["wait"])?
        .get("wait", |text| from_text(text, 0..=WAIT_MAX))?
        .unwrap_or(0);
    let known = IfNoneMatch::read(&headers);
    let deadline = Instant::now() + Duration::from_secs(wait.into());
    let read = || async {
        let job = read_job(&state, caller.project_id, id).await?;
        let job = job.ok_or_else(job_not_found)?;
        let rendered = Rendered::new(&job).map_err(ApiError::internal)?;
        state.promises.seen(id, job.started_at, job.status.is_terminal());
        Ok((job, rendered))
    };
    // Who has a state waits for another one, who has none for the end.
    let news = if known.is_present() { Of::Changes } else { Of::TheEnd };
    let (job, rendered) = until(&state, id, news, deadline, read, |(job, rendered)| {
        job.status.is_terminal() || (known.is_present() && !known.has(&rendered.etag))
    })
    .await?;
    delivered(&state, &job).await?;
    Ok(answer(rendered, &known, job.status.is_terminal()))
}

fn answer(rendered: Rendered, known: &IfNoneMatch, ended: bool) -> Response {
    let etag = rendered.etag_header();
    let mut response = if known.has(&rendered.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], rendered.body).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    // Only for its owner, and to be asked about again each time.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if !ended {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
