//! `/v1/projects`: what a user may act in. For users in person: an API key or a service belongs to one project and changes none.
//!
//! A request acts in the project that `OpenAI-Project` names, else in the user's own first one (`auth/doorkeeper.rs`).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claimcheck_common::domain::{ProjectId, ProjectRole};
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::projects::{self, Archived, PROJECTS_MAX, Project};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, IdPath, Json, Query};
use crate::idempotent::{answered, answered_before, claim, json_answer};
use crate::validate::text::Text;

const BODY_MAX: usize = 16 << 10;

/// A project.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectBody {
    /// `proj_…`
    pub id: String,
    /// Always `project`.
    pub object: &'static str,
    /// What people call it.
    pub name: String,
    /// Whose it is.
    pub organization_id: String,
    /// What the caller is in it: `admin` or `member`.
    pub role: String,
    /// When it was made.
    pub created_at: i64,
}

/// The caller's projects.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectList {
    /// Always `list`.
    pub object: &'static str,
    /// The oldest first, all of them.
    pub data: Vec<ProjectBody>,
}

/// A project to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"name": "nightly evaluations"}))]
pub struct ProjectName {
    /// What people call it.
    #[schema(value_type = String, min_length = 1, max_length = 64)]
    pub name: Text<1, 64>,
}

impl From<Project> for ProjectBody {
    fn from(project: Project) -> Self {
        Self {
            id: project.id.to_string(),
            object: "project",
            name: project.name,
            organization_id: project.tenant_id.to_string(),
            role: project.role.to_string(),
            created_at: project.created_at.unix_timestamp(),
        }
    }
}

/// List projects
///
/// All that the caller may act in: those of the own organization, and those of others that let the caller in.
#[utoipa::path(get, path = "/v1/projects", tag = "Projects", responses(
    (status = 200, body = ProjectList, description = "The caller's projects"),
    Trouble,
))]
pub async fn list_projects(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Reply<ProjectList>, ApiError> {
    query.only(&[])?;
    let data = projects::list(&state.pool, caller.user_id).await?;
    Ok(Reply(ProjectList {
        object: "list",
        data: data.into_iter().map(ProjectBody::from).collect(),
    }))
}

/// Make a project
///
/// In the caller's own organization. Its jobs, files, batches, webhooks and keys are apart from those of other projects; limits
/// of the organization hold for all of them together.
#[utoipa::path(post, path = "/v1/projects", tag = "Projects", request_body = ProjectName,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 201, body = ProjectBody, description = "The project", headers(
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 409, body = ErrorBody, description = "The organization has 100 (`too_many_projects`), or the first request with \
            this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        BadBody, Trouble,
    ))]
pub async fn create_project(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Json<ProjectName, BODY_MAX>,
) -> Result<Response, ApiError> {
    let claim = claim(&caller, &headers, "project", &body.raw)?;
    let name = body.value.name.into_string();
    let made = match projects::create(&state.pool, caller.user_id, name, caller.by(), claim, render).await? {
        Once::Done(made) => made,
        Once::Before(before) => return answered_before(before),
    };
    let made = made.ok_or_else(|| {
        let message =
            format!("Your organization has {PROJECTS_MAX} projects, which is as many as it may; archive some first.");
        ApiError::Conflict(Problem::new("too_many_projects", message))
    })?;
    answered(render(&made))
}

/// The answer to a new project, and to its request whenever it is repeated.
fn render(made: &Project) -> Answer {
    json_answer(StatusCode::CREATED, [], &ProjectBody::from(made.clone()))
}

/// Get a project
#[utoipa::path(get, path = "/v1/projects/{id}", tag = "Projects",
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = ProjectBody, description = "The project"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        Trouble,
    ))]
pub async fn get_project(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    query: Query,
) -> Result<Reply<ProjectBody>, ApiError> {
    query.only(&[])?;
    Ok(Reply(seen(&state, &caller, id).await?.into()))
}

/// Rename a project
#[utoipa::path(patch, path = "/v1/projects/{id}", tag = "Projects", request_body = ProjectName,
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = ProjectBody, description = "The project"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of it (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        BadBody, Trouble,
    ))]
pub async fn rename_project(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    body: Json<ProjectName, BODY_MAX>,
) -> Result<Reply<ProjectBody>, ApiError> {
    let seen = administered(&state, &caller, id).await?;
    let name = body.value.name.into_string();
    Ok(Reply(
        projects::rename(&state.pool, seen, name, caller.by()).await?.into(),
    ))
}

/// Archive a project
///
/// Nobody acts in it any more, its keys and service accounts come to rest with the next request, and what it holds is not shown.
#[utoipa::path(delete, path = "/v1/projects/{id}", tag = "Projects",
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 204, description = "It is archived"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of it (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        (status = 409, body = ErrorBody, description = "It is the organization's first one (`default_project`), or has jobs that \
            have not ended (`project_busy`)"),
        Trouble,
    ))]
pub async fn archive_project(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let seen = administered(&state, &caller, id).await?;
    let archived = projects::archive(&state.pool, seen, caller.by()).await?;
    let (code, message) = match state.doorkeeper.told(archived).await {
        Archived::Done => return Ok(StatusCode::NO_CONTENT),
        Archived::Default => (
            "default_project",
            "This is the organization's first project, which stays.",
        ),
        Archived::Busy => (
            "project_busy",
            "The project has jobs that have not ended; cancel them or wait for them.",
        ),
    };
    Err(ApiError::Conflict(Problem::new(code, message)))
}

/// A project that the caller may act in.
pub(super) async fn seen(state: &AppState, caller: &Caller, id: ProjectId) -> Result<Project, ApiError> {
    let found = projects::find(&state.pool, caller.user_id, id).await?;
    found.ok_or_else(crate::extract::path::project_not_found)
}

/// One that the caller is an admin of.
pub(super) async fn administered(state: &AppState, caller: &Caller, id: ProjectId) -> Result<Project, ApiError> {
    let found = seen(state, caller, id).await?;
    if found.role == ProjectRole::Admin {
        return Ok(found);
    }
    let message = "This needs the role `admin` in the project.";
    Err(ApiError::Forbidden(Problem::new("project_admin_only", message)))
}
