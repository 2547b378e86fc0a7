//! `/v1/api_keys`: a user's keys for programs. A key is shown once, when it is made or rotated.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claimcheck_common::domain::{ApiKeyId, BudgetStanding, Scope};
use claimcheck_common::store::api_keys::{self, ApiKey, KEYS_MAX, MadeApiKey, NewApiKey, Rotation};
use claimcheck_common::store::budgets;
use claimcheck_common::store::idempotency::Answer;
use claimcheck_common::store::once::Once;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::paging::{LIMIT_MAX, Limit, after};
use crate::app::AppState;
use crate::auth::{Secret, SecretKind};
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, IdPath, Json, Query};
use crate::idempotent::{answered, answered_before, claim, json_answer, repeated};
use crate::validate::api_key::{NewKey, Rotate};
use crate::validate::budget::BudgetIn;
use crate::view::BudgetBody;

const BODY_MAX: usize = 16 << 10;

/// An API key.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiKeyBody {
    /// `key_…`
    pub id: String,
    /// Always `api_key`.
    pub object: &'static str,
    /// What its user calls it.
    pub name: String,
    /// Its first characters.
    pub hint: String,
    /// The key itself: present in the answer to its making and its rotation, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What it may do.
    #[schema(value_type = Vec<String>)]
    pub scopes: Vec<Scope>,
    /// The models that it may use; null is any.
    #[schema(required)]
    pub models: Option<Vec<String>>,
    /// Most `max_tokens` of one request; null is the service's own limit.
    #[schema(required)]
    pub max_tokens: Option<u32>,
    /// Where its jobs go.
    pub project_id: String,
    /// When it was made.
    pub created_at: i64,
    /// When it ends.
    #[schema(required)]
    pub expires_at: Option<i64>,
    /// When it was revoked.
    #[schema(required)]
    pub revoked_at: Option<i64>,
    /// When it was last used; some seconds late.
    #[schema(required)]
    pub last_used_at: Option<i64>,
    /// Requests that it was used for; some seconds late.
    pub usage_count: u64,
    /// What its jobs may use; null for as much as its organization may.
    #[schema(required)]
    pub budget: Option<BudgetBody>,
}

/// A page of API keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiKeyList {
    /// Always `list`.
    pub object: &'static str,
    /// Newest first.
    pub data: Vec<ApiKeyBody>,
    /// The first one's id.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The last one's id: the next page's `after`.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

impl ApiKeyBody {
    /// With what is used of its budget.
    async fn find(state: &AppState, key: ApiKey, secret: Option<&Secret>) -> Result<Self, ApiError> {
        let budget = budgets::find(&state.pool, vec![key.id.uuid()])
            .await?
            .into_values()
            .next();
        Ok(Self::of(key, secret, budget))
    }

    fn of(key: ApiKey, secret: Option<&Secret>, budget: Option<BudgetStanding>) -> Self {
        let seconds = |at: Option<OffsetDateTime>| at.map(OffsetDateTime::unix_timestamp);
        Self {
            id: key.id.to_string(),
            object: "api_key",
            name: key.name,
            hint: key.hint,
            key: secret.map(|secret| secret.expose().to_owned()),
            scopes: key.grant.scopes.iter().collect(),
            models: key.grant.models,
            max_tokens: key.grant.max_tokens,
            project_id: key.project_id.to_string(),
            created_at: key.created_at.unix_timestamp(),
            expires_at: seconds(key.expires_at),
            revoked_at: seconds(key.revoked_at),
            last_used_at: seconds(key.last_used_at),
            usage_count: key.usage_count,
            budget: budget.map(BudgetBody::from),
        }
    }
}

