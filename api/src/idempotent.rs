//! Requests that are carried out once for each `Idempotency-Key`: how they are known, and how a repeated one is answered.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::store::idempotency::{Answer, Before, Claim, ClaimedBy};
use claimcheck_common::store::once::Once;
use claimcheck_common::store::retry::Asker;
use claimcheck_common::store::selection::Chunk;
use sha2::{Digest, Sha256};

use crate::app::AppState;
use crate::error::{ApiError, IN_FLIGHT, Problem};
use crate::extract::Caller;
use crate::validate::idempotency::{self as validate, HEADER};
use crate::view::BulkBody;

/// How long a key is remembered.
pub const KEEP_KEY: Duration = Duration::from_hours(24);
/// Says that this answer was given before.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Who asks that jobs be done again; under the request's key, if it has one. `what` tells the route and what it is about:
/// beside the body it is what a key is bound to.
pub fn asker(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    what: &str,
    raw: &[u8],
) -> Result<Asker, ApiError> {
    caller.may_repeat()?;
    let claim = validate::key(headers)?.map(|key| Claim {
        user_id: caller.claimant(),
        project_id: caller.project_id,
        request_sha256: Sha256::new()
            .chain_update(what)
            .chain_update([0])
            .chain_update(raw)
            .finalize()
            .into(),
        by: ClaimedBy::Key(key, KEEP_KEY),
    });
    Ok(Asker {
        by: caller.by(),
        queue_limit: state.max_queued,
        prices: state.prices.clone(),
        api_key_id: caller.key().map(|key| key.id),
        claim,
    })
}

/// The answer to one chunk of a change to many jobs.
pub fn render_chunk(chunk: &Chunk) -> Answer {
    Answer {
        status: StatusCode::OK.as_u16(),
        headers: [(header::CONTENT_TYPE.as_str().to_owned(), "application/json".to_owned())].into(),
        body: serde_json::to_string(&BulkBody::from(*chunk)).unwrap_or_default(),
    }
}

/// Answers for one chunk that was done now or before.
pub fn chunk_done(once: Once<Chunk>) -> Result<Response, ApiError> {
    match once {
        Once::Done(chunk) => answered(render_chunk(&chunk)),
        Once::Before(before) => answered_before(before),
    }
}

/// The answer to a request that came before.
pub fn answered_before(before: Before) -> Result<Response, ApiError> {
    match before {
        Before::Replayed(answer) => answered(answer).map(replayed),
        Before::Reused => Err(ApiError::Unprocessable(
            Problem::new(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another request; use a new key for a new request.",
            )
            .at(HEADER),
        )),
        Before::InFlight => Err(ApiError::Conflict(
            Problem::new(
                IN_FLIGHT,
                "The first request with this Idempotency-Key is still being processed; wait for its answer.",
            )
            .at(HEADER),
        )),
    }
}

/// An answer on its way.
pub fn answered(answer: Answer) -> Result<Response, ApiError> {
    if answer.body.is_empty() {
        return Err(ApiError::internal("an answer could not be rendered"));
    }
    let status = StatusCode::from_u16(answer.status).map_err(ApiError::internal)?;
    let mut response = (status, answer.body).into_response();
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name).map_err(ApiError::internal)?;
        let value = HeaderValue::try_from(value).map_err(ApiError::internal)?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Marks an answer that was given before.
pub fn replayed(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}
