//! The worker process: its parts are wired in [`WorkerApp::build`] and live in [`WorkerApp::run_until_stopped`].
//!
//! Everything it needs is in [`Settings`]; nothing below reads the environment. Must never know how a role does its work.
//! Next: `generate.rs`, `maintenance/`, `webhooks/`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::config::{
    BatchConfig, BrokerConfig, ConfigError, DatabaseConfig, DeliveryConfig, FilesConfig, PolicyConfig, RedisConfig,
    WebhookConfig, WorkerConfig,
};
use claimcheck_common::domain::{ModelSource, WorkerId};
use claimcheck_common::files::{FileError, FileStore};
use claimcheck_common::policy::{PolicyError, Rules};
use claimcheck_common::queue::Broker;
use claimcheck_common::redis::{Redis, RedisError};
use claimcheck_common::store::{self, Pool, StoreError};
use claimcheck_common::telemetry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::batches::Batches;
use crate::generate::{Generate, GenerateError};
use crate::health::Health;
use crate::http;
use crate::maintenance;
use crate::roles::Role;
use crate::served_model::ServeError;
use crate::unloadable::Memory;
use crate::webhooks::{ClientError, Dispatch};

const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Why a worker does not start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken or not ours.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The database's URL does not read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Settings that do not go together.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The webhooks' client cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Redis' URL does not read.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The place for files is not usable.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The content policy does not read.
    #[error("the content policy is not usable")]
    Policy(#[from] PolicyError),
    /// The role `generate` came to an end.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A role panicked.
    #[error("a part of the worker panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

/// All that a worker needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where Postgres is.
    pub database: DatabaseConfig,
    /// Where `RabbitMQ` is.
    pub broker: BrokerConfig,
    /// Where Redis is.
    pub redis: RedisConfig,
    /// What texts are held against.
    pub policy: PolicyConfig,
    /// The protocol's times.
    pub delivery: DeliveryConfig,
    /// Where webhooks may go, how they are signed and sent.
    pub webhooks: WebhookConfig,
    /// Where files lie.
    pub files: FilesConfig,
    /// How batches are fed.
    pub batches: BatchConfig,
    /// The models, the slots, the drain, the address for health and metrics.
    pub worker: WorkerConfig,
    /// What this process does.
    pub roles: Vec<Role>,
}

impl Settings {
    /// Reads the environment, for all roles.
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self {
            database: DatabaseConfig::from_env()?,
            broker: BrokerConfig::from_env()?,
            redis: RedisConfig::from_env()?,
            policy: PolicyConfig::from_env()?,
            delivery: DeliveryConfig::from_env()?,
            webhooks: WebhookConfig::from_env()?,
            files: FilesConfig::from_env()?,
            batches: BatchConfig::from_env()?,
            worker: WorkerConfig::from_env()?,
            roles: Role::ALL.to_vec(),
        })
    }
}

/// A worker that is wired and listens, but does nothing yet.
pub struct WorkerApp {
    settings: Settings,
    models: Vec<ModelSource>,
    pool: Pool,
    broker: Broker,
    redis: Redis,
    files: FileStore,
    policy: Rules,
    listener: TcpListener,
    address: SocketAddr,
    health: Health,
    dispatch: Option<Dispatch>,
}

impl WorkerApp {
    /// Binds and wires. Neither the servers nor the model are touched: they may come later.
    pub async fn build(settings: Settings) -> Result<Self, AppError> {
        // Before the first sample, since what is recorded earlier is lost.
        telemetry::metrics();
        let wanted = settings.worker.worker_http_addr;
        let listener = TcpListener::bind(wanted)
            .await
            .map_err(|error| AppError::Listen(wanted, error))?;
        let address = listener.local_addr().map_err(|error| AppError::Listen(wanted, error))?;
        let pool = store::connect_leased(&settings.database, settings.delivery.lease)?;
        let models = models(&settings)?;
        Ok(Self {
            dispatch: dispatch(&settings, &pool)?,
            pool,
            broker: Broker::new(settings.broker.clone()),
            redis: Redis::new(&settings.redis)?,
            files: FileStore::open(&settings.files)?,
            policy: Rules::open(settings.policy.policy_file.clone())?,
            health: Health::new(models.len()),
            models,
            listener,
            address,
            settings,
        })
    }

