//! `GET /v1/jobs`: the caller's jobs, newest first, by cursor.

use axum::Json;
use axum::extract::State;
use claimcheck_common::domain::JobStatus;
use claimcheck_common::store::jobs::{self, JobFilter, Page};
use serde::Serialize;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit, after};
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Query};
use crate::validate::text::check;
use crate::view::{JobBody, StatusSchema};

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<JobBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// List jobs
///
/// A page whose outputs would come to more than 8 MiB ends before its `limit`, with `has_more`.
#[utoipa::path(get, path = "/v1/jobs", tag = "Jobs",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Jobs on a page (20)"),
        ("after" = Option<String>, Query, description = "Only jobs older than this id"),
        ("status" = Option<StatusSchema>, Query, description = "Only jobs in this state"),
        ("model" = Option<String>, Query, description = "Only jobs of this model"),
    ),
    responses(
        (status = 200, body = JobList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        NeedsToken, Trouble,
    ))]
pub async fn list_jobs(State(state): State<AppState>, caller: Caller, query: Query) -> Result<Json<JobList>, ApiError> {
    let query = query.only(&["limit", "after", "status", "model"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "a job")?;
    let filter = JobFilter {
        status: query.get("status", status)?,
        model: query.get("model", |text| check(text, 1, 256).map(|()| text.to_owned()))?,
    };
    let page = Page {
        after,
        limit: limit.look_for(),
    };
    let listed = jobs::list(&state.pool, caller.project_id, &filter, page).await?;
    let mut found = listed.jobs;
    let has_more = limit.cut(&mut found) || listed.cut_short;
    let data: Vec<_> = found.iter().map(JobBody::from).collect();
    Ok(Json(JobList {
        object: "list",
        first_id: data.first().map(|job| job.id.clone()),
        last_id: data.last().map(|job| job.id.clone()),
        data,
        has_more,
    }))
}

fn status(text: &str) -> Result<JobStatus, String> {
    text.parse()
        .map_err(|_| format!("must be one of {}", JobStatus::ALL.map(JobStatus::as_str).join(", ")))
}
