//! `/v1/admin/users`: who has an account, and who may do what. Changes take effect with the user's next request.

use axum::Json as Reply;
use axum::extract::State;
use claimcheck_common::domain::{Role, UserId};
use claimcheck_common::store::accounts::{self, UserChange};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit, after};
use super::register::AccountBody;
use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, IdPath, Json, Query};
use crate::validate::text::Text;

const BODY_MAX: usize = 16 << 10;

/// A page of users.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<AccountBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// What to change about a user; null or absent leaves it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"is_active": false}))]
pub struct ChangeUser {
    /// `false`: no access, from the next request on.
    pub is_active: Option<bool>,
    /// `user`, `auditor` or `admin`.
    #[schema(value_type = Option<String>)]
    pub role: Option<Text<1, 16>>,
}

/// List users
#[utoipa::path(get, path = "/v1/admin/users", tag = "Operators",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Users on a page (20)"),
        ("after" = Option<String>, Query, description = "Only users older than this id"),
    ),
    responses(
        (status = 200, body = UserList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        Trouble,
    ))]
pub async fn list_users(State(state): State<AppState>, query: Query) -> Result<Reply<UserList>, ApiError> {
    let query = query.only(&["limit", "after"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "a user")?;
    let mut found = accounts::list(&state.pool, after, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.into_iter().map(AccountBody::from).collect();
    Ok(Reply(UserList {
        object: "list",
        first_id: data.first().map(|user| user.id.clone()),
        last_id: data.last().map(|user| user.id.clone()),
        data,
        has_more,
    }))
}

/// Change a user
///
/// Deactivating ends the user's sessions; API keys rest until the user is active again. Nobody changes themselves.
#[utoipa::path(patch, path = "/v1/admin/users/{id}", tag = "Operators", request_body = ChangeUser,
    params(("id" = String, Path, description = "The user's id")),
    responses(
        (status = 200, body = AccountBody, description = "The user as changed"),
        (status = 404, body = ErrorBody, description = "No such user"),
        (status = 409, body = ErrorBody, description = "It is you (`own_account`)"),
        BadBody, Trouble,
    ))]
pub async fn change_user(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<UserId>,
    body: Json<ChangeUser, BODY_MAX>,
) -> Result<Reply<AccountBody>, ApiError> {
    let ChangeUser { is_active, role } = body.value;
    let role = role.map(|role| role.as_str().parse::<Role>());
    let role = role
        .transpose()
        .map_err(|_| ApiError::invalid("role", "`role` must be user, auditor or admin."))?;
    if id == caller.user_id {
        let message = "This is your own account; another admin has to change it.";
        return Err(ApiError::Conflict(Problem::new("own_account", message).at("id")));
    }
    let change = UserChange { is_active, role };
    let changed = accounts::change(&state.pool, id, change, caller.by()).await?;
    let changed = state.doorkeeper.told(changed).await;
    let not_found = || ApiError::NotFound(Problem::new("user_not_found", "There is no such user.").at("id"));
    changed.map(|account| Reply(account.into())).ok_or_else(not_found)
}
