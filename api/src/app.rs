//! Composes the process: configuration in, a bound listener and wired parts out. Nothing else here decides anything.

use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::{
    ApiConfig, BrokerConfig, ConfigError, DatabaseConfig, DeliveryConfig, Environment, FilesConfig, JwtAlgorithm,
    LimitsConfig, PolicyConfig, Prices, RedisConfig, SignInConfig, TransportConfig, WebhookConfig, weak_password,
    weakness,
};
use claimcheck_common::deltas::Following;
use claimcheck_common::files::FileStore;
use claimcheck_common::policy::Rules;
use claimcheck_common::queue::Broker;
use claimcheck_common::redis::Redis;
use claimcheck_common::store::notify::JobChanges;
use claimcheck_common::store::{self, Lane, Pool};
use claimcheck_common::{shutdown, telemetry};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attendance::Attendance;
use crate::auth::{Doorkeeper, Key, KeyUses, Keyring, Passwords, Seal, TokenError, TokenIssuer, Tokens};
use crate::catalog::Catalog;
use crate::health::Health;
use crate::intake::Intake;
use crate::limits::Limits;
use crate::outgoing::Outgoing;
use crate::promises::Promises;
use crate::reads::{AccountReads, KeyReads};
use crate::receipt_key::ReceiptKey;
use crate::relay::Relay;
use crate::routes::submit_job::render;
use crate::serve::{ServeLimits, serve};
use crate::sign_in::Providers;
use crate::tls::Tls;
use crate::transport::{self, Transport};
use crate::uploads::Uploads;
use crate::webhooks::Webhooks;

/// Written into tokens and demanded of them.
const TOKEN_ISSUER: &str = "claimcheck";
const TOKEN_AUDIENCE: &str = "claimcheck-api";
/// Passwords that stand in line while all cores hash: a second or two of work.
const PASSWORDS_WAITING: usize = 32;
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Streams, requests that wait and some room; the system must grant as many open files.
const CONNECTIONS_MAX: usize = 16_384;
/// Streams that are open at the same time: each is a task and what its job has come to.
const STREAMS_MAX: usize = 12_288;
/// Streams whose job's place is being looked up.
const PLACE_LOOKUPS: usize = 4;
const POOL_CLOSE_TIME: Duration = Duration::from_secs(5);

/// Everything that the process is configured by.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address, tokens, drain.
    pub api: ApiConfig,
    /// Postgres.
    pub database: DatabaseConfig,
    /// RabbitMQ.
    pub broker: BrokerConfig,
    /// Redis.
    pub redis: RedisConfig,
    /// The relay's window and interval.
    pub delivery: DeliveryConfig,
    /// Where webhooks may go, and what seals their secrets.
    pub webhooks: WebhookConfig,
    /// Where files lie.
    pub files: FilesConfig,
    /// How much callers may ask for.
    pub limits: LimitsConfig,
    /// What texts are held against.
    pub policy: PolicyConfig,
    /// What is demanded of connections and requests.
    pub transport: TransportConfig,
    /// With whom users may sign in besides their password.
    pub sign_in: SignInConfig,
}

impl Config {
    /// Reads the environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self {
            api: ApiConfig::from_env()?,
            database: DatabaseConfig::from_env()?,
            broker: BrokerConfig::from_env()?,
            redis: RedisConfig::from_env()?,
            delivery: DeliveryConfig::from_env()?,
            webhooks: WebhookConfig::from_env()?,
            files: FilesConfig::from_env()?,
            limits: LimitsConfig::from_env()?,
            policy: PolicyConfig::from_env()?,
            transport: TransportConfig::from_env()?,
            sign_in: SignInConfig::from_env()?,
        }
        .fit()
    }

    /// Refuses, in production, secrets that everybody knows or could guess.
    fn fit(self) -> Result<Self, ConfigError> {
        if self.transport.env != Environment::Production {
            return Ok(self);
        }
        // What is not set is not there to be guessed.
        let if_set = |secret: Option<&SecretString>| secret.and_then(|secret| weakness(secret.expose_secret()));
        let findings = [
            ("CLAIMCHECK_JWT_SECRET", weakness(self.api.jwt_secret.expose_secret())),
            ("CLAIMCHECK_RECEIPT_SECRET", if_set(self.api.receipt_secret.as_ref())),
            ("CLAIMCHECK_WEBHOOK_KEY", if_set(self.webhooks.key.as_ref())),
            ("DATABASE_URL", weak_password(&self.database.url)),
            ("AMQP_URL", weak_password(&self.broker.url)),
        ];
        match findings.into_iter().find_map(|(name, finding)| Some((name, finding?))) {
            None => Ok(self),
            Some((name, finding)) => Err(ConfigError::Invalid(format!(
                "{name} {finding}, and CLAIMCHECK_ENV is production: set a secret of its own, for example from `openssl rand -hex 32`"
            ))),
        }
    }
}

