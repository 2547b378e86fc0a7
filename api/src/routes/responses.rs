//! `/v1/responses`, as OpenAI has it, with plain text: a response is a job under another name.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::{HeaderMap, request};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::JobId;
use claimcheck_common::store::cancels;
use claimcheck_common::store::erase::{self, Erased};
use claimcheck_common::store::jobs::{self, JobView};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::completions::{WAIT_MAX, completed};
use crate::app::AppState;
use crate::docs::{BadBody, StreamEvent, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, Metered, Query, RawJson, json};
use crate::parts::{Part, Parts};
use crate::streams::sse::{self, Room};
use crate::streams::{Cursor, JobStream, response};
use crate::validate::response::CreateResponse;
use crate::view::{ResponseBody, job_of_response, response_id};
use crate::waiting::{delivered, until_ended};

/// A cancelled response's worker lets go within a step; the answer waits so long for it.
const CANCEL_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Create a response
///
/// OpenAI's own shape. With `background` the answer comes at once: fetch the response until it has ended. Without, it comes
/// with the text, and a caller that hangs up has it cancelled after 15 seconds, unless it repeats the request.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = CreateResponse,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, description = "The response, or events",
            content((ResponseBody = "application/json"), (StreamEvent = "text/event-stream"))),
        (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
        (status = 409, body = ErrorBody, description = "It was cancelled, or the first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another body"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`)"),
        BadBody, Trouble,
    ))]
pub async fn create_response(
    State(state): State<AppState>,
    Metered(caller): Metered,
    headers: HeaderMap,
    RawJson(raw): RawJson,
) -> Result<Response, ApiError> {
    let request: CreateResponse = json::parse(&raw)?;
    let (manner, job) = request.into_job()?;
    let room = if manner.stream { Some(Room::take(&state)?) } else { None };
    let deadline = Instant::now() + WAIT_MAX;
    let parts = Parts {
        state: &state,
        caller: &caller,
        headers: &headers,
        route: "/v1/responses",
        raw: &raw,
        attended: !manner.background,
    };
    let part = parts.submit(vec![job]).await?.pop();
    let part = part.ok_or_else(|| ApiError::internal("a request without a job"))?;
    if let Some(room) = room {
        return Ok(stream(&state, &caller, room, part, manner.background, None));
    }
    let job = if manner.background {
        let job = find(&state, &caller, part.id).await?;
        delivered(&state, &job).await?;
        job
    } else {
        completed(until_ended(&state, caller.project_id, part.id, deadline).await?)?
    };
    Ok(Json(ResponseBody::new(&job, manner.background)).into_response())
}

/// Get a response
///
/// With `stream=true` as events: those after `starting_after`, if it is given.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI",
    params(
        ("id" = String, Path, description = "The response's id"),
        ("stream" = Option<bool>, Query, description = "As server-sent events (false)"),
        ("starting_after" = Option<u32>, Query, description = "Only events after this number"),
    ),
    responses(
        (status = 200, description = "The response, or events",
            content((ResponseBody = "application/json"), (StreamEvent = "text/event-stream"))),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or does not read"),
        (status = 404, body = ErrorBody, description = "No such response, not yours, or deleted"),
        Trouble,
    ))]
pub async fn get_response(
    State(state): State<AppState>,
    caller: Caller,
    ResponsePath(id): ResponsePath,
    query: Query,
) -> Result<Response, ApiError> {
    let query = query.only(&["stream", "starting_after", "include_obfuscation"])?;
    let truth = |text: &str| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    };
    let streams = query.get("stream", truth)?.unwrap_or(false);
    query.get("include_obfuscation", truth)?;
    let after = query.get("starting_after", |text| {
        text.parse::<u64>()
            .map_err(|_| "must be the number of an event".to_owned())
    })?;
    if after.is_some() && !streams {
        return Err(ApiError::invalid(
            "starting_after",
            "`starting_after` is only allowed with `stream`=true.",
        ));
    }
    let job = find(&state, &caller, id).await?;
    if !streams {
        delivered(&state, &job).await?;
        return Ok(Json(ResponseBody::new(&job, true)).into_response());
    }
    let room = Room::take(&state)?;
    let part = Part {
        id: job.key.id,
        attending: None,
    };
    Ok(stream(&state, &caller, room, part, true, after))
}

/// Cancel a response
///
/// Safe to repeat; one that has ended stays as it is.
#[utoipa::path(post, path = "/v1/responses/{id}/cancel", tag = "OpenAI",
    params(("id" = String, Path, description = "The response's id")),
    responses(
        (status = 200, body = ResponseBody, description = "The response as it is now"),
        (status = 404, body = ErrorBody, description = "No such response, not yours, or deleted"),
        Trouble,
    ))]
pub async fn cancel_response(
    State(state): State<AppState>,
    caller: Caller,
    ResponsePath(id): ResponsePath,
    query: Query,
) -> Result<Json<ResponseBody>, ApiError> {
    query.only(&[])?;
    find(&state, &caller, id).await?;
    cancels::request_cancel(&state.pool, caller.project_id, id, caller.by())
        .await?
        .ok_or_else(not_found)?;
    let job = until_ended(&state, caller.project_id, id, Instant::now() + CANCEL_WAIT).await?;
    Ok(Json(ResponseBody::new(&job, true)))
}

/// What is left of a deleted response.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedBody {
    /// Its id.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Delete a response
///
/// Its texts are erased; the facts of the job stay.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "The response's id")),
    responses(
        (status = 200, body = DeletedBody, description = "Deleted"),
        (status = 404, body = ErrorBody, description = "No such response, not yours, or deleted"),
        (status = 409, body = ErrorBody, description = "It has not ended: cancel it first"),
        Trouble,
    ))]
pub async fn delete_response(
    State(state): State<AppState>,
    caller: Caller,
    ResponsePath(id): ResponsePath,
    query: Query,
) -> Result<Json<DeletedBody>, ApiError> {
    query.only(&[])?;
    let job = find(&state, &caller, id).await?;
    match erase::erase(&state.pool, caller.project_id, job.key.id, caller.by()).await? {
        Erased::Done => Ok(Json(DeletedBody {
            id: response_id(job.key.id),
            object: "response",
            deleted: true,
        })),
        Erased::Unknown => Err(not_found()),
        Erased::Running => Err(ApiError::Conflict(Problem::new(
            "response_not_ended",
            "The response has not ended; cancel it first.",
        ))),
    }
}

fn stream(state: &AppState, caller: &Caller, room: Room, part: Part, background: bool, after: Option<u64>) -> Response {
    let job = JobStream::new(state, caller.project_id, part.id, Cursor::default(), None);
    sse::answer(room, response::events(job, part, background, after))
}

async fn find(state: &AppState, caller: &Caller, id: JobId) -> Result<JobView, ApiError> {
    let job = jobs::get(&state.pool, caller.project_id, id).await?;
    job.filter(|job| job.erased_at.is_none()).ok_or_else(not_found)
}

/// The job that the `{id}` of a response's route leads to.
#[derive(Debug, Clone, Copy)]
pub struct ResponsePath(JobId);

impl<S: Send + Sync> FromRequestParts<S> for ResponsePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| not_found())?;
        job_of_response(&text).map(Self).ok_or_else(not_found)
    }
}

fn not_found() -> ApiError {
    ApiError::NotFound(Problem::new("response_not_found", "There is no such response.").at("id"))
}
