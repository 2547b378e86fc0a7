//! `/v1/webhook_endpoints`: where a project wants its events. Deliveries are sent by the role `dispatch` of the worker.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claimcheck_common::domain::{EndpointId, PayloadKind};
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::webhooks::endpoints::{
    self, ENDPOINTS_MAX, Endpoint, EndpointChange, EndpointSettings, SealedHeaders,
};
use claimcheck_common::webhook::Vault;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::NamePath;
use crate::extract::{self, Caller, Query};
use crate::idempotent::{answered, answered_before, claim, json_answer, repeated};
use crate::validate::text::Text;
use crate::validate::webhook::{ChangeEndpoint, Headers, NewEndpoint};
use crate::webhooks::{draw, find, find_own, not_found, owner};

/// Deliveries at the same time unless asked for otherwise.
const CONCURRENCY: u32 = 16;

/// An endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookEndpoint)]
pub struct EndpointBody {
    /// `whe_…`
    pub id: String,
    /// Always `webhook_endpoint`.
    pub object: &'static str,
    /// Where deliveries go; null: to the URLs that jobs bring along.
    #[schema(required)]
    pub url: Option<String>,
    /// Your own words.
    #[schema(required)]
    pub description: Option<String>,
    /// Which events; an empty list is all but `job.started`.
    pub events: Vec<String>,
    /// `thin` or `full`.
    #[schema(value_type = String)]
    pub payload: PayloadKind,
    /// The names of the headers that are sent along.
    pub headers: Vec<String>,
    /// Most deliveries a second.
    #[schema(required)]
    pub rate_limit: Option<u32>,
    /// Most deliveries at the same time.
    pub concurrency: u32,
    /// `enabled` or `disabled`.
    pub status: &'static str,
    /// `requested`, `gone` (it answered 410) or `failing` (nothing but failures for three days).
    #[schema(required)]
    pub disabled_reason: Option<String>,
    /// The first failure since the last success.
    #[schema(required)]
    pub failing_since: Option<i64>,
    /// When it was made.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
}

/// A new endpoint with what its receiver verifies by.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NewWebhookEndpoint)]
pub struct NewEndpointBody {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: EndpointBody,
    /// `whsec_…`: verifies `v1`. Not there when the request is repeated under its `Idempotency-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// `whpk_…`: verifies `v1a`.
    pub public_key: String,
}

/// All endpoints.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookEndpointList)]
pub struct EndpointList {
    /// Always `list`.
    pub object: &'static str,
    /// The oldest first.
    pub data: Vec<EndpointBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Always false: there are few.
    pub has_more: bool,
}

/// Make an endpoint
///
/// The answer shows the secret that deliveries are signed with. A repetition under the same `Idempotency-Key` is answered alike, but
/// without the secret: `GET /v1/webhook_endpoints/{endpoint_id}/secret` shows it.
#[utoipa::path(post, path = "/v1/webhook_endpoints", tag = "Webhooks",
    request_body = NewEndpoint,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses((status = 201, body = NewEndpointBody, description = "It gets deliveries from now on", headers(
                  ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
              )),
              (status = 409, body = ErrorBody, description = "There are as many as there may be (`endpoint_limit`), or the first \
                  request with this key is still at work"),
              (status = 422, body = ErrorBody, description = "The key was used with another request"),
              BadBody, NeedsToken, Trouble))]
pub async fn create_endpoint(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: extract::Json<NewEndpoint>,
) -> Result<Response, ApiError> {
    let claim = claim(&caller, &headers, "webhook_endpoint", &body.raw)?;
    if let Some(answer) = repeated(&state, claim.as_ref()).await? {
        return Ok(answer);
    }
    let new = body.value;
    let vault = state.webhooks.vault()?;
    let target = state.webhooks.target("url", new.url.as_str())?;
    let id = EndpointId::new();
    let (secret, sealed) = draw(vault, id)?;
    let settings = EndpointSettings {
        url: target.url().to_string(),
        description: new.description.map(Text::into_string),
        events: new.events.map(|events| events.0).unwrap_or_default(),
        payload: new.payload.unwrap_or_default(),
        rate_limit: new.rate_limit.map(|value| value.get() as u32),
        concurrency: new.concurrency.map_or(CONCURRENCY, |value| value.get() as u32),
    };
    let new = endpoints::NewEndpoint {
        id,
        settings,
        headers: seal(vault, id, new.headers)?.unwrap_or_default(),
        secret: sealed,
    };
    let public_key = secret.public_key();
    // What is kept for a repetition is kept in the clear.
    let without_secret = move |endpoint: &Endpoint| shown(endpoint, None, public_key.clone());
    let made = match endpoints::create(&state.pool, owner(&caller), new, claim, without_secret).await? {
        Once::Done(made) => made,
        Once::Before(before) => return answered_before(before),
    };
    let endpoint = made.ok_or_else(|| {
        let message = format!("A project has at most {ENDPOINTS_MAX} webhook endpoints; delete one first.");
        ApiError::Conflict(Problem::new("endpoint_limit", message))
    })?;
    answered(shown(&endpoint, Some(secret.shown()), secret.public_key()))
}