/// What handlers share. Cheap to clone: each layer and handler of a request has a clone of its own.
#[derive(Clone)]
pub struct AppState(Arc<StateParts>);

/// The parts that handlers are made of.
pub struct StateParts {
    /// Postgres.
    pub pool: Pool,
    /// Redis, which may be away at any time.
    pub redis: Redis,
    /// Counts requests.
    pub limits: Limits,
    /// What prompts are held against.
    pub policy: Rules,
    /// Whether requests with both `temperature` and `top_p` below 1 are refused.
    pub strict_sampling: bool,
    /// Which hosts and pages are answered to.
    pub transport: Transport,
    /// With whom users may sign in besides their password.
    pub providers: Providers,
    /// Issues and verifies access tokens.
    pub tokens: Arc<Tokens>,
    /// How long a sign-in can be renewed.
    pub session_ttl: Duration,
    /// Signs receipts.
    pub receipt_key: Arc<ReceiptKey>,
    /// Hashes and checks passwords.
    pub passwords: Passwords,
    /// Who callers are.
    pub doorkeeper: Arc<Doorkeeper>,
    /// What API keys are used for.
    pub key_uses: KeyUses,
    /// The served models.
    pub catalog: Catalog,
    /// Wakes who waits for a job.
    pub changes: JobChanges,
    /// Where a job is read that somebody waits for.
    pub job_reads: Lane,
    /// Commits submissions in groups.
    pub intake: Intake,
    /// Says whose callers wait at this process's connections.
    pub attendance: Attendance,
    /// The running texts that are followed here.
    pub following: Following,
    /// Room for open streams.
    pub streams: Arc<Semaphore>,
    /// Room for looking up the places of jobs that are followed.
    pub place_lookups: Arc<Semaphore>,
    /// The bytes of files.
    pub files: FileStore,
    /// Takes files in.
    pub uploads: Uploads,
    /// Told after each commit that wrote to the outbox.
    pub outgoing: Outgoing,
    /// Most waiting jobs of a tenant that has no limit of its own.
    pub max_queued: Option<u32>,
    /// What tokens cost.
    pub prices: Prices,
    /// Holds guesses against what came of them.
    pub promises: Promises,
    /// What webhooks are made of.
    pub webhooks: Webhooks,
    /// Answers the probes.
    pub health: Health,
    /// Cancelled when the process is to stop: long waits end.
    pub stopping: CancellationToken,
}

impl Deref for AppState {
    type Target = StateParts;

    fn deref(&self) -> &StateParts {
        &self.0
    }
}

impl AppState {
    /// Wires the parts, within a runtime. Connects to nothing.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(StateParts::new(config)?.into())
    }
}

