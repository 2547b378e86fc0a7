//! Whether this process can do its work. Only Postgres decides: jobs are accepted while RabbitMQ and Redis are away.
//!
//! One check serves all probes of a second, so that probing costs nothing whatever its rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claimcheck_common::store::{self, Pool};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use url::Url;
use utoipa::ToSchema;

const FRESH: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found at the last look.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Checks {
    /// Answers, and has the schema. Required.
    pub postgres: Reach,
    /// Takes connections. Not required: messages wait in the outbox.
    pub rabbitmq: Reach,
    /// Takes connections. Not required: it holds only what may be lost.
    pub redis: Reach,
}

/// A server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// Looks after the servers that this process needs.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    rabbitmq: Option<(String, u16)>,
    redis: Option<(String, u16)>,
    last: Mutex<Option<(Instant, Checks)>>,
    started: AtomicBool,
}

impl Health {
    /// Looks at nothing yet.
    pub fn new(pool: Pool, amqp_url: &str, redis_url: &str) -> Self {
        let inner = Inner {
            pool,
            rabbitmq: endpoint(amqp_url, 5672),
            redis: endpoint(redis_url, 6379),
            last: Mutex::new(None),
            started: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// At most a second old.
    pub async fn checks(&self) -> Checks {
        let mut last = self.inner.last.lock().await;
        if let Some((at, checks)) = *last
            && at.elapsed() < FRESH
        {
            return checks;
        }
        let (postgres, rabbitmq, redis) = tokio::join!(
            ping(&self.inner.pool),
            reach(self.inner.rabbitmq.as_ref()),
            reach(self.inner.redis.as_ref())
        );
        let checks = Checks {
            postgres,
            rabbitmq,
            redis,
        };
        if postgres == Reach::Up {
            self.inner.started.store(true, Ordering::Relaxed);
        }
        *last = Some((Instant::now(), checks));
        checks
    }

    /// Whether the database with its schema was seen once since the process began.
    pub async fn has_started(&self) -> bool {
        self.inner.started.load(Ordering::Relaxed) || self.checks().await.postgres == Reach::Up
    }
}

async fn ping(pool: &Pool) -> Reach {
    match tokio::time::timeout(PATIENCE, store::ping(pool)).await {
        Ok(Ok(())) => Reach::Up,
        Ok(Err(error)) => {
            tracing::debug!(%error, "postgres is not ready");
            Reach::Down
        }
        Err(_) => Reach::Down,
    }
}

async fn reach(endpoint: Option<&(String, u16)>) -> Reach {
    let Some((host, port)) = endpoint else {
        return Reach::Down;
    };
    match tokio::time::timeout(PATIENCE, TcpStream::connect((host.as_str(), *port))).await {
        Ok(Ok(_)) => Reach::Up,
        _ => Reach::Down,
    }
}

fn endpoint(url: &str, default_port: u16) -> Option<(String, u16)> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port().unwrap_or(default_port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_address_is_read_from_its_url() {
        assert_eq!(
            endpoint("amqp://u:p@rabbit:5673/%2f", 5672),
            Some(("rabbit".into(), 5673))
        );
        assert_eq!(endpoint("redis://127.0.0.1", 6379), Some(("127.0.0.1".into(), 6379)));
        assert_eq!(endpoint("redis://[::1]:7000/0", 6379), Some(("::1".into(), 7000)));
        assert_eq!(endpoint("nonsense", 1), None);
    }

    #[tokio::test]
    async fn a_server_that_takes_connections_is_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
        assert_eq!(reach(Some(&there)).await, Reach::Up);
        drop(listener);
        assert_eq!(reach(Some(&there)).await, Reach::Down);
    }
}
