//! A world of a test's own: a fresh database with the schema in it, and a queue prefix that nobody else uses.

use std::panic::{AssertUnwindSafe, resume_unwind};

use claimcheck_common::config::{
    BrokerConfig, DatabaseConfig, DeliveryConfig, FilesConfig, RedisConfig, WebhookConfig,
};
use claimcheck_common::queue::Broker;
use claimcheck_common::store::{self, Pool};
use futures::FutureExt;
use lapin::options::QueueDeleteOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

/// Where a test's parts live.
pub struct World {
    /// The test's database.
    pub database: DatabaseConfig,
    /// A pool of it, as the application role.
    pub pool: Pool,
    /// The broker, with the test's queue prefix.
    pub broker: BrokerConfig,
    /// Redis, with the test's prefix of keys.
    pub redis: RedisConfig,
    /// The protocol's times, short enough for a test.
    pub delivery: DeliveryConfig,
    /// Webhooks, with a key and the loopback network open for receivers of the test's own.
    pub webhooks: WebhookConfig,
    /// Where files lie: a folder of the test's own.
    pub files: FilesConfig,
    _folder: TempDir,
    name: String,
    admin_url: String,
}

/// Where servers are.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Postgres: the database that new ones are created from.
    pub database: DatabaseConfig,
    /// `RabbitMQ`.
    pub broker: BrokerConfig,
    /// Redis.
    pub redis: RedisConfig,
}

impl Servers {
    /// Those that the environment names.
    ///
    /// # Panics
    /// If it names none.
    pub fn from_env() -> Self {
        Self {
            database: DatabaseConfig::from_env().expect("tests/run sets the servers' addresses"),
            broker: BrokerConfig::from_env().expect("AMQP_URL is set"),
            redis: RedisConfig::from_env().expect("REDIS_URL is set"),
        }
    }
}

/// Runs a test in a new world and clears it away afterwards, also when the test fails.
///
/// # Panics
/// If the servers cannot be reached, and with whatever the test panics.
pub async fn in_world(test: impl AsyncFnOnce(&mut World)) {
    Box::pin(in_world_on(Servers::from_env(), test)).await;
}

/// As [`in_world`], on other servers.
pub async fn in_world_on(servers: Servers, test: impl AsyncFnOnce(&mut World)) {
    // Every HTTP client asks for the process's TLS, also those that need none.
    let _there_is_one = rustls::crypto::ring::default_provider().install_default();
    let mut world = World::create(servers).await;
    let outcome = AssertUnwindSafe(test(&mut world)).catch_unwind().await;
    world.clear_away().await;
    if let Err(panicked) = outcome {
        resume_unwind(panicked);
    }
}

impl World {
    async fn create(servers: Servers) -> Self {
        let server = servers.database;
        let admin_url = server.owner_url().to_owned();
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut admin = PgConnection::connect(&admin_url).await.expect("Postgres is up");
        execute(&mut admin, format!("CREATE DATABASE {name}")).await;
        let here = |url: &str| {
            let mut url = Url::parse(url).expect("a database URL");
            url.set_path(&name);
            url.to_string()
        };
        let database = DatabaseConfig {
            url: here(&server.url),
            owner_url: Some(here(server.owner_url())),
            pool_size: 8,
        };
        store::migrate(database.owner_url())
            .await
            .expect("the schema can be made");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = folder.path().join("files");
        std::fs::create_dir(&files).expect("a folder to write to");
        Self {
            files: FilesConfig {
                place: files.display().to_string(),
                ..FilesConfig::default()
            },
            _folder: folder,
            pool: store::connect(&database).expect("a valid URL"),
            broker: BrokerConfig {
                queue_prefix: name.clone(),
                ..servers.broker
            },
            redis: RedisConfig {
                prefix: name.clone(),
                ..servers.redis
            },
            delivery: DeliveryConfig::default(),
            webhooks: WebhookConfig {
                key: Some("a webhook key of at least thirty-two bytes".to_owned().into()),
                allow: vec!["127.0.0.0/8".parse().expect("a network")],
                ..WebhookConfig::default()
            },
            database,
            name,
            admin_url,
        }
    }

    /// The broker, ready to connect.
    pub fn broker(&self) -> Broker {
        Broker::new(self.broker.clone())
    }

    /// Runs a statement in the test's database as its owner.
    pub async fn execute_as_owner(&self, sql: &str) {
        let mut owner = PgConnection::connect(self.database.owner_url())
            .await
            .expect("Postgres is up");
        execute(&mut owner, sql.to_owned()).await;
    }

    async fn clear_away(self) {
        let queues: Vec<(String, String)> = sqlx::query_as("SELECT DISTINCT model, class FROM jobs")
            .fetch_all(&self.pool)
            .await
            .unwrap_or_default();
        self.pool.close().await;
        if let Ok(connection) = self.broker().connect("test").await
            && let Ok(channel) = connection.create_channel().await
        {
            for (model, class) in queues {
                let queue = format!("{}.{model}.{class}", self.broker.queue_prefix);
                let _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
            }
        }
        if let Ok(mut admin) = PgConnection::connect(&self.admin_url).await {
            let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
            let _ = sqlx::query(AssertSqlSafe(drop)).execute(&mut admin).await;
        }
    }
}

async fn execute(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .expect("the statement is valid");
}
