//! The one way to Redis, for both processes. It holds only what may be lost.
//!
//! Redis being away is an ordinary answer ([`RedisError::Away`]) that costs a call half a second at most, and next to
//! nothing from then on: after a failure everybody is told so at once, but for one caller in each pause, who finds out
//! whether it is back. Must never stop a process from starting, and must never hold what cannot be lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSub};
use ::redis::{Client, ErrorKind, RedisResult, ScriptInvocation};

use crate::config::RedisConfig;

pub use ::redis::{Cmd, FromRedisValue, Msg, Pipeline, Script, cmd, pipe};

/// A connection must be there within this.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// A call must be answered within this, whatever it waits for.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// After a failure nobody asks for this long.
const PAUSE: Duration = Duration::from_millis(250);
/// Commands that are written and not yet answered; more wait for their turn, within the limit of a call.
const BUFFERED: usize = 1024;

/// A call that brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL does not read.
    #[error("REDIS_URL does not read: {0}")]
    Url(#[source] ::redis::RedisError),
    /// Redis is away, or was a moment ago. What was asked may have been done all the same.
    #[error("Redis is away")]
    Away(#[source] Option<::redis::RedisError>),
    /// Redis answers, and refuses this.
    #[error("Redis refused: {0}")]
    Refused(#[source] ::redis::RedisError),
}

/// Redis, connected at its first use. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    prefix: String,
    /// Replaced when it falls silent: it reconnects by itself only when its connection ends.
    manager: RwLock<ConnectionManager>,
    rest: Rest,
}

impl Redis {
    /// Connects to nothing yet. Must be called within a runtime.
    pub fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        let client = Client::open(config.url.as_str()).map_err(RedisError::Url)?;
        let inner = Inner {
            manager: RwLock::new(manager(&client).map_err(RedisError::Url)?),
            client,
            prefix: config.prefix.clone(),
            rest: Rest::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name of a key or channel, this installation's own.
    pub fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}:{name}", self.inner.prefix)
    }

    /// One command.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.ask(async |mut connection| command.query_async(&mut connection).await)
            .await
    }

    /// Several commands in one round trip.
    pub async fn run_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, RedisError> {
        self.ask(async |mut connection| commands.query_async(&mut connection).await)
            .await
    }

    /// One script, with its keys and arguments: one round trip once Redis knows it.
    pub async fn call<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, RedisError> {
        self.ask(async |mut connection| script.invoke_async(&mut connection).await)
            .await
    }

    /// A connection of its own for subscriptions. Its stream ends with the connection: subscribe anew then.
    pub async fn listener(&self) -> Result<PubSub, RedisError> {
        let connected = tokio::time::timeout(CONNECT_LIMIT, self.inner.client.get_async_pubsub()).await;
        connected.map_err(|_| RedisError::Away(None))?.map_err(sorted)
    }

    async fn ask<T>(&self, call: impl AsyncFnOnce(ConnectionManager) -> RedisResult<T>) -> Result<T, RedisError> {
        let Inner { rest, manager, .. } = &*self.inner;
        if !rest.may_ask() {
            return Err(RedisError::Away(None));
        }
        let connection = manager.read().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = tokio::time::timeout(ANSWER_LIMIT, call(connection)).await;
        let outcome = answer.map_or_else(
            |_late| {
                self.reconnect();
                Err(RedisError::Away(None))
            },
            |answer| answer.map_err(sorted),
        );
        match &outcome {
            Err(RedisError::Away(cause)) => {
                if rest.begin() {
                    let cause = cause.as_ref().map(tracing::field::display);
                    tracing::warn!(cause, "Redis is away");
                }
            }
            _ => {
                if rest.end() {
                    tracing::info!("Redis is back");
                }
            }
        }
        outcome
    }

    /// Whoever holds the old connection still may; it goes with them.
    fn reconnect(&self) {
        if let Ok(new) = manager(&self.inner.client) {
            *self.inner.manager.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }
}

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_LIMIT))
        // The limit of a call holds for everything that it waits for.
        .set_response_timeout(None)
        .set_pipeline_buffer_size(BUFFERED)
        // The pause between two tries is ours, and nobody waits for its end.
        .set_number_of_retries(0);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// Whether Redis is away or does not like what it was asked.
fn sorted(error: ::redis::RedisError) -> RedisError {
    use ::redis::ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::AuthenticationFailed
        | ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
            RedisError::Away(Some(error))
        }
        _ => RedisError::Refused(error),
    }
}

/// The pause after a failure.
struct Rest {
    born: Instant,
    /// Milliseconds after `born` until which nobody asks; 0 while all is well.
    until: AtomicU64,
}

impl Rest {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            until: AtomicU64::new(0),
        }
    }

    fn next(&self) -> u64 {
        (self.born.elapsed() + PAUSE).as_millis() as u64
    }

    /// Whether this caller may ask. After a pause one may, and the next one only a pause later.
    fn may_ask(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        let now = self.born.elapsed().as_millis() as u64;
        until == 0
            || now >= until
                && self
                    .until
                    .compare_exchange(until, self.next(), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
    }

    /// A call failed. Answers whether all was well until then.
    fn begin(&self) -> bool {
        self.until.swap(self.next(), Ordering::Relaxed) == 0
    }

    /// A call was answered. Answers whether there was a pause until then.
    fn end(&self) -> bool {
        // Read first, so that callers do not take the line from each other while all is well.
        self.until.load(Ordering::Relaxed) != 0 && self.until.swap(0, Ordering::Relaxed) != 0
    }
}
