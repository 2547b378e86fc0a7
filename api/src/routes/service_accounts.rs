//! `/v1/projects/{id}/service_accounts`: accounts of services, which get their tokens by RFC 6749, section 4.4. A secret is shown
//! once, when it is made or rotated.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claimcheck_common::domain::{ProjectId, Scope, ServiceAccountId};
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::once::Once;
use claimcheck_common::store::service_accounts::{self, ACCOUNTS_MAX, NewServiceAccount, Rotation, ServiceAccount};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit, after};
use super::projects::administered;
use crate::app::AppState;
use crate::auth::{Secret, SecretKind};
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::InProject;
use crate::extract::{Caller, IdPath, Json, Query};
use crate::idempotent::{answered, answered_before, claim, json_answer, repeated};
use crate::validate::api_key::{NewService, Rotate};

const BODY_MAX: usize = 16 << 10;

/// A service account.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServiceAccountBody {
    /// `svc_…`, the `client_id`.
    pub id: String,
    /// Always `service_account`.
    pub object: &'static str,
    /// What people call it.
    pub name: String,
    /// Where its jobs go.
    pub project_id: String,
    /// The first characters of its secret.
    pub hint: String,
    /// The secret itself: present in the answer to its making and its rotation, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// What it may do.
    #[schema(value_type = Vec<String>)]
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: i64,
    /// When it last got a token.
    #[schema(required)]
    pub last_used_at: Option<i64>,
    /// When it was revoked.
    #[schema(required)]
    pub revoked_at: Option<i64>,
}

/// A page of service accounts.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServiceAccountList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<ServiceAccountBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

impl ServiceAccountBody {
    fn of(account: ServiceAccount, secret: Option<&Secret>) -> Self {
        let seconds = |at: Option<OffsetDateTime>| at.map(OffsetDateTime::unix_timestamp);
        Self {
            id: account.id.to_string(),
            object: "service_account",
            name: account.name,
            project_id: account.project_id.to_string(),
            hint: account.hint,
            client_secret: secret.map(|secret| secret.expose().to_owned()),
            scopes: account.scopes.iter().collect(),
            created_at: account.created_at.unix_timestamp(),
            last_used_at: seconds(account.last_used_at),
            revoked_at: seconds(account.revoked_at),
        }
    }
}

