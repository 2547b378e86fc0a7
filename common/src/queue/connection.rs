//! Connecting to the broker and declaring queues.

use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::config::BrokerConfig;
use crate::domain::QueueName;

/// Seconds in which there is a sign of life, unless the URL says otherwise (`?heartbeat=`). Either end takes the other for gone
/// after two or three times without; the broker itself would suggest a minute.
const HEARTBEAT: u16 = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker waits for a leader first, and only then removes a queue that has none.
const DELETE_TIMEOUT: Duration = Duration::from_secs(20);

/// A failure of the broker. Whatever it was: drop what you hold and build it anew.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker or the connection said no.
    #[error("the broker failed: {0}")]
    Broker(#[from] lapin::Error),
    /// The broker's URL does not read.
    #[error("the broker's URL is wrong: {0}")]
    Address(String),
    /// No answer in time; a broker alarm looks like this.
    #[error("the broker did not answer within {0:?}")]
    TimedOut(Duration),
    /// Messages came back or were refused.
    #[error("the broker did not take {0} of the messages")]
    NotTaken(usize),
    /// The stream of deliveries ended (a deleted queue, a lost connection).
    #[error("the stream of deliveries ended")]
    Ended,
}

/// Where the broker is; cheap to clone, connects on demand.
#[derive(Debug, Clone)]
pub struct Broker {
    config: BrokerConfig,
}

impl Broker {
    /// Nothing is connected yet.
    pub const fn new(config: BrokerConfig) -> Self {
        Self { config }
    }

    /// A queue's name on this broker.
    pub fn queue(&self, queue: &QueueName) -> String {
        queue.on_broker(&self.config.queue_prefix)
    }

    /// A new connection. Its name shows in the broker's management pages.
    pub async fn connect(&self, name: &str) -> Result<Connection, QueueError> {
        self.connect_beating(name, HEARTBEAT).await
    }

    /// A connection that the broker closes when it has not heard of this process for a lease, so that what was delivered to it
    /// goes to somebody else about when its jobs do.
    pub(super) async fn connect_leased(&self, name: &str, lease: Duration) -> Result<Connection, QueueError> {
        // The broker looks once in this time and closes at the second look in a row that finds nothing: at the third time's end.
        let seconds = (lease / 3).as_secs().clamp(1, HEARTBEAT.into());
        self.connect_beating(name, seconds as u16).await
    }

    async fn connect_beating(&self, name: &str, seconds: u16) -> Result<Connection, QueueError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let mut address: AMQPUri = self.config.url.parse().map_err(QueueError::Address)?;
        address.query.heartbeat.get_or_insert(seconds);
        within(CONNECT_TIMEOUT, Connection::connect_uri(address, properties)).await
    }

    /// Messages that are ready in a queue. Those in workers' hands are not counted; an absent queue holds none.
    pub async fn ready(&self, queue: &QueueName) -> Result<u64, QueueError> {
        let connection = self.connect("claimcheck depth").await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.queue(queue);
        let declared = within(
            CONNECT_TIMEOUT,
            channel.queue_declare(name.into(), passive, FieldTable::default()),
        )
        .await;
        let ready = match declared {
            Ok(queue) => Ok(u64::from(queue.message_count())),
            Err(QueueError::Broker(error)) if is_not_found(&error) => Ok(0),
            Err(error) => Err(error),
        };
        // The answer is there already; how the goodbye goes does not matter.
        let _ = connection.close(200, "done".into()).await;
        ready
    }

    /// Deletes a queue with what is in it. Nothing is lost: jobs whose messages are gone are emitted again.
    pub async fn delete(&self, queue: &QueueName) -> Result<(), QueueError> {
        let connection = self.connect("claimcheck repair").await?;
        let channel = connection.create_channel().await?;
        let deleted = channel.queue_delete(self.queue(queue).into(), QueueDeleteOptions::default());
        within(DELETE_TIMEOUT, deleted).await?;
        let _ = connection.close(200, "done".into()).await;
        Ok(())
    }
}

/// Declares a durable quorum queue. Safe to repeat.
pub(super) async fn declare(channel: &Channel, name: &str) -> Result<(), QueueError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    within(CONNECT_TIMEOUT, channel.queue_declare(name.into(), durable, arguments)).await?;
    Ok(())
}

pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = lapin::Result<T>>) -> Result<T, QueueError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(QueueError::TimedOut(limit)),
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == 404)
}
