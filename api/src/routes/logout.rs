//! `POST /v1/auth/logout` and `POST /v1/auth/password`: what ends sessions.

use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::store::{accounts, sessions};

use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::caller::Credential;
use crate::extract::{Caller, Json, Origin, Query};
use crate::validate::account::PasswordChange;

const BODY_MAX: usize = 16 << 10;

/// Log out
///
/// Ends the session that the access token belongs to: this token, the others of the session and its refresh token are
/// refused with the next request.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "Accounts", responses(
    (status = 204, description = "The session has ended"),
    Trouble,
))]
pub async fn logout(State(state): State<AppState>, caller: Caller, query: Query) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    if let Credential::Token(session) = caller.credential {
        let ended = sessions::end(&state.pool, caller.user_id, session, caller.by()).await?;
        state.doorkeeper.told(ended).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Change the password
///
/// Ends all sessions of the account, this one too: sign in with the new password. API keys go on.
#[utoipa::path(post, path = "/v1/auth/password", tag = "Accounts", request_body = PasswordChange, responses(
    (status = 204, description = "The password is changed"),
    (status = 403, body = ErrorBody, description = "The present password is wrong (`wrong_password`), or there is none (`no_password`)"),
    BadBody, Trouble,
))]
pub async fn change_password(
    State(state): State<AppState>,
    caller: Caller,
    origin: Origin,
    body: Json<PasswordChange, BODY_MAX>,
) -> Result<StatusCode, ApiError> {
    let PasswordChange {
        current_password,
        new_password,
    } = body.value;
    let account = accounts::find(&state.pool, caller.user_id).await?;
    let account = account.ok_or_else(|| ApiError::internal("a caller without an account"))?;
    if !account.has_password {
        let message = "This account has no password; its user signs in with a provider.";
        return Err(ApiError::Forbidden(Problem::new("no_password", message)));
    }
    // Whoever holds a stolen token must not guess the password here.
    state.limits.sign_in(Some(&account.username), &origin).await?;
    new_password.fits("new_password", &account.username, &account.email)?;
    let stored = Some(account.password_hash.clone());
    if !state.passwords.verify(current_password.into_secret(), stored).await? {
        let message = "The present password is wrong.";
        let problem = Problem::new("wrong_password", message).at("current_password");
        return Err(ApiError::Forbidden(problem));
    }
    let hash = state.passwords.hash(new_password.into_secret()).await?;
    let changed = accounts::set_password(&state.pool, caller.user_id, account.password_hash, hash, caller.by()).await?;
    state.doorkeeper.told(changed).await;
    Ok(StatusCode::NO_CONTENT)
}
