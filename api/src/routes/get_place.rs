//! `GET /v1/jobs/{id}/queue`: where a waiting job stands and when it may begin.
//!
//! A route of its own, because it changes all the time: the job itself, and with it its `ETag`, only changes when something
//! happened to it.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use claimcheck_common::domain::JobId;
use claimcheck_common::store::jobs::WaitingReason;
use claimcheck_common::store::place::{self, Eta, Place};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::job_not_found;
use crate::extract::{Caller, JobIdPath, Query};

/// Where a job stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlaceBody {
    /// The job's id.
    pub id: String,
    /// Always `job.queue`.
    pub object: &'static str,
    /// Why it does not run yet; null when it does not wait.
    #[schema(required)]
    pub waiting_reason: Option<&'static str>,
    /// 1 is next; null when it does not wait.
    #[schema(required)]
    pub position: Option<u64>,
    /// `false`: at least `position`, for a job far down its tenant's own list.
    pub exact: bool,
    /// Seconds until it begins, as likely more as less; null where the pace is not known.
    #[schema(required)]
    pub eta_p50: Option<f64>,
    /// Seconds until it begins, in nine cases of ten no more.
    #[schema(required)]
    pub eta_p90: Option<f64>,
}

/// Get a job's place
///
/// What the present pace of its model and class leads to; a promise to nobody.
#[utoipa::path(get, path = "/v1/jobs/{id}/queue", tag = "Jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, body = PlaceBody, description = "Where it stands"),
        (status = 404, body = ErrorBody, description = "No such job, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn get_place(
    State(state): State<AppState>,
    caller: Caller,
    JobIdPath(id): JobIdPath,
    query: Query,
) -> Result<Json<PlaceBody>, ApiError> {
    query.only(&[])?;
    let place = place::find(&state.pool, caller.project_id, id)
        .await?
        .ok_or_else(job_not_found)?;
    if let Some(eta) = place.as_ref().and_then(eta) {
        state.promises.made(id, Duration::from_secs_f64(eta.p90));
    }
    Ok(Json(PlaceBody::of(id, place.as_ref())))
}

/// A job that waits for its time, a pause, a worker or its tenant's own jobs has a place, but no pace leads to it.
fn eta(place: &Place) -> Option<Eta> {
    (place.reason == Some(WaitingReason::Capacity)).then(|| place.eta())?
}

impl PlaceBody {
    /// `None`: it does not wait.
    pub fn of(id: JobId, place: Option<&Place>) -> Self {
        let eta = place.and_then(eta);
        let seconds = |seconds: f64| (seconds * 10.0).round() / 10.0;
        Self {
            id: id.to_string(),
            object: "job.queue",
            waiting_reason: place.and_then(|place| place.reason).map(WaitingReason::as_str),
            position: place.map(|place| place.ahead + 1),
            exact: place.is_none_or(|place| place.exact),
            eta_p50: eta.map(|eta| seconds(eta.p50)),
            eta_p90: eta.map(|eta| seconds(eta.p90)),
        }
    }
}
