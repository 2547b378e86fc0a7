//! Configuration: one small struct a concern, read once from the environment (and a `.env` file) at start-up.
//!
//! The only place that reads environment variables. A value that cannot be read stops the process with the variable's
//! name; nothing else is guessed. Durations carry a unit (`500ms`, `30s`, `2h`).

mod limits;
mod policy;
mod prices;
mod sign_in;
mod transport;
mod weights_cache;
mod worker;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use url::Url;

use crate::webhook::Vault;

pub use limits::{LimitsConfig, Plan, Plans, UNLIMITED_PLAN};
pub use policy::PolicyConfig;
pub use prices::Prices;
pub use sign_in::{ProviderConfig, ProviderKind, SignInConfig};
pub use transport::{CertificateFiles, Environment, TransportConfig, weak_password, weakness};
pub use weights_cache::WeightsCacheConfig;
pub use worker::WorkerConfig;

/// A variable is missing or does not read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `envy` names the variable.
    #[error("the environment does not configure this process: {0}")]
    Environment(#[from] envy::Error),
    /// The `.env` file is not in order.
    #[error("the .env file cannot be read: {0}")]
    DotEnv(#[from] dotenvy::Error),
    /// Values that cannot stand together.
    #[error("{0}")]
    Invalid(String),
}

/// Reads `.env` from this or a parent folder, if there is one. Variables that are set already win.
pub fn load_dotenv() -> Result<(), ConfigError> {
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

fn from_env<T: DeserializeOwned>(prefix: &str) -> Result<T, ConfigError> {
    Ok(envy::prefixed(prefix).from_env()?)
}

/// Where Postgres is.
#[derive(Debug, Clone, Deserialize)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`: as the application role.
    pub url: String,
    /// `DATABASE_OWNER_URL`: as the owner, for migrations only. The same as `DATABASE_URL` unless set.
    #[serde(default)]
    pub owner_url: Option<String>,
    /// `DATABASE_POOL_SIZE`: most connections that are shared (16). An API has up to 5 of its own beside them, a worker 2 for each
    /// model.
    #[serde(default = "default_pool_size")]
    pub pool_size: u32,
}

impl DatabaseConfig {
    /// Reads `DATABASE_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env("DATABASE_")
    }

    /// The URL that migrations use.
    pub fn owner_url(&self) -> &str {
        self.owner_url.as_deref().unwrap_or(&self.url)
    }
}

/// What tells this installation's queues and keys from others'.
#[derive(Deserialize)]
struct Prefix {
    #[serde(default = "default_queue_prefix")]
    queue_prefix: String,
}

/// Where `RabbitMQ` is and what our queues are called.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `AMQP_URL`, with the virtual host as its path.
    pub url: String,
    /// `CLAIMCHECK_QUEUE_PREFIX`: the first part of every queue's name (`claimcheck`).
    pub queue_prefix: String,
}

impl BrokerConfig {
    /// Reads `AMQP_URL` and `CLAIMCHECK_QUEUE_PREFIX`.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Url {
            url: String,
        }
        let (Url { url }, Prefix { queue_prefix }) = (from_env("AMQP_")?, from_env("CLAIMCHECK_")?);
        Ok(Self { url, queue_prefix })
    }
}

/// Where Redis is and what our keys are called. It holds only what may be lost.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `REDIS_URL`.
    pub url: String,
    /// `CLAIMCHECK_QUEUE_PREFIX`: the first part of every key's name too (`claimcheck`).
    pub prefix: String,
}

impl RedisConfig {
    /// Reads `REDIS_URL` and `CLAIMCHECK_QUEUE_PREFIX`.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Url {
            url: String,
        }
        let (Url { url }, Prefix { queue_prefix }) = (from_env("REDIS_")?, from_env("CLAIMCHECK_")?);
        Ok(Self {
            url,
            prefix: queue_prefix,
        })
    }
}

