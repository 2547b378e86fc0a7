//! Signing in with others: OpenID Connect providers (`openid.rs`) and GitHub (`github.rs`), by the authorization code flow with
//! PKCE (RFC 6749, section 4.1; RFC 7636; RFC 9700, section 2.1.1).
//!
//! A [`Ticket`] in a cookie binds a sign-in to the browser that began it. A provider is asked for one thing: who this is, and
//! by which addresses that it has verified ([`Identity`]); its tokens are used for nothing else and kept nowhere. Whose account
//! that is, is decided in `routes/sign_in.rs` and `common/src/store/identities.rs`.
//!
//! Must never follow a provider's redirect, wait for it or read from it without bound, or take anything of the flow from the
//! caller: redirect URI, scopes and endpoints come from the configuration and the provider's own metadata.

mod github;
mod http;
mod openid;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::config::{Environment, ProviderConfig, ProviderKind, SignInConfig};
use oauth2::{RedirectUrl, RequestTokenError};
use tokio::sync::Semaphore;
use url::Url;

use self::github::GitHub;
use self::http::{Http, HttpError};
use self::openid::OpenId;

pub use self::ticket::{Cookie, TICKET_LIFETIME, Ticket};

/// All that is asked of a provider for one step of a sign-in has come within this.
const STEP_TIME: Duration = Duration::from_secs(10);
/// Steps at the same time: a provider that hangs keeps so many requests waiting and no more.
const STEPS: usize = 64;

/// Who a provider says this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who says it: an OpenID Connect issuer, or GitHub's URL. With the subject it names one person for good.
    pub issuer: String,
    /// The provider's own name for them, which it gives to nobody else.
    pub subject: String,
    /// Addresses that the provider has verified, the main one first.
    pub emails: Vec<String>,
    /// What they would like to be called.
    pub name: Option<String>,
}

/// Why nobody was recognised.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The provider does not answer, or not as it should: 503, later it may.
    #[error("the provider is away: {0}")]
    Away(String),
    /// The provider does not vouch for anybody, or what it says does not hold.
    #[error("the provider does not vouch: {0}")]
    Refused(String),
}

/// Those whom the installation is configured for. Cheap to clone.
#[derive(Clone)]
pub struct Providers {
    inner: Arc<Inner>,
}

struct Inner {
    providers: Vec<Provider>,
    http: Http,
    cookie: Cookie,
    steps: Semaphore,
}

/// One of them.
pub struct Provider {
    /// What routes call it.
    pub name: String,
    /// What people call it.
    pub label: String,
    authority: Authority,
}

enum Authority {
    OpenId(Box<OpenId>),
    GitHub(Box<GitHub>),
}

impl Providers {
    /// Asks nobody yet.
    pub fn new(config: &SignInConfig, env: Environment) -> anyhow::Result<Self> {
        config.check(env)?;
        let providers = config.providers.iter().map(|one| {
            let back = config.public_url.as_ref().map_or("", Url::as_str).trim_end_matches('/');
            let redirect = RedirectUrl::new(format!("{back}/v1/auth/{}/callback", one.name))?;
            Provider::new(one, redirect)
        });
        let secure = config.public_url.as_ref().is_some_and(|url| url.scheme() == "https");
        let inner = Inner {
            providers: providers.collect::<Result<_, _>>()?,
            http: Http::new(env == Environment::Production)?,
            cookie: Cookie::new(secure),
            steps: Semaphore::new(STEPS),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All of them.
    pub fn all(&self) -> &[Provider] {
        &self.inner.providers
    }

    /// The one of that name.
    pub fn find(&self, name: &str) -> Option<&Provider> {
        self.inner.providers.iter().find(|one| one.name == name)
    }

    /// The one who speaks for that issuer.
    pub fn of_issuer(&self, issuer: &str) -> Option<&Provider> {
        self.inner.providers.iter().find(|one| one.issuer() == issuer)
    }

    /// How tickets travel.
    pub fn cookie(&self) -> &Cookie {
        &self.inner.cookie
    }

    /// Where the browser that holds `ticket` is to go.
    pub async fn authorize(&self, provider: &Provider, ticket: &Ticket) -> Result<Url, SignInError> {
        let url = match &provider.authority {
            Authority::OpenId(openid) => self.step(openid.authorize(&self.inner.http, ticket)).await?,
            Authority::GitHub(github) => github.authorize(ticket),
        };
        if matches!(url.scheme(), "https" | "http") {
            Ok(url)
        } else {
            Err(SignInError::Away(
                "its authorization endpoint is no web page".to_owned(),
            ))
        }
    }

    /// Who came back with `code`. `iss` is who says to have sent them (RFC 9207).
    pub async fn identify(
        &self,
        provider: &Provider,
        ticket: &Ticket,
        code: String,
        iss: Option<&str>,
    ) -> Result<Identity, SignInError> {
        let http = &self.inner.http;
        match &provider.authority {
            Authority::OpenId(openid) => self.step(openid.identify(http, ticket, code, iss)).await,
            Authority::GitHub(github) => self.step(github.identify(http, ticket, code)).await,
        }
    }

    async fn step<T>(&self, asking: impl Future<Output = Result<T, SignInError>>) -> Result<T, SignInError> {
        let busy = || SignInError::Away("too many sign-ins wait for providers".to_owned());
        let _permit = self.inner.steps.try_acquire().map_err(|_| busy())?;
        let late = |_| SignInError::Away(format!("no answer within {STEP_TIME:?}"));
        tokio::time::timeout(STEP_TIME, asking).await.map_err(late)?
    }
}

impl Provider {
    fn new(config: &ProviderConfig, redirect: RedirectUrl) -> Result<Self, oauth2::url::ParseError> {
        let authority = match &config.kind {
            ProviderKind::OpenId { issuer } => Authority::OpenId(Box::new(OpenId::new(config, issuer, redirect)?)),
            ProviderKind::GitHub { url, api_url } => {
                Authority::GitHub(Box::new(GitHub::new(config, url, api_url, redirect)?))
            }
        };
        Ok(Self {
            name: config.name.clone(),
            label: config.label.clone(),
            authority,
        })
    }

    /// Who vouches for its users.
    pub fn issuer(&self) -> &str {
        match &self.authority {
            Authority::OpenId(openid) => openid.issuer(),
            Authority::GitHub(github) => github.issuer(),
        }
    }
}

impl From<HttpError> for SignInError {
    fn from(error: HttpError) -> Self {
        Self::Away(error.to_string())
    }
}

/// A code that was not taken is the caller's affair, all else the provider's.
fn exchange_failed<T: oauth2::ErrorResponse + 'static>(error: RequestTokenError<HttpError, T>) -> SignInError {
    match error {
        RequestTokenError::ServerResponse(told) => SignInError::Refused(format!("{told:?}")),
        RequestTokenError::Request(error) => error.into(),
        // GitHub tells of errors with status 200.
        RequestTokenError::Parse(_, body) if is_refusal(&body) => {
            SignInError::Refused("the code was not taken".to_owned())
        }
        RequestTokenError::Parse(error, _) => SignInError::Away(format!("its token answer does not read: {error}")),
        RequestTokenError::Other(what) => SignInError::Away(what),
    }
}

fn is_refusal(body: &[u8]) -> bool {
    let read: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    read.is_some_and(|body| body.get("error").is_some())
}
