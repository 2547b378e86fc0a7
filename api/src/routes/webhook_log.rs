//! `/v1/webhook_endpoints/{id}/deliveries`, `/recover` and `/stats`: what was sent, sending it again, how well it goes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::domain::{DeliveryStatus, EndpointId, EventId};
use claimcheck_common::store::webhooks::log::{self, Logged, LoggedAttempt, Stats};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit};
use super::webhook_secrets::must_be_enabled;
use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::{NamePath, NamesPath};
use crate::extract::{self, Caller, Query};
use crate::validate::number::UnixTime;
use crate::webhooks::find;

/// An event on its way to an endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
pub struct DeliveryBody {
    /// The event's id, which names the delivery at its endpoint and is its `webhook-id`.
    pub event_id: String,
    /// Always `webhook_delivery`.
    pub object: &'static str,
    /// The event's type; null once it is no longer kept.
    #[serde(rename = "type")]
    #[schema(required)]
    pub kind: Option<String>,
    /// The event's job.
    #[schema(required)]
    pub job_id: Option<String>,
    /// `ready`, `sending`, `waiting` (for its next try), `delivered` or `failed`.
    #[schema(value_type = String)]
    pub status: DeliveryStatus,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again.
    #[schema(required)]
    pub next_attempt_at: Option<i64>,
    /// When the event happened.
    pub created_at: i64,
    /// When it was taken or given up.
    #[schema(required)]
    pub ended_at: Option<i64>,
    /// Of the last answer.
    #[schema(required)]
    pub status_code: Option<u16>,
    /// What went wrong last: `status`, `timeout`, `connect`, `redirect`, `gone`, `address_not_allowed`, `protocol`,
    /// `interrupted`, `forgotten` or `internal`.
    #[schema(required)]
    pub error: Option<String>,
}

/// One attempt.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookAttempt)]
pub struct AttemptBody {
    /// 1 is the first.
    pub number: u32,
    /// When it began.
    pub started_at: i64,
    /// Milliseconds until the answer's head came or none would come.
    #[schema(required)]
    pub latency_ms: Option<u32>,
    /// Of the answer.
    #[schema(required)]
    pub status_code: Option<u16>,
    /// What went wrong.
    #[schema(required)]
    pub error: Option<String>,
    /// A sentence about it.
    #[schema(required)]
    pub message: Option<String>,
    /// The first bytes of the answer.
    #[schema(required)]
    pub answer: Option<String>,
}

/// A delivery with all its attempts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDeliveryWithAttempts)]
pub struct DeliveryDetail {
    /// The delivery.
    #[serde(flatten)]
    pub delivery: DeliveryBody,
    /// The first one first.
    pub log: Vec<AttemptBody>,
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDeliveryList)]
pub struct DeliveryList {
    /// Always `list`.
    pub object: &'static str,
    /// The newest event first.
    pub data: Vec<DeliveryBody>,
    /// The first one's event.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's event: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// A time range.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct Recovery {
    /// Unix seconds: events from then on.
    #[schema(value_type = i64)]
    pub since: UnixTime,
    /// Unix seconds: events before then; now unless given.
    #[schema(value_type = Option<i64>)]
    pub until: Option<UnixTime>,
    /// Go on behind this event: `last_id` of the call before.
    #[schema(value_type = Option<String>)]
    pub after: Option<EventId>,
}

/// How far it has come. While `has_more`, send the same request again with `after` set to `last_id`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookRecovery)]
pub struct RecoveryBody {
    /// Always `bulk`.
    pub object: &'static str,
    /// Events that are sent again, in this call.
    pub count: usize,
    /// Where the next call goes on.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there may be more.
    pub has_more: bool,
}

