//! `POST /v1/completions`, as OpenAI has it: the jobs are ordinary ones of class interactive, and the caller waits for them
//! at the open connection. Whoever hangs up has them cancelled some seconds later, unless a retry takes them up again.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::{JobStatus, Prompt};
use claimcheck_common::store::jobs::JobView;
use tokio::time::Instant;

use super::submit_job::prepare;
use crate::app::AppState;
use crate::docs::{BadBody, StreamEvent, Trouble};
use crate::dry_run;
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, Metered, RawJson, json};
use crate::parts::Parts;
use crate::streams;
use crate::streams::sse::Room;
use crate::validate::completion::{CreateCompletion, Delivery};
use crate::validate::job::SubmitJob;
use crate::validate::text::Text;
use crate::view::{self, OutputBody};
use crate::waiting::until_ended;

/// A caller waits at most so long; client libraries give up by themselves after as long.
pub const WAIT_MAX: Duration = Duration::from_mins(10);

/// Create a completion
///
/// OpenAI's own shape, for its client libraries. The answer comes when the text is there; with `stream` it comes as
/// server-sent events, a chunk of the same shape each, and `[DONE]`. A caller that hangs up has its
/// jobs cancelled after 15 seconds, unless it repeats the request: that takes the same jobs up again.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CreateCompletion,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, description = "The completion, or its pieces as events",
            content((OutputBody = "application/json"), (StreamEvent = "text/event-stream"))),
        (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
        (status = 409, body = ErrorBody, description = "The job was cancelled, or the first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another body"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`)"),
        BadBody, Trouble,
    ))]
pub async fn create_completion(
    State(state): State<AppState>,
    Metered(caller): Metered,
    headers: HeaderMap,
    RawJson(raw): RawJson,
) -> Result<Response, ApiError> {
    let request: CreateCompletion = json::parse(&raw)?;
    let asks_only = request.dry_run == Some(true);
    let (shape, jobs) = request.into_jobs()?;
    if asks_only {
        let mut checked = Vec::with_capacity(jobs.len());
        for job in jobs {
            checked.push(prepare(&state, &caller, &headers, job).await?);
        }
        return dry_run::answer(&state, &checked).await;
    }
    let echoes = if shape.echo {
        texts(&state, &caller, &jobs).await?
    } else {
        Vec::new()
    };
    let room = match shape.delivery {
        Delivery::Whole => None,
        Delivery::Streamed { .. } => Some(Room::take(&state)?),
    };
    let deadline = Instant::now() + WAIT_MAX;
    let parts = Parts {
        state: &state,
        caller: &caller,
        headers: &headers,
        route: "/v1/completions",
        raw: &raw,
        attended: true,
    };
    let parts = parts.submit(jobs).await?;
    if let Some(room) = room {
        let chunks = streams::completion::chunks(&state, &caller, shape, parts, echoes);
        let chunks = chunks.ok_or_else(|| ApiError::internal("a request without a prompt"))?;
        return Ok(streams::sse::answer(room, chunks));
    }
    let mut ended = Vec::with_capacity(parts.len());
    for part in &parts {
        ended.push(completed(
            until_ended(&state, caller.project_id, part.id, deadline).await?,
        )?);
    }
    let body = view::completion(shape, &ended, &echoes);
    Ok(Json(body.ok_or_else(erased)?).into_response())
}

/// What each prompt says.
async fn texts(state: &AppState, caller: &Caller, jobs: &[SubmitJob]) -> Result<Vec<String>, ApiError> {
    let mut texts = Vec::with_capacity(jobs.len());
    for job in jobs {
        texts.push(match &job.prompt.0 {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(ids) => {
                let name = job.model.as_ref().map(Text::as_str);
                let served = state.catalog.find(name, caller.notes.names()).await?;
                let tokenizer = state.catalog.tokenizer(&served).await?;
                tokenizer.decode(ids).map_err(ApiError::internal)?
            }
        });
    }
    Ok(texts)
}

/// A job that has its output, or the failure that its caller is told of.
pub(crate) fn completed(job: JobView) -> Result<JobView, ApiError> {
    let reason = || job.error.as_ref().map_or("It failed.", |error| error.message.as_str());
    match job.status {
        JobStatus::Completed => Ok(job),
        JobStatus::Failed
            if job
                .error
                .as_ref()
                .is_some_and(|error| error.kind == "invalid_request_error") =>
        {
            Err(ApiError::Invalid(Problem::new("job_failed", reason())))
        }
        JobStatus::Failed | JobStatus::Expired => Err(ApiError::JobFailed(Problem::new("job_failed", reason()))),
        JobStatus::Cancelled => Err(ApiError::Conflict(Problem::new(
            "job_cancelled",
            "The job was cancelled before it was done; send the request again, with another Idempotency-Key if it has one.",
        ))),
        _ => Err(ApiError::busy(
            "The job is not done yet; send the same request again to go on waiting for it.",
            1,
        )),
    }
}

fn erased() -> ApiError {
    ApiError::NotFound(Problem::new(
        "job_erased",
        "The output of this request has been erased.",
    ))
}