/// Make an API key
///
/// The answer holds the key itself; it is shown this once and cannot be had again. Send it as `Authorization: Bearer cck_…` or
/// as `X-API-Key`. A repetition under the same `Idempotency-Key` is answered alike, but without the key itself: who lost it rotates
/// it.
#[utoipa::path(post, path = "/v1/api_keys", tag = "Accounts", request_body = NewKey,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 201, body = ApiKeyBody, description = "The key", headers(
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 409, body = ErrorBody, description = "There are 100 keys that are not revoked (`too_many_keys`), or the first \
            request with this `Idempotency-Key` is still at work"),
        (status = 422, body = ErrorBody, description = "The `Idempotency-Key` was used with another request"),
        BadBody, Trouble,
    ))]
pub async fn create_key(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Json<NewKey, BODY_MAX>,
) -> Result<Response, ApiError> {
    let claim = claim(&caller, &headers, "api_key", &body.raw)?;
    if let Some(answer) = repeated(&state, claim.as_ref()).await? {
        return Ok(answer);
    }
    let secret = Secret::draw(SecretKind::ApiKey);
    let asked = body.value;
    let name = asked.name.as_str().to_owned();
    let expires_at = asked.expiry(OffsetDateTime::now_utc())?;
    let budget = match asked.budget {
        Some(budget) => budget.valid(&state.prices)?,
        None => None,
    };
    let grant = asked.grant();
    caller.may_grant(grant.scopes)?;
    let key = NewApiKey {
        id: ApiKeyId::new(),
        tenant_id: caller.tenant_id,
        project_id: caller.project_id,
        user_id: caller.user_id,
        name,
        hint: secret.hint(),
        sha256: secret.sha256(),
        expires_at,
        budget,
        grant,
        by: caller.by(),
    };
    let kept = match api_keys::create(&state.pool, key, claim, render).await? {
        Once::Done(kept) => kept,
        Once::Before(before) => return answered_before(before),
    };
    let (key, budget) = kept.ok_or_else(|| {
        let message = format!("You have {KEYS_MAX} API keys, which is as many as you may; revoke some first.");
        ApiError::Conflict(Problem::new("too_many_keys", message))
    })?;
    answered(json_answer(
        StatusCode::CREATED,
        [],
        &ApiKeyBody::of(key, Some(&secret), budget),
    ))
}

/// What a repeated request is answered: the key itself is kept nowhere.
fn render((key, budget): &MadeApiKey) -> Answer {
    json_answer(StatusCode::CREATED, [], &ApiKeyBody::of(key.clone(), None, *budget))
}

/// List API keys
///
/// The caller's own in this project, those that ended as well; never the keys themselves.
#[utoipa::path(get, path = "/v1/api_keys", tag = "Accounts",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Keys on a page (20)"),
        ("after" = Option<String>, Query, description = "Only keys older than this id"),
    ),
    responses(
        (status = 200, body = ApiKeyList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        Trouble,
    ))]
pub async fn list_keys(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Reply<ApiKeyList>, ApiError> {
    let query = query.only(&["limit", "after"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "a key")?;
    let mut found = api_keys::list(&state.pool, caller.user_id, caller.project_id, after, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let budgets = budgets::find(&state.pool, found.iter().map(|key| key.id.uuid()).collect()).await?;
    let of = |key: ApiKey| {
        let budget = budgets.get(&key.id.uuid()).copied();
        ApiKeyBody::of(key, None, budget)
    };
    let data: Vec<_> = found.into_iter().map(of).collect();
    Ok(Reply(ApiKeyList {
        object: "list",
        first_id: data.first().map(|key| key.id.clone()),
        last_id: data.last().map(|key| key.id.clone()),
        data,
        has_more,
    }))
}

/// Get an API key
#[utoipa::path(get, path = "/v1/api_keys/{id}", tag = "Accounts",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, body = ApiKeyBody, description = "The key, without its secret"),
        (status = 404, body = ErrorBody, description = "No such key, or not yours"),
        Trouble,
    ))]
pub async fn get_key(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ApiKeyId>,
    query: Query,
) -> Result<Reply<ApiKeyBody>, ApiError> {
    query.only(&[])?;
    shown(&state, &caller, id).await
}