/// The last 24 hours of an endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookStats)]
pub struct StatsBody {
    /// Always `webhook_stats`.
    pub object: &'static str,
    /// Seconds that the numbers are of.
    pub window: u32,
    /// Deliveries on their way.
    pub pending: i64,
    /// Deliveries that were taken.
    pub delivered: i64,
    /// Deliveries that were given up.
    pub failed: i64,
    /// Attempts.
    pub attempts: i64,
    /// Attempts that came to nothing.
    pub attempts_failed: i64,
    /// Half of the answers came within so many milliseconds.
    #[schema(required)]
    pub latency_p50_ms: Option<f64>,
    /// 95 of a hundred answers did.
    #[schema(required)]
    pub latency_p95_ms: Option<f64>,
    /// When the last delivery was taken.
    #[schema(required)]
    pub last_delivered_at: Option<i64>,
    /// The first failure since the last success.
    #[schema(required)]
    pub failing_since: Option<i64>,
}

/// List deliveries
#[utoipa::path(get, path = "/v1/webhook_endpoints/{endpoint_id}/deliveries", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…`, or `jobs` for those to jobs' own URLs"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Deliveries on a page (20)"),
        ("after" = Option<String>, Query, description = "Only events older than this one"),
        ("status" = Option<String>, Query, description = "Only deliveries in this state")),
    responses((status = 200, body = DeliveryList, description = "A page, the newest event first"),
              (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"), NeedsToken, Trouble))]
pub async fn list_deliveries(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<Json<DeliveryList>, ApiError> {
    let query = query.only(&["limit", "after", "status"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = query.get("after", event_id)?;
    let status = query.get("status", str::parse)?;
    let endpoint = find(&state, &caller, &id).await?;
    let mut found = log::list(&state.pool, endpoint.id, status, after, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.iter().map(DeliveryBody::from).collect();
    Ok(Json(DeliveryList {
        object: "list",
        first_id: data.first().map(|delivery| delivery.event_id.clone()),
        last_id: data.last().map(|delivery| delivery.event_id.clone()),
        data,
        has_more,
    }))
}

/// Get a delivery
///
/// With every attempt.
#[utoipa::path(get, path = "/v1/webhook_endpoints/{endpoint_id}/deliveries/{event_id}", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…` or `jobs`"),
           ("event_id" = String, Path, description = "`evt_…`")),
    responses((status = 200, body = DeliveryDetail, description = "The delivery"),
              (status = 404, body = ErrorBody, description = "There is no such delivery"), NeedsToken, Trouble))]
pub async fn get_delivery(
    State(state): State<AppState>,
    caller: Caller,
    NamesPath(id, event): NamesPath,
    query: Query,
) -> Result<Json<DeliveryDetail>, ApiError> {
    query.only(&[])?;
    let endpoint = find(&state, &caller, &id).await?;
    detail(&state, endpoint.id, event.parse().map_err(|_| no_delivery())?).await
}

async fn detail(state: &AppState, endpoint: EndpointId, event: EventId) -> Result<Json<DeliveryDetail>, ApiError> {
    let found = log::find(&state.pool, endpoint, event).await?;
    let (delivery, attempts) = found.ok_or_else(no_delivery)?;
    Ok(Json(DeliveryDetail {
        delivery: DeliveryBody::from(&delivery),
        log: attempts.iter().map(AttemptBody::from).collect(),
    }))
}

/// Send one again
///
/// Whatever became of it; also an event that this endpoint was never sent.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{endpoint_id}/deliveries/{event_id}/resend", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…` or `jobs`"),
           ("event_id" = String, Path, description = "`evt_…`")),
    responses((status = 202, body = DeliveryDetail, description = "It is on its way"),
              (status = 404, body = ErrorBody, description = "There is no such event"),
              (status = 409, body = ErrorBody, description = "The endpoint is disabled (`endpoint_disabled`)"),
              NeedsToken, Trouble))]
pub async fn resend(
    State(state): State<AppState>,
    caller: Caller,
    NamesPath(id, event): NamesPath,
    query: Query,
) -> Result<(StatusCode, Json<DeliveryDetail>), ApiError> {
    query.only(&[])?;
    let endpoint = find(&state, &caller, &id).await?;
    must_be_enabled(&endpoint)?;
    let event: EventId = event.parse().map_err(|_| no_delivery())?;
    if !log::resend(&state.pool, endpoint.id, event).await? {
        return Err(no_delivery());
    }
    Ok((StatusCode::ACCEPTED, detail(&state, endpoint.id, event).await?))
}

