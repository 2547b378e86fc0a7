//! `/v1/projects/{id}/limits`: what an organization lets one of its projects use, beside what it may use as a whole.

use axum::Json as Reply;
use axum::extract::State;
use claimcheck_common::domain::{ProjectId, Rate};
use claimcheck_common::store::project_limits::{self, ProjectLimits};
use claimcheck_common::store::{budgets, projects::Project};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::projects::seen;
use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, IdPath, Json, Query};
use crate::validate::budget::BudgetIn;
use crate::validate::number::Whole;
use crate::validate::text::Text;
use crate::view::BudgetBody;

const BODY_MAX: usize = 16 << 10;

/// A project's limits, beside those of its organization and of its callers; null for none of its own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProjectLimits)]
pub struct LimitsBody {
    /// Always `project_limits`.
    pub object: &'static str,
    /// Requests that generate, of all its callers together: `60/min`.
    #[schema(required)]
    pub rate: Option<String>,
    /// Jobs that may wait.
    #[schema(required)]
    pub max_queued: Option<u32>,
    /// What its jobs may use, and have used.
    #[schema(required)]
    pub budget: Option<BudgetBody>,
}

/// Limits for a project. What is left out is not limited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = NewProjectLimits, example = json!({"rate": "60/min", "max_queued": 100}))]
pub struct LimitsIn {
    /// Requests that generate, of all its callers together: so many `/s`, `/min`, `/h` or `/d`.
    #[schema(value_type = Option<String>, max_length = 16, pattern = "^[0-9]+/(s|min|h|d)$")]
    pub rate: Option<Text<1, 16>>,
    /// Jobs that may wait; a submit beyond it is refused with 429, lines of batches wait in their files.
    #[schema(value_type = Option<u32>)]
    pub max_queued: Option<Whole<0, { i32::MAX as i64 }>>,
    /// What its jobs may use (as much as comes).
    pub budget: Option<BudgetIn>,
}

/// Get a project's limits
#[utoipa::path(get, path = "/v1/projects/{id}/limits", tag = "Projects",
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = LimitsBody, description = "Its limits, and what is used of its budget"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        Trouble,
    ))]
pub async fn get_limits(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    query: Query,
) -> Result<Reply<LimitsBody>, ApiError> {
    query.only(&[])?;
    let project = seen(&state, &caller, id).await?;
    shown(&state, &project).await
}

/// Set a project's limits
///
/// For the users of its organization. The limits of the organization and of the callers go on beside them: a request has to be within
/// all. The budget holds from the next job on, and so does the number of waiting jobs; the rate within two seconds. What was spent and
/// what is reserved stays.
#[utoipa::path(put, path = "/v1/projects/{id}/limits", tag = "Projects", request_body = LimitsIn,
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = LimitsBody, description = "Its limits"),
        (status = 403, body = ErrorBody, description = "The caller is not of its organization (`organization_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        BadBody, Trouble,
    ))]
pub async fn set_limits(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    body: Json<LimitsIn, BODY_MAX>,
) -> Result<Reply<LimitsBody>, ApiError> {
    let project = seen(&state, &caller, id).await?;
    let LimitsIn {
        rate,
        max_queued,
        budget,
    } = body.value;
    let rate = rate.map(|text| text.as_str().parse::<Rate>()).transpose();
    let limits = ProjectLimits {
        rate: rate.map_err(|_| ApiError::invalid("rate", "`rate` must be a rate as `60/min` (or /s, /h, /d)."))?,
        max_queued: max_queued.map(|most| most.get() as u32),
    };
    let budget = match budget {
        Some(budget) => budget.valid(&state.prices)?,
        None => None,
    };
    let done = project_limits::set(
        &state.pool,
        project.clone(),
        caller.user_id,
        limits,
        budget,
        caller.by(),
    )
    .await?;
    if !done {
        let message = "The project's limits are set by its organization's own users.";
        return Err(ApiError::Forbidden(Problem::new("organization_only", message)));
    }
    shown(&state, &project).await
}

async fn shown(state: &AppState, project: &Project) -> Result<Reply<LimitsBody>, ApiError> {
    let ProjectLimits { rate, max_queued } = project_limits::find(&state.pool, project.id).await?;
    let budget = budgets::find(&state.pool, vec![project.id.uuid()]).await?;
    Ok(Reply(LimitsBody {
        object: "project_limits",
        rate: rate.map(Rate::written),
        max_queued,
        budget: budget.into_values().next().map(BudgetBody::from),
    }))
}
