//! `/v1/auth/{provider}/…`: signing in with an OpenID Connect provider or GitHub, and linking one to an account.
//!
//! Whoever is new gets an account, by an address that the provider has verified. Where that address has an account already,
//! nobody is let in: its owner signs in with the password and links the provider. Never the other way round, since whoever
//! registered the address need not be whom the provider knows.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::SessionId;
use claimcheck_common::store::accounts::{Account, NewUser};
use claimcheck_common::store::audit::{self, By, Entry};
use claimcheck_common::store::identities::{self, Subject};
use claimcheck_common::store::{StoreError, sign_ins};
use rand::RngExt;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::token::{TokenBody, begin_session};
use crate::app::AppState;
use crate::docs::{BadQuery, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::caller::Credential;
use crate::extract::path::NamePath;
use crate::extract::{Caller, Origin, Query};
use crate::sign_in::{Identity, Provider, SignInError, TICKET_LIFETIME, Ticket};
use crate::validate::account::{Email, Username};

/// Seconds after which a provider may be back.
const RETRY_AFTER_AWAY: u32 = 5;
/// Names that are tried for a new account; from the second one on they end in drawn digits.
const NAMES: usize = 6;
/// Longest name of a provider's that is taken over, with room for digits.
const NAME_MAX: usize = 40;

/// Somebody to sign in with.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProviderBody {
    /// What routes call it.
    #[schema(example = "github")]
    pub name: String,
    /// Always `provider`.
    pub object: &'static str,
    /// What people call it.
    #[schema(example = "GitHub")]
    pub label: String,
    /// Where a browser begins.
    #[schema(example = "/v1/auth/github/start")]
    pub start: String,
}

/// Whom one can sign in with.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProviderList {
    /// Always `list`.
    pub object: &'static str,
    /// In the configured order.
    pub data: Vec<ProviderBody>,
}

/// Where to go to link a provider.
#[derive(Debug, Serialize, ToSchema)]
pub struct LinkBody {
    /// Always `link`.
    pub object: &'static str,
    /// The provider's page; open it in the browser that holds the cookie of this answer.
    pub url: String,
    /// Seconds for which this is good.
    pub expires_in: u64,
}

/// List whom to sign in with
#[utoipa::path(get, path = "/v1/auth/providers", tag = "Accounts", responses(
    (status = 200, body = ProviderList, description = "OpenID Connect providers and GitHub, as far as they are configured"),
    BadQuery, Trouble,
))]
pub async fn list_providers(State(state): State<AppState>, query: Query) -> Result<Reply<ProviderList>, ApiError> {
    query.only(&[])?;
    let providers = state.providers.all().iter().map(|one| ProviderBody {
        name: one.name.clone(),
        object: "provider",
        label: one.label.clone(),
        start: format!("/v1/auth/{}/start", one.name),
    });
    Ok(Reply(ProviderList {
        object: "list",
        data: providers.collect(),
    }))
}

/// Sign in with a provider
///
/// For browsers: sends them to the provider, with a cookie that they bring back within ten minutes.
#[utoipa::path(get, path = "/v1/auth/{provider}/start", tag = "Accounts",
    params(("provider" = String, Path, description = "A name from `GET /v1/auth/providers`")),
    responses(
        (status = 303, description = "Go there", headers(
            ("Location" = String, description = "The provider's page"),
            ("Set-Cookie" = String, description = "The sign-in's secret, for this browser alone"))),
        (status = 404, body = ErrorBody, description = "There is no such provider"),
        (status = 429, body = ErrorBody, description = "Too many sign-ins from this address"),
        BadQuery, Trouble,
    ))]
pub async fn start(
    State(state): State<AppState>,
    NamePath(name): NamePath,
    origin: Origin,
    query: Query,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let provider = find(&state, &name)?;
    let (ticket, url) = begin(&state, provider, &origin, None).await?;
    let given = state.providers.cookie().give(&ticket);
    let headers = [(header::LOCATION, url.parse().ok()), (header::SET_COOKIE, given)];
    Ok((StatusCode::SEE_OTHER, set(headers)?).into_response())
}