    /// Where health and metrics are served.
    pub const fn http_addr(&self) -> SocketAddr {
        self.address
    }

    /// How far it has come; stays good while it runs.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs its roles until `stop`, or until one of them cannot go on; then the others stop as well.
    pub async fn run_until_stopped(self, stop: CancellationToken) -> Result<(), AppError> {
        let roles: Vec<_> = self.settings.roles.iter().map(|role| role.as_str()).collect();
        tracing::info!(http = %self.address, roles = roles.join(","), "the worker starts");
        let serving = CancellationToken::new();
        let http = tokio::spawn(http::serve(self.listener, self.health.clone(), serving.clone()));
        let stop_all = stop.child_token();
        let mut running = JoinSet::new();
        if let Some(dispatch) = self.dispatch {
            let stop = stop_all.clone();
            running.spawn(async {
                dispatch.run(stop).await;
                Ok(())
            });
        }
        if self.settings.roles.contains(&Role::Maintain) {
            let (pool, broker) = (self.pool.clone(), self.broker.clone());
            let (delivery, keep) = (self.settings.delivery.clone(), self.settings.webhooks.keep);
            let work = maintenance::run(pool, broker, delivery, keep, stop_all.clone());
            running.spawn(async {
                work.await;
                Ok(())
            });
            let batches = Batches {
                pool: self.pool.clone(),
                files: self.files,
                policy: self.policy.clone(),
                delivery: self.settings.delivery.clone(),
                config: self.settings.batches,
            };
            let work = batches.run(stop_all.clone());
            running.spawn(async {
                work.await;
                Ok(())
            });
        }
        // Prompts of batches are held against it as well as finished texts.
        let watch = self.policy.clone().watch(stop_all.clone());
        running.spawn(async {
            watch.await;
            Ok(())
        });
        let limit = self.settings.worker.model_memory_mib;
        let memory = limit.map(|mib| Arc::new(Memory::new(u64::from(mib) << 20)));
        for (at, model) in self.models.into_iter().enumerate() {
            let generate = Generate {
                pool: self.pool.clone(),
                broker: self.broker.clone(),
                redis: self.redis.clone(),
                policy: self.policy.clone(),
                delivery: self.settings.delivery.clone(),
                config: self.settings.worker.clone(),
                model,
                memory: memory.clone(),
                worker: WorkerId::new(),
                health: self.health.of_model(at),
            };
            running.spawn(generate.run(stop_all.clone()));
        }
        let health = self.health;
        let watch = stop_all.clone();
        running.spawn(async move {
            watch.cancelled().await;
            health.stopping();
            Ok(())
        });
        let outcome = finish(running, &stop_all).await;
        serving.cancel();
        let _ = http.await;
        // A connection that hangs must not hold the process.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.pool.close()).await;
        tracing::info!("the worker has stopped");
        outcome
    }
}

/// What this process generates with, if that is a role of it.
fn models(settings: &Settings) -> Result<Vec<ModelSource>, AppError> {
    if !settings.roles.contains(&Role::Generate) {
        return Ok(Vec::new());
    }
    let models = settings.worker.sources()?;
    if models.is_empty() {
        return Err(GenerateError::from(ServeError::Unnamed).into());
    }
    Ok(models)
}

/// The role `dispatch`, if it is this process's and there is a key to open secrets with.
fn dispatch(settings: &Settings, pool: &Pool) -> Result<Option<Dispatch>, AppError> {
    if !settings.roles.contains(&Role::Dispatch) {
        return Ok(None);
    }
    let Some(vault) = settings.webhooks.vault()? else {
        tracing::info!("CLAIMCHECK_WEBHOOK_KEY is not set: there are no webhooks to dispatch");
        return Ok(None);
    };
    Ok(Some(Dispatch::new(pool.clone(), settings.webhooks.clone(), vault)?))
}

/// Waits for all; the first failure stops the rest and is the answer.
async fn finish(mut running: JoinSet<Result<(), GenerateError>>, stop: &CancellationToken) -> Result<(), AppError> {
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended
            .map_err(AppError::from)
            .and_then(|ended| ended.map_err(AppError::from));
        if let Err(error) = ended {
            stop.cancel();
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}
