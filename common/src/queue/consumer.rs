//! Receiving: deliveries of some queues, each with an acker that travels with the work.

use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, stream};
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::connection::{declare, within};
use super::{Broker, JobMessage, MalformedMessage, QueueError};
use crate::domain::QueueName;

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open subscription. After an error it is of no more use: its unacked deliveries go to somebody else.
pub struct Subscription {
    // Held for the channel's sake: dropping it closes both.
    _connection: Connection,
    _channel: Channel,
    deliveries: SelectAll<BoxStream<'static, Result<AmqpDelivery, QueueError>>>,
}

/// One message, to be acked when the work it stands for is committed or found to be nobody's.
pub struct Delivery {
    /// What it says; a malformed body is acked and logged by the consumer, never requeued.
    pub message: Result<JobMessage, MalformedMessage>,
    /// Spends it.
    pub acker: Acker,
}

/// The right to acknowledge one delivery. Dropped unspent, the broker delivers again once the channel closes.
#[derive(Debug)]
pub struct Acker(AmqpDelivery);

impl Subscription {
    /// Declares and consumes `queues`, with at most `prefetch` unacked deliveries from each of them. A consumer that is not heard
    /// of for a `lease` (a second at least) loses them: they go to somebody else.
    pub async fn open(
        broker: &Broker,
        queues: &[QueueName],
        prefetch: u16,
        lease: Duration,
    ) -> Result<Self, QueueError> {
        let connection = broker.connect_leased("claimcheck worker", lease).await?;
        let channel = connection.create_channel().await?;
        within(
            SUBSCRIBE_TIMEOUT,
            channel.basic_qos(prefetch, BasicQosOptions::default()),
        )
        .await?;
        let mut deliveries = SelectAll::new();
        for queue in queues {
            let name = broker.queue(queue);
            declare(&channel, &name).await?;
            let consumer = channel.basic_consume(
                name.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consumer = within(SUBSCRIBE_TIMEOUT, consumer).await?;
            // One queue's end must be heard although the others go on.
            let end = stream::once(async { Err(QueueError::Ended) });
            deliveries.push(consumer.map(|delivery| Ok(delivery?)).chain(end).boxed());
        }
        Ok(Self {
            _connection: connection,
            _channel: channel,
            deliveries,
        })
    }

    /// The next delivery. Safe to drop half-way. An error is the end of this subscription.
    pub async fn next(&mut self) -> Result<Delivery, QueueError> {
        match self.deliveries.next().await {
            Some(Ok(delivery)) => Ok(read(delivery)),
            Some(Err(error)) => Err(error),
            None => Err(QueueError::Ended),
        }
    }
}

fn read(delivery: AmqpDelivery) -> Delivery {
    let headers = delivery.properties.headers().as_ref();
    let traceparent = headers
        .and_then(|headers| headers.inner().get("traceparent"))
        .and_then(|value| value.as_long_string())
        .map(ToString::to_string);
    Delivery {
        message: JobMessage::decode(&delivery.data, traceparent),
        acker: Acker(delivery),
    }
}

impl Acker {
    /// Acknowledges. An error means that the channel is gone and the broker will deliver again, which claims make
    /// harmless.
    pub async fn ack(self) -> Result<(), QueueError> {
        // On a dead channel lapin answers `Ok(false)`.
        if self.0.ack(BasicAckOptions::default()).await? {
            Ok(())
        } else {
            Err(QueueError::Ended)
        }
    }
}