/// Link a provider to the account
///
/// Answers where to go with the cookie of this answer. The link is made on coming back, if the session still goes on and the
/// provider has verified the account's address.
#[utoipa::path(post, path = "/v1/auth/{provider}/link", tag = "Accounts",
    params(("provider" = String, Path, description = "A name from `GET /v1/auth/providers`")),
    responses(
        (status = 200, body = LinkBody, description = "Where to go", headers(
            ("Set-Cookie" = String, description = "The sign-in's secret, for this browser alone"))),
        (status = 404, body = ErrorBody, description = "There is no such provider"),
        (status = 429, body = ErrorBody, description = "Too many sign-ins from this address"),
        Trouble,
    ))]
pub async fn link(
    State(state): State<AppState>,
    NamePath(name): NamePath,
    caller: Caller,
    origin: Origin,
    query: Query,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let provider = find(&state, &name)?;
    let Credential::Token(session) = caller.credential else {
        return Err(ApiError::internal("a route for users was entered by something else"));
    };
    let (ticket, url) = begin(&state, provider, &origin, Some(session)).await?;
    let body = LinkBody {
        object: "link",
        url,
        expires_in: TICKET_LIFETIME.as_secs(),
    };
    let headers = [(header::SET_COOKIE, state.providers.cookie().give(&ticket))];
    Ok((set(headers)?, Reply(body)).into_response())
}

/// Come back from a provider
///
/// Where the provider sends the browser. Answers the same as `/v1/auth/token`; a link that was asked for is made before.
/// Other parameters are ignored, as RFC 6749 (section 4.1.2) asks.
#[utoipa::path(get, path = "/v1/auth/{provider}/callback", tag = "Accounts",
    params(
        ("provider" = String, Path, description = "A name from `GET /v1/auth/providers`"),
        ("state" = Option<String>, Query, description = "What the sign-in began with"),
        ("code" = Option<String>, Query, description = "The provider's code, good once"),
        ("iss" = Option<String>, Query, description = "Who sends it (RFC 9207)"),
        ("error" = Option<String>, Query, description = "Why there is no code")),
    responses(
        (status = 200, body = TokenBody, description = "Signed in"),
        (status = 400, body = ErrorBody, description = "The sign-in was not begun in this browser, is used up or too old \
            (`invalid_state`), or there is no code"),
        (status = 401, body = ErrorBody, description = "The provider does not vouch for anybody (`sign_in_refused`)"),
        (status = 403, body = ErrorBody, description = "The provider has verified no address that will do (`email_not_verified`)"),
        (status = 404, body = ErrorBody, description = "There is no such provider"),
        (status = 409, body = ErrorBody, description = "The address has an account, whose owner must link the provider \
            (`account_exists`), or the link is taken (`already_linked`)"),
        Trouble,
    ))]
pub async fn callback(
    State(state): State<AppState>,
    NamePath(name): NamePath,
    origin: Origin,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let provider = find(&state, &name)?;
    let told = |name| query.get(name, |text| Ok(text.to_owned()));
    let lost = || {
        let message =
            "This sign-in was not begun in this browser, is used up, or is older than ten minutes; begin again.";
        ApiError::Invalid(Problem::new("invalid_state", message).at("state"))
    };
    let (ticket, shown) = state
        .providers
        .cookie()
        .read(&headers)
        .zip(told("state")?)
        .ok_or_else(lost)?;
    if !ticket.is_state(&shown) {
        return Err(lost());
    }
    let begun = sign_ins::take(&state.pool, ticket.digest(), &provider.name).await?;
    let begun = begun.ok_or_else(lost)?;
    let returned = match (told("error")?, told("code")?.filter(|code| !code.is_empty())) {
        (Some(_), _) => Err(refused("The provider did not sign you in; begin again.")),
        (None, None) => Err(ApiError::invalid("code", "`code` is missing; begin again.")),
        (None, Some(code)) => Ok((code, told("iss")?)),
    };
    let outcome = match returned {
        Ok((code, iss)) => let_in(&state, provider, &ticket, code, iss.as_deref(), begun.session, &origin).await,
        Err(error) => Err(error),
    };
    let outcome = match outcome {
        Ok(answer) => answer,
        Err(error) => {
            write_down(&state, provider, &error, &origin).await?;
            error.into_response()
        }
    };
    // It is used up, whatever came of it.
    let gone = [(header::SET_COOKIE, state.providers.cookie().take_back())];
    Ok((set(gone)?, outcome).into_response())
}

