//! `/v1/webhook_endpoints/{id}/secret` and `/example`: what a receiver verifies by, changing it, and something to verify.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::domain::{EventType, JobId};
use claimcheck_common::store::webhooks::endpoints::{self, Endpoint};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::NamePath;
use crate::extract::{self, Caller, Query};
use crate::validate::number::Whole;
use crate::webhooks::{draw, find, find_own, not_found, owner};

/// Seconds for which the secret before still signs, unless asked for otherwise.
const OVERLAP: i64 = 24 * 3600;
const OVERLAP_MAX: i64 = 7 * 24 * 3600;

/// What deliveries are signed with.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookSecret)]
pub struct SecretBody {
    /// Always `webhook_secret`.
    pub object: &'static str,
    /// `whsec_…`: verifies `v1` (HMAC-SHA256).
    pub secret: String,
    /// `whpk_…`: verifies `v1a` (Ed25519).
    pub public_key: String,
    /// The secret before, while it still signs as well.
    #[schema(required)]
    pub old_secret: Option<String>,
    /// Its public key.
    #[schema(required)]
    pub old_public_key: Option<String>,
    /// Until when.
    #[schema(required)]
    pub old_until: Option<i64>,
}

/// How a secret is changed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct Rotation {
    /// Seconds for which the present secret signs as well; 0 drops it at once.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 604_800, default = 86_400)]
    pub overlap: Option<Whole<0, OVERLAP_MAX>>,
}

/// Which event an example is of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct Example {
    /// The event's type.
    #[serde(rename = "type")]
    #[schema(value_type = Option<String>, default = "job.completed")]
    pub kind: Option<String>,
}

/// An example on its way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookExample)]
pub struct ExampleBody {
    /// Always `webhook_example`.
    pub object: &'static str,
    /// The delivery is in the endpoint's log under this id.
    pub event_id: String,
}

/// Get the secret
#[utoipa::path(get, path = "/v1/webhook_endpoints/{endpoint_id}/secret", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…`, or `jobs` for what jobs' own URLs are signed with")),
    responses((status = 200, body = SecretBody, description = "What deliveries are signed with"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"), NeedsToken, Trouble))]
pub async fn get_secret(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<Json<SecretBody>, ApiError> {
    query.only(&[])?;
    let endpoint = find(&state, &caller, &id).await?;
    shown(&state, &endpoint).map(Json)
}

/// Change the secret
///
/// Deliveries carry the signatures of both secrets until the overlap is over, so that the receiver can change in between.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{endpoint_id}/secret/rotate", tag = "Webhooks",
    request_body = Rotation,
    params(("endpoint_id" = String, Path, description = "`whe_…` or `jobs`")),
    responses((status = 200, body = SecretBody, description = "The new secret, and the one before"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"),
              BadBody, NeedsToken, Trouble))]
pub async fn rotate_secret(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    body: extract::Json<Rotation>,
) -> Result<Json<SecretBody>, ApiError> {
    let id = find(&state, &caller, &id).await?.id;
    let (_, sealed) = draw(state.webhooks.vault()?, id)?;
    let overlap = body.value.overlap.map_or(OVERLAP, Whole::get);
    let overlap = Duration::from_secs(overlap.cast_unsigned());
    let endpoint = endpoints::rotate(&state.pool, owner(&caller), id, sealed, overlap).await?;
    shown(&state, &endpoint.ok_or_else(not_found)?).map(Json)
}

/// Send an example
///
/// A delivery like any other, with made-up ids and `example: true` in its data.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{endpoint_id}/example", tag = "Webhooks",
    request_body = Example, params(("endpoint_id" = String, Path, description = "`whe_…`")),
    responses((status = 202, body = ExampleBody, description = "It is on its way"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"),
              (status = 409, body = ErrorBody, description = "The endpoint is disabled (`endpoint_disabled`)"),
              BadBody, NeedsToken, Trouble))]
pub async fn send_example(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    body: extract::Json<Example>,
) -> Result<(StatusCode, Json<ExampleBody>), ApiError> {
    let endpoint = find_own(&state, &caller, &id).await?;
    must_be_enabled(&endpoint)?;
    let kind = match body.value.kind {
        None => EventType::JobCompleted,
        Some(text) => text
            .parse()
            .map_err(|wrong| ApiError::invalid("type", format!("`type` {wrong}.")))?,
    };
    let event = endpoints::send_example(&state.pool, caller.project_id, endpoint.id, kind, example(kind)).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(ExampleBody {
            object: "webhook_example",
            event_id: event.to_string(),
        }),
    ))
}

/// 409 for a disabled endpoint: it would be sent nothing.
pub(super) fn must_be_enabled(endpoint: &Endpoint) -> Result<(), ApiError> {
    if endpoint.disabled_reason.is_none() {
        return Ok(());
    }
    let message = "The endpoint is disabled; enable it first (`PATCH` with `enabled: true`).";
    Err(ApiError::Conflict(Problem::new("endpoint_disabled", message)))
}

fn example(kind: EventType) -> serde_json::Value {
    let (family, state) = kind.as_str().split_once('.').unwrap_or_default();
    let status = if state == "started" { "in_progress" } else { state };
    if kind.is_of_a_job() {
        let id = JobId::new();
        return json!({"id": id, "object": "job", "status": status, "url": format!("/v1/jobs/{id}"), "example": true});
    }
    json!({"id": format!("{family}_example"), "object": family, "status": status, "example": true})
}

fn shown(state: &AppState, endpoint: &Endpoint) -> Result<SecretBody, ApiError> {
    let vault = state.webhooks.vault()?;
    let open = |sealed: &[u8]| vault.open_secret(endpoint.id, sealed).map_err(ApiError::internal);
    let current = open(&endpoint.secret)?;
    let old = endpoint
        .old_secret
        .as_ref()
        .filter(|(_, until)| *until > OffsetDateTime::now_utc());
    let (old, old_until) = match old {
        Some((sealed, until)) => (Some(open(sealed)?), Some(until.unix_timestamp())),
        None => (None, None),
    };
    Ok(SecretBody {
        object: "webhook_secret",
        secret: current.shown(),
        public_key: current.public_key(),
        old_secret: old.as_ref().map(claimcheck_common::webhook::SigningSecret::shown),
        old_public_key: old.as_ref().map(claimcheck_common::webhook::SigningSecret::public_key),
        old_until,
    })
}
