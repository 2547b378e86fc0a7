//! `POST /v1/auth/token`: a password becomes an access token (RFC 6749, section 4.3).
//!
//! Errors keep the house's envelope, with RFC 6749's word in `error.code`. An unknown user, a wrong password and a
//! deactivated account get one answer after one and the same amount of work.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use claimcheck_common::store::accounts;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::Form;
use crate::validate::account::Username;

/// The form. Other parameters are ignored, as RFC 6749 asks.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only describes the form in the OpenAPI document")]
pub struct TokenForm {
    /// `password`
    #[schema(example = "password")]
    grant_type: String,
    /// The account's name.
    username: String,
    /// Its password.
    #[schema(format = "password")]
    password: String,
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
}

/// Get an access token
#[utoipa::path(post, path = "/v1/auth/token", tag = "Accounts",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = TokenBody, description = "A token", headers(("Cache-Control" = String, description = "`no-store`"))),
        (status = 401, body = ErrorBody, description = "Username or password is wrong (`invalid_grant`)"),
        BadBody, Trouble,
    ))]
pub async fn token(State(state): State<AppState>, mut form: Form) -> Result<impl IntoResponse, ApiError> {
    match form.take("grant_type").as_deref() {
        Some("password") => {}
        Some(_) => {
            let problem = Problem::new("unsupported_grant_type", "`grant_type` must be `password`.");
            return Err(ApiError::Invalid(problem.at("grant_type")));
        }
        None => return Err(missing("grant_type")),
    }
    let username = form.take("username").ok_or_else(|| missing("username"))?;
    let password = SecretString::from(form.take("password").ok_or_else(|| missing("password"))?);
    // A name that no account can have is looked up nowhere and costs the same.
    let account = match Username::parse(&username) {
        Ok(username) => accounts::find_by_username(&state.pool, username.as_str()).await?,
        Err(_) => None,
    };
    let stored = account.as_ref().map(|account| account.password_hash.clone());
    let proven = state.passwords.verify(password, stored).await?;
    let account = account
        .filter(|account| proven && account.is_active)
        .ok_or_else(wrong)?;
    let issued = state.tokens.issue(account.user_id)?;
    let body = TokenBody {
        access_token: issued.token.expose_secret().to_owned(),
        token_type: "bearer",
        expires_in: issued.lifetime.as_secs(),
    };
    Ok((
        [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")],
        Reply(body),
    ))
}

fn missing(field: &'static str) -> ApiError {
    ApiError::Invalid(Problem::new("invalid_request", format!("`{field}` is required.")).at(field))
}

fn wrong() -> ApiError {
    ApiError::Unauthenticated(Problem::new("invalid_grant", "The username or the password is wrong."))
}