fn find<'a>(state: &'a AppState, name: &str) -> Result<&'a Provider, ApiError> {
    state.providers.find(name).ok_or_else(|| {
        let message = "There is no such provider; GET /v1/auth/providers lists those that there are.";
        ApiError::NotFound(Problem::new("provider_not_found", message).at("provider"))
    })
}

async fn begin(
    state: &AppState,
    provider: &Provider,
    origin: &Origin,
    session: Option<SessionId>,
) -> Result<(Ticket, String), ApiError> {
    state.limits.sign_in(None, origin).await?;
    let ticket = Ticket::draw();
    let url = state.providers.authorize(provider, &ticket).await.map_err(failed)?;
    sign_ins::begin(&state.pool, ticket.digest(), &provider.name, session, TICKET_LIFETIME).await?;
    Ok((ticket, url.into()))
}

async fn let_in(
    state: &AppState,
    provider: &Provider,
    ticket: &Ticket,
    code: String,
    iss: Option<&str>,
    session: Option<SessionId>,
    origin: &Origin,
) -> Result<Response, ApiError> {
    let identity = state.providers.identify(provider, ticket, code, iss).await;
    let identity = identity.inspect_err(|error| tracing::warn!(provider = provider.name, %error, "a sign-in failed"));
    let identity = identity.map_err(failed)?;
    let known = identities::recognise(&state.pool, &identity.issuer, &identity.subject).await?;
    let account = match (session, known) {
        (Some(session), known) => join(state, provider, &identity, session, known, origin).await?,
        (None, Some(account)) => account,
        (None, None) => admit(state, provider, identity, origin).await?,
    };
    if !account.is_active {
        return Err(refused("This account is not active."));
    }
    let by = by(provider, &account, origin);
    begin_session(state, account.user_id, by).await
}

/// Somebody who was never here.
async fn admit(
    state: &AppState,
    provider: &Provider,
    identity: Identity,
    origin: &Origin,
) -> Result<Account, ApiError> {
    let email = identity.emails.iter().find_map(|email| Email::parse(email).ok());
    let email = email.ok_or_else(|| {
        let message = format!(
            "{} has verified no e-mail address of yours; have it do so, and begin again.",
            provider.label
        );
        ApiError::Forbidden(Problem::new("email_not_verified", message))
    })?;
    // Of a secret that is kept nowhere: no password fits.
    let nobodys = crate::auth::Secret::draw(crate::auth::SecretKind::SignIn)
        .expose()
        .to_owned();
    let password_hash = state.passwords.hash(nobodys.into()).await?;
    let wish = identity.name.unwrap_or_else(|| email.as_str().to_owned());
    let subject = Subject {
        issuer: identity.issuer,
        subject: identity.subject,
        email: email.as_str().to_owned(),
    };
    for place in 0..NAMES {
        let user = NewUser {
            username: username(&wish, place > 0),
            email: email.as_str().to_owned(),
            password_hash: password_hash.clone(),
        };
        let credential = Some(credential(provider));
        match identities::register(&state.pool, user, subject.clone(), origin.audit(credential)).await {
            Err(StoreError::Conflict { constraint }) if constraint == "users_username_key" => {}
            made => return made.map_err(|error| taken(error, provider)),
        }
    }
    Err(ApiError::internal("no username was free"))
}

/// A name that an account can have, after what somebody would like to be called.
fn username(wish: &str, is_taken: bool) -> String {
    let local = wish.split('@').next().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let kept: String = local
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(NAME_MAX)
        .collect();
    let kept = kept.trim_matches('-');
    let name = if kept.len() < 3 {
        format!("user-{kept}")
    } else {
        kept.to_owned()
    };
    let name = if is_taken {
        format!("{name}-{:06}", rand::rng().random_range(0..1_000_000))
    } else {
        name
    };
    let name = name.trim_end_matches('-').to_owned();
    Username::parse(&name).map_or_else(|_| "user".to_owned(), |_| name)
}

