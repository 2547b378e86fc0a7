//! Who is calling: from the headers of a request to a [`Caller`].
//!
//! A request shows one credential: an access token or an API key in `Authorization: Bearer` (RFC 6750, section 2.1), or an
//! API key in `X-API-Key`. The account is read for every request, in one statement with the session or the key, so that
//! who was deactivated, logged out or revoked is out at once; requests that come together share the read. What a route wants of its caller is
//! not decided here but in `access.rs`.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, header};
use claimcheck_common::domain::ProjectId;
use claimcheck_common::store::accounts::Account;
use claimcheck_common::store::api_keys::Holder;
use claimcheck_common::store::audit::Origin;
use claimcheck_common::store::sessions::{Place, Present};
use uuid::Uuid;

use super::KeyUses;
use super::secret::{Secret, SecretKind};
use super::token::TokenError;
use super::tokens::{Tokens, TokensError};
use crate::error::{ApiError, Problem};
use crate::extract::caller::{Caller, Credential, KeyGrant};
use crate::extract::path::project_not_found;
use crate::middleware::RequestNotes;
use crate::reads::{AccountReads, KeyReads};

/// Where an API key may stand besides `Authorization`.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Names the project to act in.
pub const OPENAI_PROJECT: HeaderName = HeaderName::from_static("openai-project");

/// Tells callers from strangers.
#[derive(Clone)]
pub struct Doorkeeper {
    tokens: Arc<Tokens>,
    accounts: AccountReads,
    keys: KeyReads,
    uses: KeyUses,
}

/// What a request shows.
enum Shown<'a> {
    Token(&'a str),
    Key(&'a str),
}

impl Doorkeeper {
    /// Wires the parts.
    pub const fn new(tokens: Arc<Tokens>, accounts: AccountReads, keys: KeyReads, uses: KeyUses) -> Self {
        Self {
            tokens,
            accounts,
            keys,
            uses,
        }
    }

    /// Whose request this is, or 401.
    pub async fn recognise(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let project = named(headers);
        match shown(headers)? {
            Shown::Token(token) => self.by_token(token, project).await,
            Shown::Key(key) => self.by_key(key, project).await,
        }
    }

    async fn by_token(&self, token: &str, project: Option<ProjectId>) -> Result<Caller, ApiError> {
        let claims = self.tokens.verify(token).await.map_err(|error| match error {
            TokensError::Store(error) => error.into(),
            TokensError::Token(TokenError::Expired) => {
                bad("The access token has expired; get a new one from /v1/auth/token.")
            }
            TokensError::Token(_) => bad("The access token is not valid; get one from /v1/auth/token."),
        })?;
        let Some(present) = self.accounts.find((claims.sub, claims.sid, project)).await? else {
            return Err(bad(
                "The session of this access token has ended; sign in again at /v1/auth/token.",
            ));
        };
        let Present { account, scopes, place } = present;
        let credential = scopes.map_or(Credential::Token(claims.sid), Credential::Service);
        let account = active(account)?;
        Ok(caller(&account, place.ok_or_else(project_not_found)?, credential))
    }

    async fn by_key(&self, text: &str, project: Option<ProjectId>) -> Result<Caller, ApiError> {
        let Some(secret) = Secret::parse(SecretKind::ApiKey, text) else {
            return Err(bad(
                "This is not an API key of this service; it is incomplete or mistyped.",
            ));
        };
        let Some(holder) = self.keys.find(secret.sha256()).await? else {
            return Err(bad(
                "The API key is unknown, expired or revoked; make one at /v1/api_keys.",
            ));
        };
        let Holder {
            id,
            place,
            grant,
            account,
        } = holder;
        let account = active(account)?;
        if project.is_some_and(|project| project != place.project_id) {
            return Err(project_not_found());
        }
        self.uses.note(id);
        let credential = Credential::Key(Arc::new(KeyGrant { id, grant }));
        Ok(caller(&account, place, credential))
    }
}

fn caller(account: &Account, place: Place, credential: Credential) -> Caller {
    Caller {
        user_id: account.user_id,
        tenant_id: place.tenant_id,
        project_id: place.project_id,
        is_in_first_project: place.project_id == account.project_id,
        is_at_home: place.tenant_id == account.tenant_id && !account.is_service,
        role: account.role,
        credential,
        origin: Origin::default(),
        notes: RequestNotes::default(),
    }
}

/// The project that a request names, in the header that OpenAI's libraries write it into. What does not read, or is said twice,
/// names none that there is.
fn named(headers: &HeaderMap) -> Option<ProjectId> {
    let mut lines = headers.get_all(OPENAI_PROJECT).iter();
    let id = lines.next()?.to_str().ok().and_then(|text| text.parse().ok());
    let id = id.filter(|_| lines.next().is_none());
    Some(id.unwrap_or(ProjectId::from_uuid(Uuid::nil())))
}

fn active(account: Account) -> Result<Account, ApiError> {
    if account.is_active {
        Ok(account)
    } else {
        Err(bad("This account is not active."))
    }
}

/// Two credentials in one request are refused: what checked the one and what acts by the other could differ.
fn shown(headers: &HeaderMap) -> Result<Shown<'_>, ApiError> {
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter();
    let mut keys = headers.get_all(X_API_KEY).iter();
    match (bearers.next(), keys.next(), bearers.next(), keys.next()) {
        (Some(value), None, None, None) => {
            let (scheme, shown) = value
                .to_str()
                .ok()
                .and_then(|text| text.split_once(' '))
                .ok_or_else(missing)?;
            let shown = shown.trim();
            if !scheme.eq_ignore_ascii_case("bearer") || shown.is_empty() {
                return Err(missing());
            }
            if shown.starts_with(SecretKind::ApiKey.prefix()) {
                Ok(Shown::Key(shown))
            } else {
                Ok(Shown::Token(shown))
            }
        }
        (None, Some(value), None, None) => value.to_str().map(Shown::Key).map_err(|_| missing()),
        (None, None, ..) => Err(missing()),
        _ => Err(bad(
            "Send one credential: `Authorization` or `X-API-Key`, and that once.",
        )),
    }
}

