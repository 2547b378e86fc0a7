//! `/v1/projects/{id}/members`: users of other organizations who may act in a project. Its own organization's user needs no
//! membership and is not listed.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::domain::{ProjectId, ProjectRole, UserId};
use claimcheck_common::store::projects::{self, Joined, MEMBERS_MAX, Member};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::projects::{administered, seen};
use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::InProject;
use crate::extract::{Caller, IdPath, Json, Origin, Query};
use crate::validate::text::Text;

const BODY_MAX: usize = 16 << 10;

/// A member of a project.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberBody {
    /// The user's id, `user_…`.
    pub user_id: String,
    /// Always `project_member`.
    pub object: &'static str,
    /// The name they log in with.
    pub username: String,
    /// `member` works in the project; `admin` besides lets others in and out and makes service accounts.
    pub role: String,
    /// When they were let in.
    pub created_at: i64,
}

/// The members of a project.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberList {
    /// Always `list`.
    pub object: &'static str,
    /// The longest first, all of them.
    pub data: Vec<MemberBody>,
}

/// Whom to let in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"user": "grace", "role": "member"}))]
pub struct NewMember {
    /// The username or the e-mail address of somebody who has an account.
    #[schema(value_type = String, min_length = 3, max_length = 254)]
    pub user: Text<3, 254>,
    /// `member` or `admin` (`member`).
    #[schema(value_type = Option<String>)]
    pub role: Option<Text<1, 16>>,
}

impl From<Member> for MemberBody {
    fn from(member: Member) -> Self {
        Self {
            user_id: member.user_id.to_string(),
            object: "project_member",
            username: member.username,
            role: member.role.to_string(),
            created_at: member.created_at.unix_timestamp(),
        }
    }
}

/// List members
#[utoipa::path(get, path = "/v1/projects/{id}/members", tag = "Projects",
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = MemberList, description = "Its members"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        Trouble,
    ))]
pub async fn list_members(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    query: Query,
) -> Result<Reply<MemberList>, ApiError> {
    query.only(&[])?;
    let seen = seen(&state, &caller, id).await?;
    let data = projects::members(&state.pool, seen.id).await?;
    Ok(Reply(MemberList {
        object: "list",
        data: data.into_iter().map(MemberBody::from).collect(),
    }))
}

/// Let somebody in
///
/// A user who has an account, in this role; a member who is let in again gets the new role. They act in the project by sending its
/// id in `OpenAI-Project`.
#[utoipa::path(post, path = "/v1/projects/{id}/members", tag = "Projects", request_body = NewMember,
    params(("id" = String, Path, description = "The project's id")),
    responses(
        (status = 200, body = MemberBody, description = "The member"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of it (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours; no such user (`user_not_found`)"),
        (status = 409, body = ErrorBody, description = "They are of the organization (`own_user`), or there are 100 (`too_many_members`)"),
        (status = 429, body = ErrorBody, description = "Too many names are tried from this address"),
        BadBody, Trouble,
    ))]
pub async fn add_member(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    origin: Origin,
    body: Json<NewMember, BODY_MAX>,
) -> Result<Reply<MemberBody>, ApiError> {
    let NewMember { user, role } = body.value;
    let role = role.map(|role| role.as_str().parse::<ProjectRole>());
    let role = role
        .transpose()
        .map_err(|wrong| ApiError::invalid("role", format!("`role`: {wrong}.")))?;
    let seen = administered(&state, &caller, id).await?;
    // The answer tells whether a name is somebody's, as registering does.
    state.limits.sign_in(None, &origin).await?;
    let role = role.unwrap_or(ProjectRole::Member);
    let (code, message) = match projects::join(&state.pool, seen, user.into_string(), role, caller.by()).await? {
        Joined::Done(member) => return Ok(Reply(member.into())),
        Joined::Nobody => {
            let message = "There is no user of this name or address; they have to register first.";
            return Err(ApiError::NotFound(Problem::new("user_not_found", message).at("user")));
        }
        Joined::OwnUser => (
            "own_user",
            "This user is of the organization and in all of its projects.".to_owned(),
        ),
        Joined::Full => (
            "too_many_members",
            format!("The project has {MEMBERS_MAX} members, which is as many as it may."),
        ),
    };
    Err(ApiError::Conflict(Problem::new(code, message).at("user")))
}

/// Let somebody out
///
/// Their tokens and keys open nothing of the project with the next request. Members may leave by themselves.
#[utoipa::path(delete, path = "/v1/projects/{id}/members/{user_id}", tag = "Projects",
    params(
        ("id" = String, Path, description = "The project's id"),
        ("user_id" = String, Path, description = "The member's id"),
    ),
    responses(
        (status = 204, description = "They are out"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of it (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours; no such member"),
        Trouble,
    ))]
pub async fn remove_member(
    State(state): State<AppState>,
    caller: Caller,
    path: InProject<UserId>,
    query: Query,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let seen = if path.id == caller.user_id {
        seen(&state, &caller, path.project).await?
    } else {
        administered(&state, &caller, path.project).await?
    };
    let left = projects::leave(&state.pool, seen, path.id, caller.by()).await?;
    if state.doorkeeper.told(left).await {
        Ok(StatusCode::NO_CONTENT)
    } else {
        let problem = Problem::new("member_not_found", "There is no such member.").at("user_id");
        Err(ApiError::NotFound(problem))
    }
}
