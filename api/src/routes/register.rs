//! `POST /v1/auth/register`: a new account with its personal organization and project.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use claimcheck_common::store::StoreError;
use claimcheck_common::store::accounts::{self, Account, NewUser};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Json, Origin};
use crate::validate::account::Registration;

const BODY_MAX: usize = 16 << 10;

/// An account.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccountBody {
    /// `user_…`
    pub id: String,
    /// Always `user`.
    pub object: &'static str,
    /// The name to log in with.
    pub username: String,
    /// The address.
    pub email: String,
    /// `user`, `auditor` or `admin`.
    pub role: String,
    /// Whether the user has access.
    pub is_active: bool,
    /// The personal organization.
    pub organization_id: String,
    /// Where the account's jobs go.
    pub project_id: String,
    /// When it was made.
    pub created_at: i64,
}

/// Register
#[utoipa::path(post, path = "/v1/auth/register", tag = "Accounts", request_body = Registration, responses(
    (status = 201, body = AccountBody, description = "The new account"),
    (status = 409, body = ErrorBody, description = "The username or the e-mail address is taken; `param` says which"),
    BadBody, Trouble,
))]
pub async fn register(
    State(state): State<AppState>,
    origin: Origin,
    body: Json<Registration, BODY_MAX>,
) -> Result<(StatusCode, Reply<AccountBody>), ApiError> {
    state.limits.sign_in(None, &origin).await?;
    let Registration {
        username,
        email,
        password,
    } = body.value;
    password.fits("password", username.as_str(), email.as_str())?;
    let user = NewUser {
        username: username.as_str().to_owned(),
        email: email.as_str().to_owned(),
        password_hash: state.passwords.hash(password.into_secret()).await?,
    };
    let account = accounts::register(&state.pool, user, origin.audit(None))
        .await
        .map_err(taken)?;
    tracing::info!(user = %account.user_id, "an account was registered");
    Ok((StatusCode::CREATED, Reply(AccountBody::from(account))))
}

fn taken(error: StoreError) -> ApiError {
    let (param, message) = match &error {
        StoreError::Conflict { constraint } if constraint == "users_username_key" => {
            ("username", "This username is taken; choose another one.")
        }
        StoreError::Conflict { constraint } if constraint == "users_email_key" => {
            ("email", "This e-mail address is registered already.")
        }
        _ => return error.into(),
    };
    ApiError::Conflict(Problem::new("already_exists", message).at(param))
}

impl From<Account> for AccountBody {
    fn from(account: Account) -> Self {
        Self {
            id: account.user_id.to_string(),
            object: "user",
            username: account.username,
            email: account.email,
            role: account.role.to_string(),
            is_active: account.is_active,
            organization_id: account.tenant_id.to_string(),
            project_id: account.project_id.to_string(),
            created_at: account.created_at.unix_timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_and_a_taken_address_are_told_apart() {
        for (constraint, field) in [("users_username_key", "username"), ("users_email_key", "email")] {
            let error = taken(StoreError::Conflict {
                constraint: constraint.into(),
            });
            assert!(matches!(error, ApiError::Conflict(problem) if problem.param.as_deref() == Some(field)));
        }
    }
}
