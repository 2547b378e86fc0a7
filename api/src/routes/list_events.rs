//! `GET /v1/events`: what webhooks tell, for those who cannot receive any. Read on from the last one seen, nothing is passed over.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::events;
use claimcheck_common::webhook::EventBody;
use serde::Serialize;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit};
use super::webhook_log::event_id;
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Query};

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    /// Always `list`.
    pub object: &'static str,
    /// In the order in which they were committed.
    pub data: Vec<EventBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: what `after` is set to next, now or later.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is more at this moment.
    pub has_more: bool,
}

/// List events
///
/// The oldest first. Poll with `after` set to the last `last_id`: each event comes once, in an order that never changes, also
/// those that are committed late. `job.started` is there only where a webhook asks for it.
#[utoipa::path(get, path = "/v1/events", tag = "Webhooks",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Events on a page (20)"),
           ("after" = Option<String>, Query, description = "Only events that come after this one"),
           ("type" = Option<String>, Query, description = "Only events of this type")),
    responses((status = 200, body = EventList, description = "A page, the oldest first"),
              (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
              NeedsToken, Trouble))]
pub async fn list_events(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Json<EventList>, ApiError> {
    let query = query.only(&["limit", "after", "type"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = query.get("after", event_id)?;
    let kind = query.get("type", str::parse)?;
    let mut found = events::feed(&state.pool, caller.project_id, after, kind, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let links = state.webhooks.links();
    let data: Vec<_> = found.iter().map(|event| EventBody::new(event, links)).collect();
    Ok(Json(EventList {
        object: "list",
        first_id: data.first().map(|event| event.id.clone()),
        last_id: data.last().map(|event| event.id.clone()),
        data,
        has_more,
    }))
}
