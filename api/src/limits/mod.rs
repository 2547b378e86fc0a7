//! How much callers may ask for: rates by credential, project and address, counted in Redis for all processes together.
//!
//! A route that generates says so beside its path (`Generate`, in `router.rs`); signing in asks [`Limits::sign_in`] before
//! anything is hashed. All limits of a request are one script call: either all count it or none. The same call tells whether what is
//! known of the caller still holds ([`Limits::still`], for `auth/known.rs`).
//! Limits of jobs that wait and of tokens live in Postgres, with the submit (`common/src/store/quota.rs`).
//!
//! While Redis is away, each process counts requests that generate by itself; sign-ins are refused, since whoever guesses
//! passwords must not gain by it.

mod gcra;
mod headers;
mod shared;
mod tenants;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::config::{LimitsConfig, Plan};
use claimcheck_common::domain::Rate;
use claimcheck_common::redis::Redis;
use claimcheck_common::store::Pool;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::gcra::{Ask, Local, Outcome};
use self::shared::{Shared, Still as Answer};
use self::tenants::Tenants;
use crate::error::{ApiError, Problem};
use crate::extract::caller::Credential;
use crate::extract::{Caller, Origin};

pub use self::gcra::Standing;
pub use self::headers::write as write_headers;
pub use self::shared::{Mark, Marks};

/// Seconds after which a caller who could not be counted may try again.
const RETRY_AFTER_AWAY: u32 = 2;

/// The limiter. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

struct Inner {
    config: LimitsConfig,
    redis: Redis,
    shared: Shared,
    local: Local,
    tenants: Tenants,
}

/// What is known of somebody whose account and project had certain marks.
#[derive(Debug)]
pub enum Still {
    /// All of it still holds. What the rates say of the request, if it was to be counted.
    Holds(Result<(), ApiError>),
    /// Something changed: it is to be learned anew, under these marks. Nothing was counted.
    Changed(Marks),
    /// Nobody can tell.
    Unknown,
}

/// What is done about a request that Redis cannot count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenAway {
    CountHere,
    Refuse,
}

impl Limits {
    /// Counts nothing yet.
    pub fn new(config: LimitsConfig, redis: Redis) -> Self {
        let inner = Inner {
            shared: Shared::new(redis.clone()),
            redis,
            local: Local::default(),
            tenants: Tenants::default(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follows tenants' plans and the age of the queue until `stop`. Until the first look all have the default plan.
    pub async fn watch(self, pool: Pool, stop: CancellationToken) {
        self.inner.tenants.watch(pool, &self.inner.config, stop).await;
    }

    /// The networks of the proxies that are believed about whom they speak for.
    pub fn trusted_proxies(&self) -> &[ipnet::IpNet] {
        &self.inner.config.trusted_proxies
    }

    /// Whether there is a plan of that name.
    pub fn has_plan(&self, name: &str) -> bool {
        self.inner.config.plans.find(name).is_some()
    }

    /// Counts a request that generates; 429 if it is one too many for its credential or its address.
    pub async fn generation(&self, caller: &Caller, origin: &Origin) -> Result<(), ApiError> {
        let asks = self.asks(caller, origin);
        self.count(asks, origin, WhenAway::CountHere).await
    }

    /// The marks of an account and a project, under which what is now read of them may be kept; `None` if nobody can tell.
    pub async fn marks(&self, whose: [Uuid; 2]) -> Option<Marks> {
        self.inner.shared.marks(whose).await.ok()
    }

    /// Whether the marks of an account and a project are those that are known; if they are, counts the request of a caller that
    /// generates. The mark of the names is noted.
    pub async fn still(&self, whose: [Uuid; 2], known: Marks, counted: Option<&Caller>, origin: &Origin) -> Still {
        let asks = counted.map_or_else(Vec::new, |caller| self.asks(caller, origin));
        let (answer, names) = match self.inner.shared.take_if(whose, known, &asks).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "what is known of a caller could not be confirmed");
                return Still::Unknown;
            }
        };
        origin.notes.set_names(names);
        match answer {
            Answer::Same(outcome) => Still::Holds(counted.map_or(Ok(()), |_| settle(outcome, origin))),
            Answer::Other(marks) => Still::Changed(marks),
        }
    }

    /// Tells every process that what it knows of this account or project is no good any more. While Redis is away nobody trusts
    /// what they know, and who has it back before hears of the change from the database.
    pub async fn forget(&self, whose: Uuid) {
        if let Err(error) = self.inner.shared.forget(whose).await {
            tracing::debug!(%error, "a change of access is told by the database alone");
        }
    }

    /// Tells every process that names lead to other models now. `false`: nobody could be told.
    pub async fn forget_names(&self) -> bool {
        let told = self.inner.shared.forget_names().await;
        if let Err(error) = &told {
            tracing::debug!(%error, "nobody is told of a change of names");
        }
        told.is_ok()
    }

