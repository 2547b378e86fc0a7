//! Publishing with confirms, by the batch: send all, then await all (one round trip each would be thirty times slower).

use std::collections::HashSet;
use std::time::Duration;

use futures::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::connection::{declare, within};
use super::{Broker, JobMessage, QueueError};
use crate::domain::QueueName;

/// The relay's transaction is open for this long at most.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
const PERSISTENT: u8 = 2;

/// One connection that publishes. After an error it is of no more use.
pub struct Publisher {
    broker: Broker,
    // Held for the channel's sake: dropping it closes both.
    _connection: Connection,
    channel: Channel,
    declared: HashSet<QueueName>,
}

impl Publisher {
    /// Connects and asks for confirms.
    pub async fn connect(broker: Broker) -> Result<Self, QueueError> {
        let connection = broker.connect("claimcheck relay").await?;
        let channel = connection.create_channel().await?;
        within(PUBLISH_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            broker,
            _connection: connection,
            channel,
            declared: HashSet::new(),
        })
    }

    /// Publishes persistent messages; `Ok` means that the broker has all of them on disk, in a queue that exists.
    ///
    /// On an error some may have arrived all the same: publish the whole batch again, claims make duplicates harmless.
    pub async fn publish(&mut self, queue: &QueueName, messages: &[JobMessage]) -> Result<(), QueueError> {
        let work = self.publish_all(queue, messages);
        tokio::time::timeout(PUBLISH_TIMEOUT, work)
            .await
            .map_err(|_| QueueError::TimedOut(PUBLISH_TIMEOUT))?
    }

    async fn publish_all(&mut self, queue: &QueueName, messages: &[JobMessage]) -> Result<(), QueueError> {
        let name = self.broker.queue(queue);
        if !self.declared.contains(queue) {
            declare(&self.channel, &name).await?;
            self.declared.insert(queue.clone());
        }
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        // Each is answered when it is written to the socket, by another thread: one after the other they would cost two changes of
        // threads and a packet each. They are put on their way in this order.
        let sending = messages.iter().map(|message| async {
            let (queue, body) = (name.as_str().into(), message.encode());
            let sent = self
                .channel
                .basic_publish("".into(), queue, mandatory, &body, properties(message));
            sent.await
        });
        let confirms = try_join_all(sending).await?;
        let mut not_taken = 0;
        // The broker confirms in order, as good as always: when the last is there, nobody need be woken for the others.
        for confirm in confirms.into_iter().rev() {
            // A returned message is confirmed as well, and a return can be attached to its neighbour's confirm: one
            // return fails the batch.
            if !matches!(confirm.await?, Confirmation::Ack(None)) {
                not_taken += 1;
            }
        }
        if not_taken > 0 {
            Err(QueueError::NotTaken(not_taken))
        } else {
            Ok(())
        }
    }
}

fn properties(message: &JobMessage) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(message.id().to_string().into());
    let Some(traceparent) = message.traceparent() else {
        return properties;
    };
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    properties.with_headers(headers)
}