fn shown(endpoint: &Endpoint, secret: Option<String>, public_key: String) -> Answer {
    let body = NewEndpointBody {
        endpoint: EndpointBody::from(endpoint),
        secret,
        public_key,
    };
    json_answer(StatusCode::CREATED, [], &body)
}

/// List endpoints
#[utoipa::path(get, path = "/v1/webhook_endpoints", tag = "Webhooks",
    responses((status = 200, body = EndpointList, description = "All of the project"), NeedsToken, Trouble))]
pub async fn list_endpoints(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Json<EndpointList>, ApiError> {
    query.only(&[])?;
    let found = endpoints::list(&state.pool, caller.project_id).await?;
    let data: Vec<_> = found.iter().map(EndpointBody::from).collect();
    Ok(Json(EndpointList {
        object: "list",
        first_id: data.first().map(|endpoint| endpoint.id.clone()),
        last_id: data.last().map(|endpoint| endpoint.id.clone()),
        data,
        has_more: false,
    }))
}

/// Get an endpoint
#[utoipa::path(get, path = "/v1/webhook_endpoints/{endpoint_id}", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…`, or `jobs` for the one that signs for jobs' own URLs")),
    responses((status = 200, body = EndpointBody, description = "The endpoint"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"), NeedsToken, Trouble))]
pub async fn get_endpoint(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<Json<EndpointBody>, ApiError> {
    query.only(&[])?;
    Ok(Json(EndpointBody::from(&find(&state, &caller, &id).await?)))
}

/// Change an endpoint
///
/// `enabled: false` pauses it: what happens meanwhile can be recovered later.
#[utoipa::path(patch, path = "/v1/webhook_endpoints/{endpoint_id}", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…`")), request_body = ChangeEndpoint,
    responses((status = 200, body = EndpointBody, description = "The endpoint as it is now"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"),
              BadBody, NeedsToken, Trouble))]
pub async fn change_endpoint(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    body: extract::Json<ChangeEndpoint>,
) -> Result<Json<EndpointBody>, ApiError> {
    let change = body.value;
    let id = find_own(&state, &caller, &id).await?.id;
    let target = match &change.url {
        Some(url) => Some(state.webhooks.target("url", url.as_str())?),
        None => None,
    };
    let headers = seal(state.webhooks.vault()?, id, change.headers)?;
    let change = EndpointChange {
        url: target.map(|target| target.url().to_string()),
        description: change.description.map(|text| text.map(Text::into_string)),
        events: change.events.map(|events| events.0),
        payload: change.payload,
        rate_limit: change.rate_limit.map(|limit| limit.map(|value| value.get() as u32)),
        concurrency: change.concurrency.map(|value| value.get() as u32),
        headers,
        enabled: change.enabled,
    };
    let changed = endpoints::update(&state.pool, owner(&caller), id, change).await?;
    Ok(Json(EndpointBody::from(&changed.ok_or_else(not_found)?)))
}

/// Delete an endpoint
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{endpoint_id}", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…`")),
    responses((status = 204, description = "It gets nothing more"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"), NeedsToken, Trouble))]
pub async fn delete_endpoint(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let id = find_own(&state, &caller, &id).await?.id;
    if endpoints::delete(&state.pool, owner(&caller), id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(not_found())
    }
}

/// `None`: nothing was said about headers.
fn seal(vault: &Vault, id: EndpointId, headers: Option<Headers>) -> Result<Option<SealedHeaders>, ApiError> {
    let Some(Headers(headers)) = headers else {
        return Ok(None);
    };
    if headers.is_empty() {
        return Ok(Some(SealedHeaders::default()));
    }
    let plain = serde_json::to_vec(&headers).map_err(ApiError::internal)?;
    Ok(Some(SealedHeaders {
        names: headers.into_iter().map(|(name, _)| name).collect(),
        sealed: Some(vault.seal(id, &plain).map_err(ApiError::internal)?),
    }))
}

impl From<&Endpoint> for EndpointBody {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.to_string(),
            object: "webhook_endpoint",
            url: endpoint.url.clone(),
            description: endpoint.description.clone(),
            events: endpoint.events.clone(),
            payload: endpoint.payload,
            headers: endpoint.header_names.clone(),
            rate_limit: endpoint.rate_limit,
            concurrency: endpoint.concurrency,
            status: if endpoint.disabled_reason.is_some() {
                "disabled"
            } else {
                "enabled"
            },
            disabled_reason: endpoint.disabled_reason.clone(),
            failing_since: endpoint.failing_since.map(time::OffsetDateTime::unix_timestamp),
            created_at: endpoint.created_at.unix_timestamp(),
            updated_at: endpoint.updated_at.unix_timestamp(),
        }
    }
}
