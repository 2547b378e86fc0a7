//! `POST /v1/auth/token`: a password begins a session (RFC 6749, section 4.3), a refresh token renews it (section 6), and a service
//! account's secret gets a token that is not renewed (section 4.4).
//!
//! The first two answer an access token and a refresh token that is good once. Errors keep the house's envelope, with RFC 6749's word in `error.code`. An unknown user, a wrong password and a
//! deactivated account get one answer after one and the same amount of work.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::{Scope, Scopes, ServiceAccountId, SessionId, UserId};
use claimcheck_common::store::audit::{self, By, Entry};
use claimcheck_common::store::sessions::{self, Refreshed};
use claimcheck_common::store::{accounts, service_accounts};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::auth::{Secret, SecretKind, client};
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Form, Origin};
use crate::validate::account::Username;

/// The form. Other parameters are ignored, as RFC 6749 asks.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only describes the form in the OpenAPI document")]
pub struct TokenForm {
    /// `password`, `refresh_token` or `client_credentials`
    #[schema(example = "password")]
    grant_type: String,
    /// The account's name, for `password`.
    username: Option<String>,
    /// Its password.
    #[schema(format = "password")]
    password: Option<String>,
    /// What the answer before held, for `refresh_token`.
    #[schema(format = "password")]
    refresh_token: Option<String>,
    /// A service account's id, for `client_credentials`; instead of `Authorization: Basic`.
    client_id: Option<String>,
    /// Its secret.
    #[schema(format = "password")]
    client_secret: Option<String>,
    /// Some of its scopes, by spaces; without, all of them.
    scope: Option<String>,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenBody {
    /// Goes into `Authorization: Bearer …`.
    pub access_token: String,
    /// Always `bearer`.
    pub token_type: &'static str,
    /// Seconds until it expires.
    pub expires_in: u64,
    /// Gets the next access token, once. Shown to nobody else. A service account gets none: it has its secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// What a service account's token is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// Get an access token
#[utoipa::path(post, path = "/v1/auth/token", tag = "Accounts",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = TokenBody, description = "A token", headers(("Cache-Control" = String, description = "`no-store`"))),
        (status = 401, body = ErrorBody, description = "Username, password or refresh token is wrong (`invalid_grant`), or the service \
            account's id or secret (`invalid_client`)"),
        BadBody, Trouble,
    ))]
pub async fn token(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    mut form: Form,
) -> Result<Response, ApiError> {
    match form.take("grant_type").as_deref() {
        Some("password") => by_password(&state, &origin, form).await,
        Some("refresh_token") => by_refresh_token(&state, &origin, form).await,
        Some("client_credentials") => by_service(&state, &origin, &headers, form).await,
        Some(_) => {
            let message = "`grant_type` must be `password`, `refresh_token` or `client_credentials`.";
            let problem = Problem::new("unsupported_grant_type", message);
            Err(ApiError::Invalid(problem.at("grant_type")))
        }
        None => Err(missing("grant_type")),
    }
}

async fn by_password(state: &AppState, origin: &Origin, mut form: Form) -> Result<Response, ApiError> {
    let username = form.take("username").ok_or_else(|| missing("username"))?;
    let password = SecretString::from(form.take("password").ok_or_else(|| missing("password"))?);
    state.limits.sign_in(Some(&username), origin).await?;
    // A name that no account can have is looked up nowhere and costs the same.
    let account = match Username::parse(&username) {
        Ok(username) => accounts::find_by_username(&state.pool, username.as_str()).await?,
        Err(_) => None,
    };
    let stored = account.as_ref().map(|account| account.password_hash.clone());
    let proven = state.passwords.verify(password, stored).await?;
    let known = account.as_ref().map(|account| (account.tenant_id, account.user_id));
    let Some(account) = account.filter(|account| proven && account.is_active) else {
        // A name that is nobody's is not written down: it may be a password in the wrong field.
        let (tenant, user) = known.unzip();
        let entry = Entry::done(tenant, "session.begun", user.map(UserId::uuid)).refused();
        audit::record(&state.pool, &origin.anonymous(), entry).await?;
        return Err(wrong("The username or the password is wrong."));
    };
    begin_session(state, account.user_id, origin.of(account.user_id)).await
}