/// How the process logs.
#[derive(Debug, Clone, Deserialize)]
pub struct TelemetryConfig {
    /// `CLAIMCHECK_LOG`: `pretty` for people (the default), `json` for machines.
    #[serde(default)]
    pub log: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Readable lines.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

impl TelemetryConfig {
    /// Reads `CLAIMCHECK_LOG`. `RUST_LOG` filters as usual (`info`).
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env("CLAIMCHECK_")
    }
}

/// The times of the delivery protocol. All processes of an installation share them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct DeliveryConfig {
    /// `CLAIMCHECK_LEASE`: how long a silent worker keeps its jobs (10 s).
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// `CLAIMCHECK_HEARTBEAT`: how often a worker extends its leases (2 s).
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// `CLAIMCHECK_ATTEMPT_LIMIT`: an attempt that takes longer is stopped and counts as failed (10 min).
    #[serde(with = "humantime_serde")]
    pub attempt_limit: Duration,
    /// `CLAIMCHECK_RELEASE_WINDOW`: jobs of one queue that are released to the broker and not yet claimed (256).
    pub release_window: u32,
    /// `CLAIMCHECK_RELAY_INTERVAL`: the relay looks at the outbox at least this often (250 ms).
    #[serde(with = "humantime_serde")]
    pub relay_interval: Duration,
    /// `CLAIMCHECK_MAINTENANCE_INTERVAL`: rescue and schedule run this often (1 s).
    #[serde(with = "humantime_serde")]
    pub maintenance_interval: Duration,
    /// `CLAIMCHECK_REEMIT_AFTER`: a released job that nobody claimed for so long may have lost its message (30 s).
    #[serde(with = "humantime_serde")]
    pub reemit_after: Duration,
    /// `CLAIMCHECK_HANGUP_GRACE`: a job whose caller hung up while waiting for it is cancelled unless a retry of the request
    /// takes it up again within this time (15 s).
    #[serde(with = "humantime_serde")]
    pub hangup_grace: Duration,
    /// `CLAIMCHECK_RETENTION`: ended jobs are deleted after this time. Unset keeps them.
    #[serde(with = "humantime_serde")]
    pub retention: Option<Duration>,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(2),
            attempt_limit: Duration::from_mins(10),
            release_window: 256,
            relay_interval: Duration::from_millis(250),
            maintenance_interval: Duration::from_secs(1),
            reemit_after: Duration::from_secs(30),
            hangup_grace: Duration::from_secs(15),
            retention: None,
        }
    }
}

impl DeliveryConfig {
    /// How long the word of an API process that somebody waits for a job is good for: a hang-up's time, and some more for
    /// the process to say so again.
    pub fn attendance(&self) -> Duration {
        self.hangup_grace + self.hangup_grace / 3
    }

    /// Reads `CLAIMCHECK_*` and checks that the times fit each other.
    pub fn from_env() -> Result<Self, ConfigError> {
        let config: Self = from_env("CLAIMCHECK_")?;
        if config.heartbeat * 3 > config.lease {
            let (beat, lease) = (config.heartbeat, config.lease);
            return Err(ConfigError::Invalid(format!(
                "CLAIMCHECK_HEARTBEAT ({beat:?}) must be at most a third of CLAIMCHECK_LEASE ({lease:?}), so that two lost beats cost no job"
            )));
        }
        if config.release_window == 0 {
            return Err(ConfigError::Invalid(
                "CLAIMCHECK_RELEASE_WINDOW must be at least 1".to_owned(),
            ));
        }
        Ok(config)
    }
}

/// How access tokens are signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum JwtAlgorithm {
    /// By Ed25519 keys in the database, whose public halves are published.
    #[default]
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// By the configured secret itself: whoever can verify can sign.
    #[serde(rename = "HS256")]
    Hs256,
}

/// Where uploaded files and batches' outputs lie. All processes of an installation share the place.
#[derive(Debug, Clone)]
pub struct FilesConfig {
    /// `CLAIMCHECK_FILES`: a folder, or `s3://bucket/prefix` (`claimcheck-files`, where the process runs).
    pub place: String,
    /// `AWS_*`, for a bucket: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT` (of another service that
    /// speaks S3), `AWS_ALLOW_HTTP`, …
    pub s3: Vec<(String, String)>,
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self {
            place: "claimcheck-files".to_owned(),
            s3: Vec::new(),
        }
    }
}

