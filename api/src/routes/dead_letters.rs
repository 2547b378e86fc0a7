//! `GET /v1/dead_letters` and `POST /v1/dead_letters/redrive`: what failed for good, and doing it again.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use claimcheck_common::store::dead_letters::{self, DeadLetter};
use claimcheck_common::store::jobs::Page;
use serde::Serialize;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit, after};
use crate::app::AppState;
use crate::docs::{BadBody, NeedsAdmin, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Json, Query};
use crate::idempotent::{asker, chunk_done, render_chunk};
use crate::validate::selection::SelectDeadLetters;
use crate::view::{BulkBody, ErrorInfo};

/// A job that failed for good.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterBody {
    /// The job's id.
    pub id: String,
    /// Always `dead_letter`.
    pub object: &'static str,
    /// The model's name.
    pub model: String,
    /// `attempts_exhausted`, or the code of the error that no other attempt could mend.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// How often its worker fell silent.
    pub lapses: u32,
    /// Who had it last.
    #[schema(required)]
    pub worker_id: Option<String>,
    /// Why its last attempt failed.
    #[schema(required)]
    pub last_error: Option<ErrorInfo>,
    /// When it failed.
    pub created_at: i64,
    /// When it was done again.
    #[schema(required)]
    pub redriven_at: Option<i64>,
    /// The new job.
    #[schema(required)]
    pub redriven_as: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterList {
    /// Always `list`.
    pub object: &'static str,
    /// The newest job first.
    pub data: Vec<DeadLetterBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

impl From<&DeadLetter> for DeadLetterBody {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            id: letter.job_id.to_string(),
            object: "dead_letter",
            model: letter.model.clone(),
            reason: letter.reason.clone(),
            attempts: letter.attempts,
            lapses: letter.lapses,
            worker_id: letter
                .worker_id
                .map(|id| claimcheck_common::domain::WorkerId::from_uuid(id).to_string()),
            last_error: letter.last_error.as_ref().map(ErrorInfo::from),
            created_at: letter.created_at.unix_timestamp(),
            redriven_at: letter.redriven_at.map(time::OffsetDateTime::unix_timestamp),
            redriven_as: letter.redriven_as.map(|id| id.to_string()),
        }
    }
}

/// List dead letters
///
/// Of the caller's project; of all for admins that ask `?all=true`.
#[utoipa::path(get, path = "/v1/dead_letters", tag = "Jobs",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Dead letters on a page (20)"),
        ("after" = Option<String>, Query, description = "Only jobs older than this id"),
        ("all" = Option<bool>, Query, description = "`true`: of all projects; for admins"),
    ),
    responses(
        (status = 200, body = DeadLetterList, description = "A page, the newest job first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn list_dead_letters(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<axum::Json<DeadLetterList>, ApiError> {
    let query = query.only(&["limit", "after", "all"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "a job")?;
    let all = query.get("all", |text| {
        text.parse::<bool>().map_err(|_| "must be true or false".to_owned())
    })?;
    let all = all.unwrap_or(false);
    if all {
        caller.must_be_admin()?;
    }
    let page = Page {
        after,
        limit: limit.look_for(),
    };
    let mut found = dead_letters::list(&state.pool, (!all).then_some(caller.project_id), page).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.iter().map(DeadLetterBody::from).collect();
    Ok(axum::Json(DeadLetterList {
        object: "list",
        first_id: data.first().map(|letter| letter.id.clone()),
        last_id: data.last().map(|letter| letter.id.clone()),
        data,
        has_more,
    }))
}

/// Redrive dead letters
///
/// For admins. Makes a new job for each dead letter that is selected and was not redriven before, at most 500 in one call;
/// safe to repeat, and with an `Idempotency-Key` it gets the same answer for 24 hours. It stops before the first job that would
/// exceed its tenant's quota of waiting jobs, and says so in `stopped_by`.
#[utoipa::path(post, path = "/v1/dead_letters/redrive", tag = "Operators",
    request_body = SelectDeadLetters,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, body = BulkBody, description = "How many new jobs there are"),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        BadBody, NeedsToken, NeedsAdmin, Trouble,
    ))]
pub async fn redrive(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Json<SelectDeadLetters>,
) -> Result<Response, ApiError> {
    let asker = asker(&state, &caller, &headers, "redrive", &body.raw)?;
    let once = dead_letters::redrive(&state.pool, body.value.into_filter()?, asker, render_chunk).await?;
    state.outgoing.anywhere();
    chunk_done(once)
}
