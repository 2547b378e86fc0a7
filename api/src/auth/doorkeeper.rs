//! Who is calling: from the headers of a request to a [`Caller`].
//!
//! A request shows one credential: an access token or an API key in `Authorization: Bearer` (RFC 6750, section 2.1), or an
//! API key in `X-API-Key`. What the database says of it is read in one statement with the account, shared by requests that come
//! together, and then known for a while (`known.rs`, which says why whoever was deactivated, logged out or revoked is out at
//! once all the same). What a route wants of its caller is not decided here but in `access.rs`.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, header};
use claimcheck_common::domain::ProjectId;
use claimcheck_common::store::Pool;
use claimcheck_common::store::access::{self, Changed};
use claimcheck_common::store::accounts::Account;
use claimcheck_common::store::sessions::Place;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::KeyUses;
use super::known::{self, Knowledge, Known, Who};
use super::secret::{Secret, SecretKind};
use super::token::TokenError;
use super::tokens::{Tokens, TokensError};
use crate::access::Need;
use crate::error::{ApiError, Problem};
use crate::extract::Origin;
use crate::extract::caller::{Caller, Credential, KeyGrant};
use crate::extract::path::project_not_found;
use crate::limits::{Limits, Still};
use crate::reads::{AccountReads, KeyReads};

/// Where an API key may stand besides `Authorization`.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Names the project to act in.
pub const OPENAI_PROJECT: HeaderName = HeaderName::from_static("openai-project");

/// Tells callers from strangers.
pub struct Doorkeeper {
    tokens: Arc<Tokens>,
    accounts: AccountReads,
    keys: KeyReads,
    uses: KeyUses,
    limits: Limits,
    known: Known,
}

/// What a request shows.
#[derive(Clone, Copy)]
enum Shown<'a> {
    Token(&'a str),
    Key(&'a str),
}

/// The same, in its form; a key that is mistyped is none.
enum Presented<'a> {
    Token(&'a str),
    Key(Secret),
}

impl Doorkeeper {
    /// Wires the parts.
    pub fn new(tokens: Arc<Tokens>, accounts: AccountReads, keys: KeyReads, uses: KeyUses, limits: Limits) -> Self {
        Self {
            tokens,
            accounts,
            keys,
            uses,
            limits,
            known: Known::default(),
        }
    }

    /// Whose request this is, who has what the route needs, and whose request was counted if the route generates. 401, 403 or 429
    /// for everybody else.
    pub async fn recognise(&self, headers: &HeaderMap, need: Need, origin: &Origin) -> Result<Caller, ApiError> {
        let project = named(headers);
        let presented = read(shown(headers)?)?;
        let shown: known::Shown = (presented.digest(), project);
        // Read before the database, so that what is kept is no older than these say.
        let marks = match self.known.find(&shown) {
            Some(Knowledge::Who(who, marks)) if who.keys == self.tokens.generation() => {
                let caller = who.caller();
                let fits = need.met_by(&caller);
                let counted = (fits.is_ok() && need.counts()).then_some(&caller);
                match self.limits.still(who.whose(), marks, counted, origin).await {
                    Still::Holds(passes) => {
                        self.note(&caller, origin);
                        return fits.and(passes).map(|()| caller);
                    }
                    Still::Changed(marks) => Some((who.whose(), marks)),
                    Still::Unknown => None,
                }
            }
            Some(Knowledge::Whose(whose)) => self.limits.marks(whose).await.map(|marks| (whose, marks)),
            _ => None,
        };
        let moment = self.known.moment();
        let who = Arc::new(self.look(presented, project).await?);
        let marks = marks.filter(|(whose, _)| *whose == who.whose());
        self.known.keep(shown, &who, marks.map(|(_, marks)| marks), moment);
        let caller = who.caller();
        self.note(&caller, origin);
        need.met_by(&caller)?;
        if need.counts() {
            self.limits.generation(&caller, origin).await?;
        }
        Ok(caller)
    }

    /// What came of a change of access, once every process has been told of it.
    pub async fn told<T>(&self, change: Changed<T>) -> T {
        let (outcome, whose) = change.into_parts();
        if let Some(whose) = whose {
            self.known.forget(Some(whose));
            self.limits.forget(whose).await;
        }
        outcome
    }

    /// Hears of changes until `stop`.
    pub async fn listen(self: Arc<Self>, pool: Pool, stop: CancellationToken) {
        access::listen(pool, |whose| self.known.forget(whose), stop).await;
    }

    fn note(&self, caller: &Caller, origin: &Origin) {
        origin.notes.set_user(caller.user_id);
        if let Some(key) = caller.key() {
            self.uses.note(key.id);
        }
    }

    /// By the database.
    async fn look(&self, presented: Presented<'_>, project: Option<ProjectId>) -> Result<Who, ApiError> {
        match presented {
            Presented::Token(token) => self.by_token(token, project).await,
            Presented::Key(secret) => self.by_key(&secret, project).await,
        }
    }

    async fn by_token(&self, token: &str, project: Option<ProjectId>) -> Result<Who, ApiError> {
        let keys = self.tokens.generation();
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
        let credential = present
            .scopes
            .map_or(Credential::Token(claims.sid), Credential::Service);
        let account = active(present.account)?;
        let place = present.place.ok_or_else(project_not_found)?;
        let left = present.left.min(claims.left());
        Ok(who(&account, place, (credential, claims.sid.uuid()), left, keys))
    }

    async fn by_key(&self, secret: &Secret, project: Option<ProjectId>) -> Result<Who, ApiError> {
        let keys = self.tokens.generation();
        let Some(holder) = self.keys.find(secret.sha256()).await? else {
            return Err(bad(
                "The API key is unknown, expired or revoked; make one at /v1/api_keys.",
            ));
        };
        let (id, place) = (holder.id, holder.place);
        let account = active(holder.account)?;
        if project.is_some_and(|project| project != place.project_id) {
            return Err(project_not_found());
        }
        let grant = holder.grant;
        let credential = Credential::Key(Arc::new(KeyGrant { id, grant }));
        let left = holder.left.unwrap_or(Duration::MAX);
        Ok(who(&account, place, (credential, id.uuid()), left, keys))
    }
}

impl Presented<'_> {
    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Token(token) => Sha256::digest(token).into(),
            Self::Key(secret) => secret.sha256(),
        }
    }
}

fn read(shown: Shown<'_>) -> Result<Presented<'_>, ApiError> {
    match shown {
        Shown::Token(token) => Ok(Presented::Token(token)),
        Shown::Key(text) => Secret::parse(SecretKind::ApiKey, text)
            .map(Presented::Key)
            .ok_or_else(|| bad("This is not an API key of this service; it is incomplete or mistyped.")),
    }
}

fn who(
    account: &Account,
    place: Place,
    (credential, credential_id): (Credential, Uuid),
    left: Duration,
    keys: u64,
) -> Who {
    Who {
        user_id: account.user_id,
        place,
        is_in_first_project: place.project_id == account.project_id,
        is_at_home: place.tenant_id == account.tenant_id && !account.is_service,
        role: account.role,
        credential,
        credential_id,
        left,
        keys,
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