/// Links the provider to the account whose session asked for it.
async fn join(
    state: &AppState,
    provider: &Provider,
    identity: &Identity,
    session: SessionId,
    known: Option<Account>,
    origin: &Origin,
) -> Result<Account, ApiError> {
    let owner = identities::owner(&state.pool, session).await?;
    let owner =
        owner.ok_or_else(|| refused("The session that asked for this link has ended; sign in and begin again."))?;
    if known.is_some_and(|known| known.user_id == owner.user_id) {
        return Ok(owner);
    }
    // Another address may be another person's: whoever has stolen a token must not make more of it.
    let email = identity
        .emails
        .iter()
        .find(|email| email.to_lowercase() == owner.email.to_lowercase());
    let email = email.ok_or_else(|| {
        let message = format!(
            "{} has not verified the address of this account, so it is not linked.",
            provider.label
        );
        ApiError::Forbidden(Problem::new("email_not_verified", message))
    })?;
    let subject = Subject {
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        email: email.clone(),
    };
    let by = by(provider, &owner, origin);
    let linked = identities::link(&state.pool, owner.clone(), subject, by).await;
    linked.map_err(|error| taken(error, provider))?;
    Ok(owner)
}

fn taken(error: StoreError, provider: &Provider) -> ApiError {
    let StoreError::Conflict { constraint } = &error else {
        return error.into();
    };
    let (code, message) = match constraint.as_str() {
        "users_email_key" => (
            "account_exists",
            format!(
                "There is an account with this e-mail address. Sign in to it, at POST /v1/auth/token, and link {} to it at POST \
                 /v1/auth/{}/link.",
                provider.label, provider.name
            ),
        ),
        "identities_issuer_subject_key" => (
            "already_linked",
            format!("This user of {} is linked to another account.", provider.label),
        ),
        "identities_user_issuer_key" => (
            "already_linked",
            format!(
                "Another user of {} is linked to this account; unlink it first.",
                provider.label
            ),
        ),
        _ => return error.into(),
    };
    ApiError::Conflict(Problem::new(code, message))
}

fn failed(error: SignInError) -> ApiError {
    match error {
        SignInError::Refused(_) => refused("The provider's answer does not hold; begin again."),
        SignInError::Away(_) => ApiError::Unavailable {
            message: "The provider cannot be reached right now; try again in a moment, or sign in by other means.",
            retry_after: RETRY_AFTER_AWAY,
            cause: Some(error.into()),
        },
    }
}

fn refused(message: &str) -> ApiError {
    ApiError::Unauthenticated(Problem::new("sign_in_refused", message))
}

fn credential(provider: &Provider) -> String {
    format!("provider:{}", provider.name)
}

fn by(provider: &Provider, account: &Account, origin: &Origin) -> By {
    By {
        origin: origin.audit(Some(credential(provider))),
        ..By::from(account.user_id)
    }
}

/// A sign-in that came to nothing stands in the log like one with a wrong password.
async fn write_down(state: &AppState, provider: &Provider, error: &ApiError, origin: &Origin) -> Result<(), ApiError> {
    if error.status().is_server_error() {
        return Ok(());
    }
    let by = By {
        origin: origin.audit(Some(credential(provider))),
        ..By::from("anonymous")
    };
    let entry = Entry::done(None, "session.begun", None).refused();
    let entry = entry.with(json!({"because": error.code()}));
    Ok(audit::record(&state.pool, &by, entry).await?)
}

type Headers<const N: usize> = [(HeaderName, axum::http::HeaderValue); N];

fn set<const N: usize>(headers: [(HeaderName, Option<axum::http::HeaderValue>); N]) -> Result<Headers<N>, ApiError> {
    if headers.iter().any(|(_, value)| value.is_none()) {
        return Err(ApiError::internal("a header cannot be written"));
    }
    Ok(headers.map(|(name, value)| (name, value.unwrap_or(axum::http::HeaderValue::from_static("")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_gives_nobody_a_name_that_no_account_can_have() {
        for (wish, name) in [
            ("ada", "ada"),
            ("ada.lovelace@example.org", "ada.lovelace"),
            ("Ada Lovelace", "Ada-Lovelace"),
            ("<script>alert(1)</script>", "script-alert-1---script"),
            ("ä", "user"),
            ("x", "user-x"),
            ("", "user"),
        ] {
            assert_eq!(username(wish, false), name, "{wish}");
        }
        for wish in ["ada", "", &"a".repeat(500), "\u{0}\r\n"] {
            for is_taken in [false, true] {
                assert!(Username::parse(&username(wish, is_taken)).is_ok(), "{wish:?}");
            }
        }
        assert_ne!(username("ada", true), username("ada", true));
    }
}