async fn find(state: &AppState, caller: &Caller, id: ApiKeyId) -> Result<ApiKey, ApiError> {
    let key = api_keys::get_one(&state.pool, caller.user_id, caller.project_id, id).await?;
    key.ok_or_else(key_not_found)
}

async fn shown(state: &AppState, caller: &Caller, id: ApiKeyId) -> Result<Reply<ApiKeyBody>, ApiError> {
    let key = find(state, caller, id).await?;
    ApiKeyBody::find(state, key, None).await.map(Reply)
}

/// Set an API key's budget
///
/// From the next job on. What was spent and what is reserved stays; `{}` takes the budget away. A key with the scope `admin` manages all
/// of its user's keys, itself too.
#[utoipa::path(put, path = "/v1/api_keys/{id}/budget", tag = "Accounts", request_body = BudgetIn,
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, body = ApiKeyBody, description = "The key with its budget"),
        (status = 404, body = ErrorBody, description = "No such key, not yours, or revoked"),
        BadBody, Trouble,
    ))]
pub async fn set_budget(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ApiKeyId>,
    body: Json<BudgetIn, BODY_MAX>,
) -> Result<Reply<ApiKeyBody>, ApiError> {
    let budget = body.value.valid(&state.prices)?;
    if !api_keys::set_budget(&state.pool, caller.user_id, caller.project_id, id, budget, caller.by()).await? {
        return Err(key_not_found());
    }
    shown(&state, &caller, id).await
}

/// Revoke an API key
///
/// At once and for good. Safe to repeat.
#[utoipa::path(delete, path = "/v1/api_keys/{id}", tag = "Accounts",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, body = ApiKeyBody, description = "The key as it ended"),
        (status = 404, body = ErrorBody, description = "No such key, or not yours"),
        Trouble,
    ))]
pub async fn revoke_key(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ApiKeyId>,
    query: Query,
) -> Result<Reply<ApiKeyBody>, ApiError> {
    query.only(&[])?;
    let key = api_keys::revoke(&state.pool, caller.user_id, caller.project_id, id, caller.by()).await?;
    let key = state.doorkeeper.told(key).await.ok_or_else(key_not_found)?;
    ApiKeyBody::find(&state, key, None).await.map(Reply)
}

/// Rotate an API key
///
/// The key keeps its id, its scopes and its counts and gets a new secret, which the answer shows this once. The one in use holds
/// for `overlap` seconds more, so that programs can be changed over; one that an earlier rotation left ends at once. A service can rotate
/// keys alone whose scopes its token has.
#[utoipa::path(post, path = "/v1/api_keys/{id}/rotate", tag = "Accounts", request_body = Rotate,
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, body = ApiKeyBody, description = "The key with its new secret"),
        (status = 404, body = ErrorBody, description = "No such key, not yours, or revoked"),
        BadBody, Trouble,
    ))]
pub async fn rotate_key(
    State(state): State<AppState>,
    caller: Caller,
    IdPath(id): IdPath<ApiKeyId>,
    body: Json<Rotate, BODY_MAX>,
) -> Result<Reply<ApiKeyBody>, ApiError> {
    // A new secret is a key handed out.
    caller.may_grant(find(&state, &caller, id).await?.grant.scopes)?;
    let secret = Secret::draw(SecretKind::ApiKey);
    let rotation = Rotation {
        id,
        user_id: caller.user_id,
        project_id: caller.project_id,
        hint: secret.hint(),
        sha256: secret.sha256(),
        overlap: body.value.overlap(),
        by: caller.by(),
    };
    let key = api_keys::rotate(&state.pool, rotation).await?;
    let key = state.doorkeeper.told(key).await.ok_or_else(key_not_found)?;
    Ok(Reply(ApiKeyBody::find(&state, key, Some(&secret)).await?))
}

fn key_not_found() -> ApiError {
    ApiError::NotFound(Problem::new("api_key_not_found", "There is no such API key.").at("id"))
}