/// Make a service account
///
/// It belongs to the project and to no person. The answer holds its secret this once; with its id it gets tokens at
/// `POST /v1/auth/token` (`grant_type=client_credentials`). A repetition under the same `Idempotency-Key` is answered alike, but
/// without the secret: who lost it rotates it.
#[utoipa::path(post, path = "/v1/projects/{id}/service_accounts", tag = "Projects", request_body = NewService,
    params(
        ("id" = String, Path, description = "The project's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
    ),
    responses(
        (status = 201, body = ServiceAccountBody, description = "The account with its secret", headers(
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 403, body = ErrorBody, description = "The caller is no admin of the project (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        (status = 409, body = ErrorBody, description = "The project has 100 that are not revoked (`too_many_service_accounts`), or \
            the first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        BadBody, Trouble,
    ))]
pub async fn create_account(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    headers: HeaderMap,
    body: Json<NewService, BODY_MAX>,
) -> Result<Response, ApiError> {
    let project = administered(&state, &caller, id).await?;
    let claim = claim(&caller, &headers, &format!("service_account {id}"), &body.raw)?;
    if let Some(answer) = repeated(&state, claim.as_ref()).await? {
        return Ok(answer);
    }
    let secret = Secret::draw(SecretKind::ServiceAccount);
    let nobodys = Secret::draw(SecretKind::ServiceAccount).expose().to_owned();
    let new = NewServiceAccount {
        tenant_id: project.tenant_id,
        project_id: project.id,
        name: body.value.name.as_str().to_owned(),
        scopes: body.value.scopes(),
        hint: secret.hint(),
        sha256: secret.sha256(),
        password_hash: state.passwords.hash(nobodys.into()).await?,
        by: caller.by(),
    };
    let made = match service_accounts::create(&state.pool, new, claim, render).await? {
        Once::Done(made) => made,
        Once::Before(before) => return answered_before(before),
    };
    let made = made.ok_or_else(|| {
        let message =
            format!("The project has {ACCOUNTS_MAX} service accounts, which is as many as it may; revoke some first.");
        ApiError::Conflict(Problem::new("too_many_service_accounts", message))
    })?;
    let body = ServiceAccountBody::of(made, Some(&secret));
    answered(json_answer(StatusCode::CREATED, [], &body))
}

/// What a repeated request is answered: the secret is kept nowhere.
fn render(made: &ServiceAccount) -> Answer {
    json_answer(StatusCode::CREATED, [], &ServiceAccountBody::of(made.clone(), None))
}

/// List service accounts
///
/// Those that were revoked as well; never their secrets.
#[utoipa::path(get, path = "/v1/projects/{id}/service_accounts", tag = "Projects",
    params(
        ("id" = String, Path, description = "The project's id"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Accounts on a page (20)"),
        ("after" = Option<String>, Query, description = "Only accounts older than this id"),
    ),
    responses(
        (status = 200, body = ServiceAccountList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of the project (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project, or none of yours"),
        Trouble,
    ))]
pub async fn list_accounts(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ProjectId>,
    query: Query,
) -> Result<Reply<ServiceAccountList>, ApiError> {
    let query = query.only(&["limit", "after"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "an account")?;
    let project = administered(&state, &caller, id).await?;
    let mut found = service_accounts::list(&state.pool, project.id, after, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.into_iter().map(|one| ServiceAccountBody::of(one, None)).collect();
    Ok(Reply(ServiceAccountList {
        object: "list",
        first_id: data.first().map(|one| one.id.clone()),
        last_id: data.last().map(|one| one.id.clone()),
        data,
        has_more,
    }))
}

/// Revoke a service account
///
/// At once and for good: its secret, its tokens and its API keys are refused with the next request. Safe to repeat.
#[utoipa::path(delete, path = "/v1/projects/{id}/service_accounts/{account_id}", tag = "Projects",
    params(
        ("id" = String, Path, description = "The project's id"),
        ("account_id" = String, Path, description = "The account's id"),
    ),
    responses(
        (status = 200, body = ServiceAccountBody, description = "The account as it ended"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of the project (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project or account, or none of yours"),
        Trouble,
    ))]
pub async fn revoke_account(
    State(state): State<AppState>,
    caller: Caller,
    path: InProject<ServiceAccountId>,
    query: Query,
) -> Result<Reply<ServiceAccountBody>, ApiError> {
    query.only(&[])?;
    let project = administered(&state, &caller, path.project).await?;
    let ended = service_accounts::revoke(&state.pool, project.id, path.id, caller.by()).await?;
    let ended = state.doorkeeper.told(ended).await.ok_or_else(account_not_found)?;
    Ok(Reply(ServiceAccountBody::of(ended, None)))
}

/// Rotate a service account's secret
///
/// The account keeps its id and its tokens. The secret in use holds for `overlap` seconds more; one that an earlier rotation left
/// ends at once.
#[utoipa::path(post, path = "/v1/projects/{id}/service_accounts/{account_id}/rotate", tag = "Projects", request_body = Rotate,
    params(
        ("id" = String, Path, description = "The project's id"),
        ("account_id" = String, Path, description = "The account's id"),
    ),
    responses(
        (status = 200, body = ServiceAccountBody, description = "The account with its new secret"),
        (status = 403, body = ErrorBody, description = "The caller is no admin of the project (`project_admin_only`)"),
        (status = 404, body = ErrorBody, description = "No such project or account, none of yours, or revoked"),
        BadBody, Trouble,
    ))]
pub async fn rotate_account(
    State(state): State<AppState>,
    caller: Caller,
    path: InProject<ServiceAccountId>,
    body: Json<Rotate, BODY_MAX>,
) -> Result<Reply<ServiceAccountBody>, ApiError> {
    let project = administered(&state, &caller, path.project).await?;
    let secret = Secret::draw(SecretKind::ServiceAccount);
    let rotation = Rotation {
        id: path.id,
        project_id: project.id,
        hint: secret.hint(),
        sha256: secret.sha256(),
        overlap: body.value.overlap(),
        by: caller.by(),
    };
    let rotated = service_accounts::rotate(&state.pool, rotation).await?;
    let rotated = rotated.ok_or_else(account_not_found)?;
    Ok(Reply(ServiceAccountBody::of(rotated, Some(&secret))))
}

fn account_not_found() -> ApiError {
    let problem = Problem::new("service_account_not_found", "There is no such service account.");
    ApiError::NotFound(problem.at("account_id"))
}
