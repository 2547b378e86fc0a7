//! Who is calling: `Authorization: Bearer`, checked against the keys and against the account as it is now.
//!
//! The account is read for every request, so that a deactivated user is out at once; requests that come together share
//! the look-up.

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use claimcheck_common::domain::{ProjectId, TenantId, UserId};

use crate::app::AppState;
use crate::auth::TokenError;
use crate::error::{ApiError, Problem};
use crate::middleware::RequestNotes;

/// An authenticated, active user.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub user_id: UserId,
    /// The organization that the user belongs to.
    pub tenant_id: TenantId,
    /// Where the user's jobs go.
    pub project_id: ProjectId,
    /// `user`, `auditor` or `admin`.
    pub role: String,
}

impl Caller {
    /// As the audit log names them.
    pub fn actor(&self) -> String {
        format!("user:{}", self.user_id.uuid())
    }

    /// 403 for everybody else.
    pub fn must_be_admin(&self) -> Result<(), ApiError> {
        if self.role == "admin" {
            Ok(())
        } else {
            Err(ApiError::Forbidden(Problem::new(
                "admin_only",
                "This needs the role `admin`.",
            )))
        }
    }
}

impl<S> FromRequestParts<S> for Caller
where
    AppState: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let state = AppState::from_ref(state);
        let claims = state.tokens.verify(bearer(&parts.headers)?).map_err(|error| {
            refuse(
                "invalid_token",
                match error {
                    TokenError::Expired => "The access token has expired; get a new one from /v1/auth/token.",
                    _ => "The access token is not valid; get one from /v1/auth/token.",
                },
            )
        })?;
        let account = state.accounts.find(claims.sub).await?;
        let Some(account) = account.filter(|account| account.is_active) else {
            return Err(refuse("invalid_token", "This account is not active."));
        };
        if let Some(notes) = parts.extensions.get::<RequestNotes>() {
            notes.set_user(account.user_id);
        }
        Ok(Self {
            user_id: account.user_id,
            tenant_id: account.tenant_id,
            project_id: account.project_id,
            role: account.role,
        })
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        refuse(
            "missing_token",
            "This request needs an `Authorization: Bearer` header with an access token.",
        )
    };
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(token.trim())
    } else {
        Err(missing())
    }
}

fn refuse(code: &'static str, message: &str) -> ApiError {
    ApiError::Unauthenticated(Problem::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn the_scheme_is_read_in_any_case_and_others_are_refused() {
        assert_eq!(bearer(&with("Bearer abc")).unwrap(), "abc");
        assert_eq!(bearer(&with("bEARER  abc")).unwrap(), "abc");
        for bad in ["abc", "Basic abc", "Bearer"] {
            assert!(bearer(&with(bad)).is_err(), "{bad}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
    }
}
