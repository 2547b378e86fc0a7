//! Servers of the fault tests' own, started and killed by `compose/local`: no other test notices.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use claimcheck_common::config::{BrokerConfig, DatabaseConfig, RedisConfig};

use crate::Servers;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/local");
const PORT_BASE: &str = "23100";

/// One of the three servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The truth.
    Postgres,
    /// The queue.
    RabbitMq,
    /// What may be lost.
    Redis,
}

impl Server {
    const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
        }
    }
}

/// The servers, up until the value is dropped. There is one such stack on a machine, so only one test at a time may
/// have it: the test group `fault` sees to that.
pub struct Stack(());

impl Stack {
    /// Starts the servers.
    ///
    /// # Panics
    /// If one does not start.
    pub async fn up() -> Self {
        let stack = Self(());
        call(&["up"]).await;
        stack
    }

    /// Where they are.
    pub fn servers(&self) -> Servers {
        let script = format!(
            r#"eval "$('{SCRIPT}' env)" && printf '%s\n' "$DATABASE_URL" "$DATABASE_OWNER_URL" "$AMQP_URL" "$REDIS_URL""#
        );
        let mut shell = Command::new("bash");
        let printed = private(shell.args(["-c", &script])).output().expect("bash runs");
        let printed = String::from_utf8(printed.stdout).expect("URLs are text");
        let [database, owner, broker, redis] = printed.lines().collect::<Vec<_>>()[..] else {
            panic!("compose/local env printed {printed:?}");
        };
        Servers {
            database: DatabaseConfig {
                url: database.to_owned(),
                owner_url: Some(owner.to_owned()),
                pool_size: 8,
            },
            broker: BrokerConfig {
                url: broker.to_owned(),
                queue_prefix: String::new(),
            },
            redis: RedisConfig {
                url: redis.to_owned(),
                prefix: String::new(),
            },
        }
    }

    /// Kills a server with SIGKILL.
    pub async fn kill(&self, server: Server) {
        call(&["kill", server.name()]).await;
    }

    /// Stops a server where it stands, its connections standing.
    pub async fn freeze(&self, server: Server) {
        call(&["freeze", server.name()]).await;
    }

    /// Lets a frozen server go on.
    pub async fn thaw(&self, server: Server) {
        call(&["thaw", server.name()]).await;
    }

    /// Starts a killed server and waits until it answers.
    pub async fn start(&self, server: Server) {
        call(&["start", server.name()]).await;
    }
}

impl Stack {
    /// Raises or clears RabbitMQ's memory alarm: while it is raised, whoever publishes is blocked.
    pub async fn memory_alarm(&self, raised: bool) {
        call(&["alarm", if raised { "on" } else { "off" }]).await;
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _stopped_as_far_as_it_goes = private(Command::new(SCRIPT).arg("down")).stdout(Stdio::null()).status();
    }
}

async fn call(arguments: &[&str]) {
    let mut command = Command::new(SCRIPT);
    private(command.args(arguments)).stdout(Stdio::null());
    let status = tokio::process::Command::from(command).status().await;
    assert!(
        status.is_ok_and(|status| status.success()),
        "compose/local {arguments:?} failed"
    );
}

/// A folder and ports of its own, and none of the servers that the environment names.
fn private(command: &mut Command) -> &mut Command {
    for variable in [
        "DATABASE_URL",
        "DATABASE_OWNER_URL",
        "AMQP_URL",
        "REDIS_URL",
        "CLAIMCHECK_LOCAL_URLS",
    ] {
        command.env_remove(variable);
    }
    command
        .env("CLAIMCHECK_DATA", folder())
        .env("CLAIMCHECK_PORT_BASE", PORT_BASE)
}

/// The same at each run, so that what a test left behind when it was killed is taken up by the next one.
fn folder() -> PathBuf {
    std::env::temp_dir().join("claimcheck-faults")
}
