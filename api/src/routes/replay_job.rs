//! `POST /v1/jobs/{id}/replay` does an ended job again, and `GET` on the new job says whether it drew the same tokens.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use claimcheck_common::domain::{JobId, JobStatus, Runtime};
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::store::notify::Of;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::replay::{self, Difference, Replay, Run};
use claimcheck_common::store::retry::{self, Purpose};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::get_job::WAIT_MAX;
use super::retry_job::accepted;
use super::submit_job::LOOK_AFTER;
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Metered, Query};
use crate::idempotent::{answered, answered_before, asker, json_answer};
use crate::validate::number::from_text;
use crate::view::StatusSchema;
use crate::waiting::until;

/// A replay.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayBody {
    /// The id of the job that does it again.
    pub id: String,
    /// Always `job.replay`.
    pub object: &'static str,
    /// The id of the job that was done before.
    pub replay_of: String,
    /// Where the new job stands.
    #[schema(value_type = StatusSchema)]
    pub status: JobStatus,
    /// Whether both drew the same tokens; null until the new job has ended, and if it ended without an output. A first run
    /// that was cut off is compared as far as it came.
    #[schema(required)]
    pub matches: Option<bool>,
    /// The first token that differs.
    #[schema(required)]
    pub first_difference: Option<DifferenceBody>,
    /// Whether both ran on the same weights; without that no equal tokens are promised.
    #[schema(required)]
    pub same_weights: Option<bool>,
    /// Whether the weights were kept in the same type; without that no equal tokens are promised.
    #[schema(required)]
    pub same_dtype: Option<bool>,
    /// Whether both ran on the same build.
    #[schema(required)]
    pub same_build: Option<bool>,
}

/// Where two runs first differ.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Difference)]
pub struct DifferenceBody {
    /// Which choice.
    pub choice: usize,
    /// Which of its tokens, counted from 0.
    pub position: usize,
    /// The token of the job that was done before; null if that run had ended.
    #[schema(required)]
    pub original: Option<u32>,
    /// The replay's token; null if it had ended.
    #[schema(required)]
    pub replayed: Option<u32>,
}

/// Replay a job
///
/// Does an ended job again (same prompt, parameters and seed), as a new job whose `replay_of` names this one. Whether the
/// tokens match is told at the `Location`.
#[utoipa::path(post, path = "/v1/jobs/{id}/replay", tag = "Jobs",
    params(
        ("id" = String, Path, description = "The ended job's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
    ),
    responses(
        (status = 202, body = ReplayBody, description = "The replay", headers(
            ("Location" = String, description = "Where its verdict will be"),
            ("Retry-After" = u32, description = "Seconds until a first look is worth while"),
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 400, body = ErrorBody, description = "The key is none, or a parameter is unknown"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        (status = 409, body = ErrorBody, description = "It has not ended (`job_not_ended`), is erased (`job_erased`) or has no tokens \
            (`job_without_tokens`), or the first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`), or a budget has too little left (`budget_exceeded`)"),
        NeedsToken, Trouble,
    ))]
pub async fn replay_job(
    State(state): State<AppState>,
    Metered(caller): Metered,
    JobIdPath(id): JobIdPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let asker = asker(&state, &caller, &headers, &format!("replay {id}"), &[])?;
    let outcome = retry::retry(&state.pool, caller.project_id, id, Purpose::Replay, asker, render).await?;
    let replayed = match outcome {
        Once::Done(replayed) => accepted(replayed, "replayed")?,
        Once::Before(before) => return answered_before(before),
    };
    state.outgoing.anywhere();
    answered(render(&replayed))
}

/// Get a replay's verdict
///
/// With `wait`, the answer comes when the new job has ended, or when that many seconds have passed.
#[utoipa::path(get, path = "/v1/jobs/{id}/replay", tag = "Jobs",
    params(
        ("id" = String, Path, description = "The id of the job that does it again"),
        ("wait" = Option<u32>, Query, minimum = 0, maximum = 60, description = "Seconds to wait for its end (0)"),
    ),
    responses(
        (status = 200, body = ReplayBody, description = "The replay"),
        (status = 400, body = ErrorBody, description = "`wait` is not a whole number from 0 to 60"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours, or it replays none"),
        NeedsToken, Trouble,
    ))]
pub async fn get_replay(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
) -> Result<axum::Json<ReplayBody>, ApiError> {
    let wait = query
        .only(&["wait"])?
        .get("wait", |text| from_text(text, 0..=WAIT_MAX))?
        .unwrap_or(0);
    let replay = ended(&state, &caller, id, Duration::from_secs(wait.into())).await?;
    Ok(axum::Json(ReplayBody::from(&replay)))
}

/// The replay when it has ended, or as it is after `wait`.
async fn ended(state: &AppState, caller: &Caller, id: JobId, wait: Duration) -> Result<Replay, ApiError> {
    let deadline = Instant::now() + wait;
    let read = || async {
        let replay = replay::find(&state.pool, caller.project_id, id).await?;
        replay.ok_or_else(job_not_found)
    };
    until(state, id, Of::TheEnd, deadline, read, |replay| {
        replay.status.is_terminal()
    })
    .await
}

/// The answer to a replay that was just made, and to its request whenever it is repeated.
fn render(view: &JobView) -> Answer {
    let id = view.key.id.to_string();
    let headers = [
        (header::LOCATION, format!("/v1/jobs/{id}/replay")),
        (header::RETRY_AFTER, LOOK_AFTER.to_owned()),
    ];
    let body = ReplayBody {
        id,
        object: "job.replay",
        replay_of: view.replay_of.map(|id| id.to_string()).unwrap_or_default(),
        status: view.status,
        matches: None,
        first_difference: None,
        same_weights: None,
        same_dtype: None,
        same_build: None,
    };
    json_answer(StatusCode::ACCEPTED, headers, &body)
}

impl From<&Replay> for ReplayBody {
    fn from(replay: &Replay) -> Self {
        let verdict = replay.verdict();
        let runtimes = both(&replay.first, &replay.again);
        Self {
            id: replay.id.to_string(),
            object: "job.replay",
            replay_of: replay.replay_of.to_string(),
            status: replay.status,
            matches: verdict.map(|verdict| verdict.is_ok()),
            first_difference: verdict.and_then(Result::err).map(DifferenceBody::from),
            same_weights: runtimes.map(|(first, again)| first.weights_sha256 == again.weights_sha256),
            same_dtype: runtimes.map(|(first, again)| first.dtype == again.dtype),
            same_build: runtimes.map(|(first, again)| first.build == again.build),
        }
    }
}

fn both<'a>(first: &'a Run, again: &'a Run) -> Option<(&'a Runtime, &'a Runtime)> {
    Some((first.runtime.as_ref()?, again.runtime.as_ref()?))
}

impl From<Difference> for DifferenceBody {
    fn from(difference: Difference) -> Self {
        Self {
            choice: difference.choice,
            position: difference.position,
            original: difference.first,
            replayed: difference.again,
        }
    }
}
