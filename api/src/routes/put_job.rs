//! `PUT /v1/jobs/{client_id}`: creates a job under the caller's own id, once however often it is sent.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claimcheck_common::store::idempotency::{Answer, Before, ClaimedBy};
use claimcheck_common::store::submit::Submitted;

use super::submit_job::{accept, prepare, render};
use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::dry_run;
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Metered, RawJson};
use crate::idempotent::{answered, replayed};
use crate::refusal::refused;
use crate::validate::idempotency;
use crate::validate::job::SubmitJob;
use crate::view::JobBody;
use crate::waiting::delivered;

/// Create a job under an id of your own
///
/// Safe to repeat for as long as the job is kept: the same body gets the job as it is by then (200), and no second one.
/// Elsewhere the job goes by the `id` in the answer.
#[utoipa::path(put, path = "/v1/jobs/{id}", tag = "Jobs", request_body = SubmitJob,
    params(("id" = String, Path, description = "Your id: 1 to 128 of A-Z, a-z, 0-9 and `._~:-`, unique in the project")),
    responses(
        (status = 200, body = JobBody, description = "The job that was made before, as it is now"),
        (status = 202, body = JobBody, description = "Accepted", headers(
            ("Location" = String, description = "Where the job is"),
            ("Retry-After" = u32, description = "Seconds until a first look is worth while"),
        )),
        (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
        (status = 409, body = ErrorBody, description = "The first request with this id is still at work"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`), or a budget has too little left (`budget_exceeded`)"),
        (status = 422, body = ErrorBody, description = "The id was used with another body"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn put_job(
    State(state): State<AppState>,
    Metered(caller): Metered,
    ClientIdPath(id): ClientIdPath,
    headers: HeaderMap,
    RawJson(raw): RawJson,
) -> Result<Response, ApiError> {
    let id = idempotency::client_id(&id)?;
    if let Some(asked) = dry_run::wanted(&raw)? {
        let job = prepare(&state, &caller, &headers, asked).await?;
        return dry_run::answer(&state, &[job]).await;
    }
    match accept(&state, &caller, &headers, &raw, Some(ClaimedBy::ClientId(id))).await? {
        Submitted::Accepted(view, _) => answered(render(&view)),
        Submitted::Before(Before::Replayed(answer)) => answered(answer).map(replayed),
        Submitted::Found(view) => {
            delivered(&state, &view).await?;
            let status = StatusCode::OK.as_u16();
            answered(Answer {
                status,
                ..render(&view)
            })
            .map(replayed)
        }
        Submitted::Before(Before::Reused) => Err(ApiError::Unprocessable(
            Problem::new(
                "client_id_reused",
                "This id names a job with another request body; use a new id for a new request.",
            )
            .at(idempotency::CLIENT_ID),
        )),
        Submitted::Before(Before::InFlight) => Err(ApiError::Conflict(
            Problem::new(
                "client_id_in_flight",
                "The first request with this id is still being processed; wait for its answer.",
            )
            .at(idempotency::CLIENT_ID),
        )),
        Submitted::Refused(refusal) => Err(refused(refusal)),
    }
}

/// The last segment of the path: the route's `{id}`, or a name that is a route of its own to other methods. What does not read stays as
/// it was sent, which is no id.
#[derive(Debug)]
pub struct ClientIdPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ClientIdPath {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => id,
            Err(_) => parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
        }))
    }
}
