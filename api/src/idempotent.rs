//! Requests that are carried out once for each `Idempotency-Key`: how they are known, and how a repeated one is answered.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::store::idempotency::{self, Answer, Before, Claim, ClaimedBy};
use claimcheck_common::store::once::Once;
use claimcheck_common::store::retry::Asker;
use claimcheck_common::store::selection::Chunk;
use claimcheck_common::store::submit::Submitted;
use serde::Serialize;
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

/// How a request is known when it comes again, if it has a key. `what` tells the route and what it is about: beside the body it is
/// what a key is bound to.
pub fn claim(caller: &Caller, headers: &HeaderMap, what: &str, raw: &[u8]) -> Result<Option<Claim>, ApiError> {
    Ok(validate::key(headers)?.map(|key| Claim {
        user_id: caller.claimant(),
        project_id: caller.project_id,
        request_sha256: bound_to(what, raw),
        by: ClaimedBy::Key(key, KEEP_KEY),
    }))
}

/// What a key is bound to, as a digest.
pub fn bound_to(what: &str, raw: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(what).chain_update([0]).chain_update(raw);
    digest.finalize().into()
}

/// Who asks that jobs be done again; under the request's key, if it has one. `what` is as for [`claim`].
pub fn asker(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    what: &str,
    raw: &[u8],
) -> Result<Asker, ApiError> {
    caller.may_repeat()?;
    Ok(Asker {
        by: caller.by(),
        queue_limit: state.max_queued,
        prices: state.prices.clone(),
        api_key_id: caller.key().map(|key| key.id),
        claim: claim(caller, headers, what, raw)?,
    })
}

/// The answer to a request that was carried out before. To be asked before a request is checked: it may not be acceptable by now (a
/// time that has passed).
pub async fn repeated(state: &AppState, claim: Option<&Claim>) -> Result<Option<Response>, ApiError> {
    let Some(claim) = claim else { return Ok(None) };
    match idempotency::earlier(&state.pool, claim).await? {
        Some(Submitted::Before(before)) => answered_before(before).map(Some),
        _ => Ok(None),
    }
}

/// An answer with a body of JSON, and with these headers beside its type.
pub fn json_answer<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, String); N],
    body: &impl Serialize,
) -> Answer {
    let media = (header::CONTENT_TYPE, "application/json".to_owned());
    let headers = headers.into_iter().chain([media]);
    Answer {
        status: status.as_u16(),
        headers: headers.map(|(name, value)| (name.as_str().to_owned(), value)).collect(),
        // Every field has a JSON form; an empty body would be refused by the database and by `answered`.
        body: serde_json::to_string(body).unwrap_or_default(),
    }
}

/// The answer to one chunk of a change to many jobs.
pub fn render_chunk(chunk: &Chunk) -> Answer {
    json_answer(StatusCode::OK, [], &BulkBody::from(*chunk))
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