impl FilesConfig {
    /// Reads `CLAIMCHECK_FILES` and, for a bucket, `AWS_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Place {
            files: Option<String>,
        }
        let Place { files } = from_env("CLAIMCHECK_")?;
        let place = files.filter(|place| !place.is_empty()).unwrap_or(Self::default().place);
        let config = Self { place, s3: Vec::new() };
        if config.bucket_url().is_none() {
            return Ok(config);
        }
        let variables: HashMap<String, String> = from_env("AWS_")?;
        Ok(Self {
            s3: variables
                .into_iter()
                .map(|(name, value)| (format!("aws_{name}"), value))
                .collect(),
            ..config
        })
    }

    /// The bucket's URL, if it is one.
    pub fn bucket_url(&self) -> Option<Url> {
        Url::parse(&self.place).ok().filter(|url| url.scheme() == "s3")
    }
}

/// How batches are fed.
#[derive(Debug, Clone, Deserialize)]
pub struct BatchConfig {
    /// `CLAIMCHECK_BATCH_IN_FLIGHT`: most lines of a batch that are jobs at the same time (2048).
    #[serde(default = "default_batch_in_flight")]
    pub batch_in_flight: u32,
    /// `CLAIMCHECK_MAX_QUEUED`, as for the API: lines beyond it wait.
    #[serde(default)]
    pub max_queued: Option<u32>,
    /// `CLAIMCHECK_BATCH_TOKENS`: most tokens in the prompts of a tenant's waiting jobs of batches, unless it has a limit of its own;
    /// lines beyond it wait in their files. Unset sets none.
    #[serde(default)]
    pub batch_tokens: Option<u64>,
    /// `CLAIMCHECK_PRICES`, as for the API.
    #[serde(default)]
    pub prices: Prices,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            batch_in_flight: default_batch_in_flight(),
            max_queued: None,
            batch_tokens: None,
            prices: Prices::default(),
        }
    }
}

impl BatchConfig {
    /// Reads `CLAIMCHECK_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        let config: Self = from_env("CLAIMCHECK_")?;
        if config.batch_in_flight == 0 {
            return Err(ConfigError::Invalid(
                "CLAIMCHECK_BATCH_IN_FLIGHT must be at least 1".to_owned(),
            ));
        }
        Ok(config)
    }
}

/// What the API process alone needs.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiConfig {
    /// `CLAIMCHECK_HTTP_ADDR`: where to listen (127.0.0.1:8080). Port 0 takes a free one.
    #[serde(default = "default_http_addr")]
    pub http_addr: SocketAddr,
    /// `CLAIMCHECK_JWT_SECRET`: at least 32 bytes, the same for all replicas. Seals the keys that sign access tokens (`EdDSA`) or
    /// signs them itself (`HS256`). Changing it makes all access tokens void.
    pub jwt_secret: SecretString,
    /// `CLAIMCHECK_RECEIPT_SECRET`: what the key that signs receipts follows from. `CLAIMCHECK_JWT_SECRET` unless set.
    #[serde(default, deserialize_with = "secret_if_set")]
    pub receipt_secret: Option<SecretString>,
    /// `CLAIMCHECK_JWT_ALGORITHM`: `EdDSA` (the default) or `HS256`.
    #[serde(default)]
    pub jwt_algorithm: JwtAlgorithm,
    /// `CLAIMCHECK_TOKEN_TTL`: how long an access token is good (15 min).
    #[serde(default = "default_token_ttl", with = "humantime_serde")]
    pub token_ttl: Duration,
    /// `CLAIMCHECK_SESSION_TTL`: how long a sign-in can be renewed by refresh tokens (30 days).
    #[serde(default = "default_session_ttl", with = "humantime_serde")]
    pub session_ttl: Duration,
    /// `CLAIMCHECK_MAX_QUEUED`: most jobs of a tenant that may wait, unless it has a limit of its own. Unset sets none.
    #[serde(default)]
    pub max_queued: Option<u32>,
    /// `CLAIMCHECK_PRICES`: what a million tokens of prompts and of generated text cost, by model: `gpt2=0.15:0.60,*=0.10:0.40`. Unset:
    /// nothing costs anything, and there are no spending caps.
    #[serde(default)]
    pub prices: Prices,
    /// `CLAIMCHECK_STOP_NOTICE`: for so long after a stop signal requests are still taken, while `/readyz` already tells the
    /// balancer to send no more (0 s).
    #[serde(default, with = "humantime_serde")]
    pub stop_notice: Duration,
    /// `CLAIMCHECK_DRAIN`: how long open requests may go on after that (20 s).
    #[serde(default = "default_drain", with = "humantime_serde")]
    pub drain: Duration,
}