impl From<StateParts> for AppState {
    fn from(parts: StateParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl StateParts {
    /// As [`AppState::new`], to be changed before they are shared.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let pool = store::connect(&config.database).context("DATABASE_URL does not read")?;
        let tokens = tokens(&config.api, &pool).context("CLAIMCHECK_JWT_SECRET is not usable")?;
        let (tokens, key_uses) = (Arc::new(tokens), KeyUses::default());
        let redis = Redis::new(&config.redis)?;
        let limits = Limits::new(config.limits.clone(), redis.clone());
        let doorkeeper = Doorkeeper::new(
            tokens.clone(),
            AccountReads::open(pool.clone()),
            KeyReads::open(pool.clone()),
            key_uses.clone(),
            limits.clone(),
        );
        let files = FileStore::open(&config.files)?;
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let receipt_secret = config.api.receipt_secret.as_ref().unwrap_or(&config.api.jwt_secret);
        let receipt_key = ReceiptKey::from_secret(receipt_secret).context("there is no key for receipts")?;
        let outgoing = Outgoing::default();
        Ok(Self {
            tokens,
            providers: Providers::new(&config.sign_in, config.transport.env).context("CLAIMCHECK_SIGN_IN")?,
            receipt_key: Arc::new(receipt_key),
            session_ttl: config.api.session_ttl,
            following: Following::new(redis.clone()),
            limits,
            policy: Rules::open(config.policy.policy_file.clone())?,
            strict_sampling: config.policy.strict_sampling,
            transport: Transport::new(&config.transport, &config.limits.trusted_proxies)?,
            redis,
            passwords: Passwords::new(cores, PASSWORDS_WAITING)?,
            doorkeeper: Arc::new(doorkeeper),
            key_uses,
            catalog: Catalog::new(pool.clone()),
            changes: JobChanges::default(),
            job_reads: Lane::new(&pool),
            intake: Intake::open(&pool, render, outgoing.clone()),
            attendance: Attendance::new(config.delivery.hangup_grace, config.delivery.attendance()),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            place_lookups: Arc::new(Semaphore::new(PLACE_LOOKUPS)),
            uploads: Uploads::new(pool.clone(), files.clone()),
            files,
            outgoing,
            max_queued: config.api.max_queued,
            prices: config.api.prices.clone(),
            promises: Promises::default(),
            webhooks: Webhooks::new(&config.webhooks).context("the webhooks' settings cannot be used")?,
            health: Health::new(pool.clone(), &config.broker.url, &config.redis.url),
            stopping: CancellationToken::new(),
            pool,
        })
    }
}

fn tokens(config: &ApiConfig, pool: &Pool) -> Result<Tokens, TokenError> {
    let issuer = |keys| {
        let (issuer, audience) = (TOKEN_ISSUER.to_owned(), TOKEN_AUDIENCE.to_owned());
        TokenIssuer::new(keys, issuer, audience, config.token_ttl)
    };
    Ok(match config.jwt_algorithm {
        JwtAlgorithm::EdDsa => {
            let seal = Seal::new(&config.jwt_secret)?;
            Tokens::stored(issuer(Keyring::default()), pool.clone(), seal)
        }
        JwtAlgorithm::Hs256 => {
            let key = Key::hs256(&config.jwt_secret)?;
            Tokens::fixed(issuer(Keyring::new(Some(key), Vec::new())))
        }
    })
}

/// The process, bound and not yet serving.
pub struct App {
    listener: TcpListener,
    tls: Option<Tls>,
    /// Where plain HTTP is sent to HTTPS.
    redirects: Option<TcpListener>,
    state: AppState,
    config: Config,
}

impl App {
    /// Binds the address and wires the parts. The database may be away: requests are answered 503 until it is back.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        // What is counted before the recorder is there is lost.
        telemetry::metrics();
        let state = AppState::new(&config)?;
        let tls = config.transport.tls.clone().map(Tls::open).transpose();
        let listener = bind(config.api.http_addr).await?;
        let redirects = match config.transport.redirect_addr {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Self {
            listener,
            tls: tls.context("CLAIMCHECK_TLS_CERT and CLAIMCHECK_TLS_KEY cannot be used")?,
            redirects,
            state,
            config,
        })
    }