/// Begins a session of somebody who has proven to be `user`, and answers its first tokens.
pub(super) async fn begin_session(state: &AppState, user: UserId, by: By) -> Result<Response, ApiError> {
    let refresh = Secret::draw(SecretKind::RefreshToken);
    let session = sessions::begin(&state.pool, user, refresh.sha256(), state.session_ttl, by).await?;
    issue(state, user, session, Some(&refresh), None).await
}

async fn by_refresh_token(state: &AppState, origin: &Origin, mut form: Form) -> Result<Response, ApiError> {
    let refused = || wrong("The refresh token is unknown, expired or used, or its session has ended; sign in again.");
    let shown = form.take("refresh_token").ok_or_else(|| missing("refresh_token"))?;
    let shown = Secret::parse(SecretKind::RefreshToken, &shown).ok_or_else(refused)?;
    let next = Secret::draw(SecretKind::RefreshToken);
    let refreshed = sessions::refresh(&state.pool, shown.sha256(), next.sha256(), origin.audit(None)).await?;
    match state.doorkeeper.told(refreshed).await {
        Refreshed::Renewed(account, session) => issue(state, account.user_id, session, Some(&next), None).await,
        Refreshed::Refused => Err(refused()),
        Refreshed::Reused(user) => {
            tracing::warn!(%user, "a refresh token came back after it was used; its session has ended");
            Err(refused())
        }
    }
}

async fn by_service(
    state: &AppState,
    origin: &Origin,
    headers: &HeaderMap,
    mut form: Form,
) -> Result<Response, ApiError> {
    let shown = client::shown(headers, &mut form)?;
    state.limits.sign_in(Some(&shown.id), origin).await?;
    let id: Option<ServiceAccountId> = shown.id.parse().ok();
    let secret = Secret::parse(SecretKind::ServiceAccount, shown.secret.expose_secret());
    let known = match id.zip(secret) {
        Some((id, secret)) => service_accounts::recognise(&state.pool, id, secret.sha256()).await?,
        None => None,
    };
    let Some(account) = known else {
        let entry = Entry::done(None, "session.begun", id.map(ServiceAccountId::uuid)).refused();
        audit::record(&state.pool, &origin.anonymous(), entry).await?;
        let message = "The service account's id or secret is wrong, or it is revoked.";
        return Err(ApiError::Unauthenticated(Problem::new("invalid_client", message)));
    };
    let scopes = client::narrowed(account.scopes, form.take("scope").as_deref())?;
    let by = origin.of(account.user_id());
    // There is nothing to renew it by, so its session is as long as its token.
    let lifetime = state.tokens.lifetime();
    let session = sessions::begin_service(&state.pool, account.user_id(), scopes, lifetime, by).await?;
    issue(state, account.user_id(), session, None, Some(scopes)).await
}

async fn issue(
    state: &AppState,
    user: UserId,
    session: SessionId,
    refresh: Option<&Secret>,
    scopes: Option<Scopes>,
) -> Result<Response, ApiError> {
    let issued = state.tokens.issue(user, session).await?;
    let words = scopes.map(|scopes| scopes.iter().map(Scope::as_str).collect::<Vec<_>>().join(" "));
    let body = TokenBody {
        access_token: issued.token.expose_secret().to_owned(),
        token_type: "bearer",
        expires_in: issued.lifetime.as_secs(),
        refresh_token: refresh.map(|refresh| refresh.expose().to_owned()),
        scope: words,
    };
    let not_kept = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    Ok((not_kept, Reply(body)).into_response())
}

fn missing(field: &'static str) -> ApiError {
    ApiError::Invalid(Problem::new("invalid_request", format!("`{field}` is required.")).at(field))
}

fn wrong(message: &str) -> ApiError {
    ApiError::Unauthenticated(Problem::new("invalid_grant", message))
}