impl ApiConfig {
    /// Reads `CLAIMCHECK_*`.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env("CLAIMCHECK_")
    }
}

/// Compose files set what they do not know to nothing: empty counts as unset.
fn secret_if_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let secret = Option::<SecretString>::deserialize(deserializer)?;
    Ok(secret.filter(|secret| !secret.expose_secret().is_empty()))
}

/// What the command line needs.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// `CLAIMCHECK_API_URL`: where the service is. That of the last login unless set.
    pub api_url: Option<String>,
    /// `CLAIMCHECK_API_KEY`: goes before the credentials of the last login.
    pub api_key: Option<SecretString>,
    /// `XDG_CONFIG_HOME`, else `.config` in `HOME`: the folder whose subfolder `claimcheck` holds the credentials.
    pub config_home: Option<PathBuf>,
}

impl ClientConfig {
    /// Reads the variables. Empty ones count as unset.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Own {
            api_url: Option<String>,
            api_key: Option<SecretString>,
        }
        #[derive(Deserialize)]
        struct Folders {
            xdg_config_home: Option<PathBuf>,
            home: Option<PathBuf>,
        }
        let (own, folders): (Own, Folders) = (from_env("CLAIMCHECK_")?, from_env("")?);
        let set = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let home = set(folders.home).map(|home| home.join(".config"));
        Ok(Self {
            api_url: own.api_url.filter(|url| !url.is_empty()),
            api_key: own.api_key.filter(|key| !key.expose_secret().is_empty()),
            config_home: set(folders.xdg_config_home).or(home),
        })
    }

    /// Where `login` keeps credentials.
    pub fn credentials_file(&self) -> Option<PathBuf> {
        Some(self.config_home.as_ref()?.join("claimcheck").join("credentials.json"))
    }
}

/// Where hub models come from, by the variables that all Hugging Face tools share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubConfig {
    /// `HF_ENDPOINT`: the hub's URL, for a mirror.
    pub endpoint: Option<String>,
    /// `HF_HOME`: the folder whose subfolder `hub` is the cache (`~/.cache/huggingface`).
    pub home: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: 1, `on`, `yes` or `true` for the cache alone.
    pub offline: bool,
}

impl HubConfig {
    /// Reads `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE`. Empty values count as unset.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Variables {
            endpoint: Option<String>,
            home: Option<String>,
            hub_offline: Option<String>,
        }
        let variables: Variables = from_env("HF_")?;
        let set = |value: Option<String>| value.filter(|text| !text.is_empty());
        Ok(Self {
            endpoint: set(variables.endpoint),
            home: set(variables.home).map(PathBuf::from),
            offline: variables
                .hub_offline
                .is_some_and(|text| ["1", "on", "yes", "true"].contains(&text.to_lowercase().as_str())),
        })
    }
}