    /// Where the process listens; tells the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.api.http_addr)
    }

    /// Where plain HTTP is sent to HTTPS, if anywhere.
    pub fn redirect_address(&self) -> Option<SocketAddr> {
        self.redirects.as_ref()?.local_addr().ok()
    }

    /// Serves, relays and listens until `stop`; then says so, drains requests, and only then ends the rest.
    pub async fn run_until_stopped(self, stop: CancellationToken) {
        let Self {
            listener,
            tls,
            redirects,
            state,
            config,
        } = self;
        let background = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn({
            let (changes, pool, stop) = (state.changes.clone(), state.pool.clone(), background.clone());
            async move { changes.listen(pool, stop).await }
        });
        tasks.spawn({
            let (tokens, stop) = (state.tokens.clone(), background.clone());
            async move { tokens.follow(stop).await }
        });
        tasks.spawn(state.doorkeeper.clone().listen(state.pool.clone(), background.clone()));
        tasks.spawn(state.key_uses.clone().write(state.pool.clone(), background.clone()));
        tasks.spawn(state.following.clone().listen(background.clone()));
        tasks.spawn(state.attendance.clone().run(state.pool.clone(), background.clone()));
        tasks.spawn(state.policy.clone().watch(background.clone()));
        tasks.spawn(state.limits.clone().watch(state.pool.clone(), background.clone()));
        tasks.spawn(supervise_relay(state.clone(), config.clone(), background.clone()));
        let (stopping, closing) = (state.stopping.clone(), CancellationToken::new());
        let forward = tokio::spawn({
            let closing = closing.clone();
            async move {
                stop.cancelled().await;
                stopping.cancel();
                tokio::time::sleep(config.api.stop_notice).await;
                closing.cancel();
            }
        });
        let limits = ServeLimits {
            head: HEAD_TIME,
            connections: CONNECTIONS_MAX,
            drain: config.api.drain,
        };
        if let Some(tls) = tls.clone() {
            // Without the signal the files are still looked at.
            let hangups = shutdown::on_hangup().unwrap_or_else(|_| mpsc::channel(1).1);
            tasks.spawn(tls.watch(hangups, background.clone()));
        }
        if let Some(listener) = redirects {
            tasks.spawn(serve(listener, transport::redirects(), limits, None, closing.clone()));
        }
        let router = crate::router::router(state.clone());
        serve(listener, router, limits, tls, closing).await;
        // What was accepted in the drain is still relayed, if not here then by another replica or the next start.
        background.cancel();
        tasks.close();
        tasks.wait().await;
        forward.abort();
        if tokio::time::timeout(POOL_CLOSE_TIME, state.pool.close()).await.is_err() {
            tracing::warn!("some database connections did not close in time");
        }
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

/// The relay handles every failure that it knows; one that it does not know must not end it for good.
async fn supervise_relay(state: AppState, config: Config, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let relay = Relay::new(
            state.pool.clone(),
            Broker::new(config.broker.clone()),
            config.delivery.clone(),
            state.changes.clone(),
            state.outgoing.clone(),
        );
        if let Err(panicked) = tokio::spawn(relay.run(stop.clone())).await {
            tracing::error!(error = %panicked, "the relay died and is started again");
            backoff.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(env: Environment, secret: &str, database: &str) -> Config {
        let mut config = crate::router::tests::config();
        config.transport.env = env;
        config.api.jwt_secret = secret.to_owned().into();
        config.database.url = format!("postgres://app:{database}@db/claimcheck");
        config.broker.url = "amqp://mq:Jk29dmsLq@mq".to_owned();
        config
    }

    #[test]
    fn production_refuses_secrets_that_are_missing_short_or_known_and_names_the_variable() {
        let good = "d3b0f2c4a9178e6655aa01f9c27be843";
        let refused = |secret, database| {
            config(Environment::Production, secret, database)
                .fit()
                .unwrap_err()
                .to_string()
        };
        for bad in ["", "short", "a secret of at least thirty-two bytes"] {
            assert!(refused(bad, "Jk29dmsLq").contains("CLAIMCHECK_JWT_SECRET"), "{bad}");
        }
        assert!(refused(good, "claimcheck").contains("DATABASE_URL"));
        assert!(!refused("hunter2", "x").contains("hunter2"), "it is not repeated");
        for bad in ["", "short", "a secret of at least thirty-two bytes"] {
            let with = |change: fn(&mut Config, SecretString)| {
                let mut config = config(Environment::Production, good, "Jk29dmsLq");
                change(&mut config, bad.to_owned().into());
                config.fit().unwrap_err().to_string()
            };
            let receipts = with(|config, secret| config.api.receipt_secret = Some(secret));
            assert!(receipts.contains("CLAIMCHECK_RECEIPT_SECRET"), "{bad}: {receipts}");
            let webhooks = with(|config, secret| config.webhooks.key = Some(secret));
            assert!(webhooks.contains("CLAIMCHECK_WEBHOOK_KEY"), "{bad}: {webhooks}");
        }
        assert!(config(Environment::Production, good, "Jk29dmsLq").fit().is_ok());
        assert!(config(Environment::Development, "short", "claimcheck").fit().is_ok());
    }
}