fn missing() -> ApiError {
    let message = "This request needs an `Authorization: Bearer` header with an access token or an API key, or an API key \
                   in `X-API-Key`.";
    ApiError::Unauthenticated(Problem::new("missing_token", message))
}

fn bad(message: &str) -> ApiError {
    ApiError::Unauthenticated(Problem::new("invalid_token", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    fn code(pairs: &[(HeaderName, &str)]) -> &'static str {
        match shown(&with(pairs)) {
            Ok(Shown::Token(_)) => "token",
            Ok(Shown::Key(_)) => "key",
            Err(ApiError::Unauthenticated(problem)) => problem.code,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_scheme_is_read_in_any_case_and_others_are_refused() {
        for (value, what) in [
            ("Bearer abc", "token"),
            ("bEARER  abc", "token"),
            ("Bearer cck_abc", "key"),
            ("abc", "missing_token"),
            ("Basic abc", "missing_token"),
            ("Bearer", "missing_token"),
            ("Bearer  ", "missing_token"),
        ] {
            assert_eq!(code(&[(header::AUTHORIZATION, value)]), what, "{value}");
        }
        assert_eq!(code(&[(X_API_KEY, "cck_abc")]), "key");
        assert_eq!(code(&[]), "missing_token");
    }

    #[test]
    fn two_credentials_in_one_request_are_refused() {
        let bearer = (header::AUTHORIZATION, "Bearer abc");
        let key = (X_API_KEY, "cck_abc");
        for pairs in [
            [bearer.clone(), key.clone()],
            [bearer.clone(), bearer],
            [key.clone(), key],
        ] {
            // `collect` would keep the last one alone.
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                headers.append(name, value.parse().unwrap());
            }
            assert!(shown(&headers).is_err(), "{headers:?}");
        }
    }
}