/// Where webhooks may go, how they are signed and sent. API and dispatchers share these.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct WebhookConfig {
    /// `CLAIMCHECK_WEBHOOK_KEY`: seals signing secrets and headers in the database; at least 32 bytes. Unset: there are no
    /// webhooks.
    pub key: Option<SecretString>,
    /// `CLAIMCHECK_WEBHOOK_OLD_KEY`: the key before, which still opens what it sealed.
    pub old_key: Option<SecretString>,
    /// `CLAIMCHECK_WEBHOOK_ALLOW`: networks, by commas, that webhooks may reach though they are not the public internet, by any
    /// port and without TLS (`10.20.0.0/16,127.0.0.0/8`). Unset: none.
    #[serde(skip)]
    pub allow: Vec<IpNet>,
    /// `CLAIMCHECK_WEBHOOK_TIMEOUT`: a receiver must have answered within this (15 s).
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `CLAIMCHECK_WEBHOOK_INTERVAL`: dispatchers look for due deliveries at least this often (500 ms).
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// `CLAIMCHECK_WEBHOOK_IN_FLIGHT`: most deliveries of a dispatcher at the same time (256).
    pub in_flight: u32,
    /// `CLAIMCHECK_WEBHOOK_KEEP`: the delivery log goes back so far (30 days).
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// `CLAIMCHECK_PUBLIC_URL`: where callers reach the API; links in events begin with it. Unset: they begin with `/v1`.
    #[serde(skip)]
    pub public_url: Option<Url>,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            key: None,
            old_key: None,
            allow: Vec::new(),
            timeout: Duration::from_secs(15),
            interval: Duration::from_millis(500),
            in_flight: 256,
            keep: Duration::from_hours(30 * 24),
            public_url: None,
        }
    }
}

impl WebhookConfig {
    /// Reads `CLAIMCHECK_WEBHOOK_*` and `CLAIMCHECK_PUBLIC_URL`. Empty values count as unset.
    pub fn from_env() -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Texts {
            public_url: Option<String>,
            webhook_allow: Option<String>,
        }
        let mut config: Self = from_env("CLAIMCHECK_WEBHOOK_")?;
        let set = |key: Option<SecretString>| key.filter(|key| !key.expose_secret().is_empty());
        (config.key, config.old_key) = (set(config.key), set(config.old_key));
        let texts: Texts = from_env("CLAIMCHECK_")?;
        let networks = texts.webhook_allow.unwrap_or_default();
        config.allow = networks
            .split(',')
            .map(str::trim)
            .filter(|network| !network.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| {
                ConfigError::Invalid("CLAIMCHECK_WEBHOOK_ALLOW lists networks: 10.20.0.0/16,127.0.0.0/8".to_owned())
            })?;
        config.public_url = texts
            .public_url
            .filter(|url| !url.is_empty())
            .map(|url| url.parse())
            .transpose()
            .map_err(|error| ConfigError::Invalid(format!("CLAIMCHECK_PUBLIC_URL is no URL: {error}")))?;
        if config.in_flight == 0 {
            return Err(ConfigError::Invalid(
                "CLAIMCHECK_WEBHOOK_IN_FLIGHT must be at least 1".to_owned(),
            ));
        }
        Ok(config)
    }

    /// What seals and opens; `None` if there are no webhooks.
    pub fn vault(&self) -> Result<Option<Vault>, ConfigError> {
        let vault = self.key.as_ref().map(|key| Vault::new(key, self.old_key.as_ref()));
        vault
            .transpose()
            .map_err(|error| ConfigError::Invalid(error.to_string()))
    }
}

const fn default_pool_size() -> u32 {
    16
}

fn default_queue_prefix() -> String {
    "claimcheck".to_owned()
}

fn default_http_addr() -> SocketAddr {
    ([127, 0, 0, 1], 8080).into()
}

const fn default_token_ttl() -> Duration {
    Duration::from_mins(15)
}

const fn default_session_ttl() -> Duration {
    Duration::from_hours(30 * 24)
}

const fn default_batch_in_flight() -> u32 {
    2048
}

const fn default_drain() -> Duration {
    Duration::from_secs(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_receipt_secret_is_none() {
        let read = |secret: &str| {
            let variables = [("CLAIMCHECK_JWT_SECRET", "a"), ("CLAIMCHECK_RECEIPT_SECRET", secret)];
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let config: ApiConfig = envy::prefixed("CLAIMCHECK_").from_iter(variables).unwrap();
            config.receipt_secret.map(|secret| secret.expose_secret().to_owned())
        };
        assert_eq!(read(""), None, "anybody could derive the key from nothing");
        assert_eq!(read("b").as_deref(), Some("b"));
    }
}