    /// The limits that a request of `caller` that generates is held against.
    fn asks(&self, caller: &Caller, origin: &Origin) -> Vec<Ask> {
        let Inner { config, tenants, .. } = &*self.inner;
        let plan = tenants.plan(caller.tenant_id, config);
        let project = tenants.rate(caller.project_id);
        let project = self.ask("project", project, || caller.project_id.uuid().to_string());
        if plan == Plan::UNLIMITED {
            return project.into_iter().collect();
        }
        let part = tenants.part();
        let (policy, rate, whose) = match &caller.credential {
            Credential::Token(_) => ("user", plan.user.0, caller.user_id.uuid()),
            // A program, whatever it shows.
            Credential::Service(_) => ("key", plan.key.0, caller.user_id.uuid()),
            Credential::Key(key) => ("key", plan.key.0, key.id.uuid()),
        };
        let asks = [
            self.ask(policy, rate, || whose.to_string()),
            project,
            self.ask("address", config.address_rate.0, || place(origin.address)),
        ];
        asks.into_iter().flatten().map(|ask| ask.at(part)).collect()
    }

    /// Counts an attempt to sign in to `account` (to register: to none) before it costs anything: 429 beyond the limits of the
    /// account and of the address, 503 while nobody can count.
    pub async fn sign_in(&self, account: Option<&str>, origin: &Origin) -> Result<(), ApiError> {
        let config = &self.inner.config;
        let asks = [
            account.and_then(|name| self.ask("account", config.login_rate.0, || digest(name))),
            self.ask("login-address", config.login_address_rate.0, || place(origin.address)),
        ];
        let asks = asks.into_iter().flatten().collect();
        self.count(asks, origin, WhenAway::Refuse).await
    }

    fn ask(&self, policy: &'static str, rate: Option<Rate>, whose: impl FnOnce() -> String) -> Option<Ask> {
        // Whoever is given another rate begins anew with it.
        rate.map(|rate| Ask {
            policy,
            key: self.inner.redis.key(format_args!(
                "rate:{policy}:{}:{}/{}",
                whose(),
                rate.limit(),
                rate.period().as_secs()
            )),
            rate,
        })
    }

    async fn count(&self, asks: Vec<Ask>, origin: &Origin, when_away: WhenAway) -> Result<(), ApiError> {
        if asks.is_empty() {
            return Ok(());
        }
        let outcome = match self.inner.shared.take(&asks).await {
            Ok(outcome) => outcome,
            Err(error) if when_away == WhenAway::Refuse => {
                tracing::debug!(%error, "a sign-in could not be counted");
                return Err(ApiError::Unavailable {
                    message: "Sign-ins cannot be counted right now, so there are none; try again in a moment.",
                    retry_after: RETRY_AFTER_AWAY,
                    cause: None,
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a request is counted by this process alone");
                metrics::counter!("claimcheck_limiter_local_total").increment(1);
                self.inner.local.take(&asks)
            }
        };
        settle(outcome, origin)
    }
}

/// Notes where the caller stands, and refuses what is too much.
fn settle(outcome: Outcome, origin: &Origin) -> Result<(), ApiError> {
    let refused = refusal(&outcome);
    origin.notes.set_standings(outcome.standings);
    refused.map_or(Ok(()), Err)
}

/// The refusal of the limit that takes longest to have room.
fn refusal(outcome: &Outcome) -> Option<ApiError> {
    let (standing, wait) = outcome
        .standings
        .iter()
        .filter_map(|standing| Some((standing, standing.retry_after?)))
        .max_by_key(|(_, wait)| *wait)?;
    metrics::counter!("claimcheck_rate_limited_total", "policy" => standing.policy).increment(1);
    let (rate, seconds) = (standing.rate, seconds(wait));
    let whose = match standing.policy {
        "address" | "login-address" => "from this address",
        "account" => "to sign in to this account",
        "project" => "in this project",
        _ => "with this credential",
    };
    Some(ApiError::RateLimited {
        problem: Problem::new(
            "rate_limit_exceeded",
            format!("At most {rate} requests {whose} are taken right now; try again in {seconds} s."),
        ),
        retry_after: seconds,
    })
}

/// Whole seconds, rounded up: whoever comes then is not too early.
pub fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// Whom an address stands for: an IPv6 network of 64 bits is one subscriber's (RFC 6177).
fn place(address: Option<IpAddr>) -> String {
    match address {
        None => "unknown".to_owned(),
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => format!("{:x}", address.to_bits() >> 64),
    }
}

/// Names do not stand in Redis.
fn digest(name: &str) -> String {
    hex::encode(&Sha256::digest(name.to_lowercase())[..16])
}