/// Recover a time range
///
/// Sends again what was given up, and what happened while the endpoint was disabled or not yet there. At most 500 events a call,
/// the oldest first.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{endpoint_id}/recover", tag = "Webhooks",
    request_body = Recovery,
    params(("endpoint_id" = String, Path, description = "`whe_…` or `jobs`")),
    responses((status = 200, body = RecoveryBody, description = "How far it has come"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"),
              (status = 409, body = ErrorBody, description = "The endpoint is disabled (`endpoint_disabled`)"),
              BadBody, NeedsToken, Trouble))]
pub async fn recover(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    body: extract::Json<Recovery>,
) -> Result<Json<RecoveryBody>, ApiError> {
    let endpoint = find(&state, &caller, &id).await?;
    must_be_enabled(&endpoint)?;
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).map_err(ApiError::internal);
    let since = at(body.value.since.get())?;
    let until = match body.value.until {
        Some(until) => at(until.get())?,
        None => OffsetDateTime::now_utc(),
    };
    if until <= since {
        return Err(ApiError::invalid("until", "`until` must be after `since`."));
    }
    let done = log::recover(&state.pool, endpoint.id, since, until, body.value.after).await?;
    Ok(Json(RecoveryBody {
        object: "bulk",
        count: done.count,
        last_id: done.last.map(|id| id.to_string()),
        has_more: done.has_more,
    }))
}

/// Get statistics
#[utoipa::path(get, path = "/v1/webhook_endpoints/{endpoint_id}/stats", tag = "Webhooks",
    params(("endpoint_id" = String, Path, description = "`whe_…` or `jobs`")),
    responses((status = 200, body = StatsBody, description = "The last 24 hours"),
              (status = 404, body = ErrorBody, description = "There is no such endpoint"), NeedsToken, Trouble))]
pub async fn get_stats(
    State(state): State<AppState>,
    caller: Caller,
    NamePath(id): NamePath,
    query: Query,
) -> Result<Json<StatsBody>, ApiError> {
    query.only(&[])?;
    let endpoint = find(&state, &caller, &id).await?;
    let Stats {
        pending,
        delivered,
        failed,
        attempts,
        attempts_failed,
        latency_p50,
        latency_p95,
        last_delivered_at,
    } = log::stats(&state.pool, endpoint.id).await?;
    Ok(Json(StatsBody {
        object: "webhook_stats",
        window: 24 * 3600,
        pending,
        delivered,
        failed,
        attempts,
        attempts_failed,
        latency_p50_ms: latency_p50,
        latency_p95_ms: latency_p95,
        last_delivered_at: last_delivered_at.map(OffsetDateTime::unix_timestamp),
        failing_since: endpoint.failing_since.map(OffsetDateTime::unix_timestamp),
    }))
}

/// Reads an event's id from a query parameter.
pub(super) fn event_id(text: &str) -> Result<EventId, String> {
    text.parse()
        .map_err(|_| "must be an event's id, as `last_id` of the page before".to_owned())
}

fn no_delivery() -> ApiError {
    let message = "There is no such event for this endpoint.";
    ApiError::NotFound(Problem::new("delivery_not_found", message).at("event_id"))
}

impl From<&Logged> for DeliveryBody {
    fn from(logged: &Logged) -> Self {
        Self {
            event_id: logged.event.to_string(),
            object: "webhook_delivery",
            kind: logged.kind.clone(),
            job_id: logged.job.map(|id| id.to_string()),
            status: logged.status,
            attempts: logged.attempts,
            next_attempt_at: logged.next_at.map(OffsetDateTime::unix_timestamp),
            created_at: logged.created_at.unix_timestamp(),
            ended_at: logged.ended_at.map(OffsetDateTime::unix_timestamp),
            status_code: logged.status_code,
            error: logged.error.clone(),
        }
    }
}

impl From<&LoggedAttempt> for AttemptBody {
    fn from(attempt: &LoggedAttempt) -> Self {
        Self {
            number: attempt.number,
            started_at: attempt.started_at.unix_timestamp(),
            latency_ms: attempt.latency_ms,
            status_code: attempt.status_code,
            error: attempt.error.clone(),
            message: attempt.message.clone(),
            answer: attempt.answer.clone(),
        }
    }
}
