//! Receiving: deliveries of some queues, each with an acker that travels with the work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, stream};
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{DeliveryTag, FieldTable};
use lapin::{Channel, Connection};
use tokio::sync::Mutex;

use super::connection::{declare, within};
use super::{Broker, JobMessage, MalformedMessage, QueueError};
use crate::domain::{JobId, QueueName};

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open subscription. After an error it is of no more use: its unacked deliveries go to somebody else.
pub struct Subscription {
    // Held for the channel's sake: dropping it closes both.
    _connection: Connection,
    _channel: Channel,
    acked: Arc<Mutex<Acked>>,
    deliveries: SelectAll<BoxStream<'static, Result<AmqpDelivery, QueueError>>>,
}

/// One message, to be acked when all the work that it stands for is committed or found to be nobody's.
pub struct Delivery {
    /// What it says; a malformed body is acked and logged by the consumer, never requeued.
    pub message: Result<JobMessage, MalformedMessage>,
    /// Spends it.
    pub acker: Acker,
}

impl Delivery {
    /// What it is about: nothing, if it does not read.
    pub fn jobs(&self) -> &[JobId] {
        self.message.as_ref().map_or(&[], JobMessage::jobs)
    }
}

/// A share in the right to acknowledge one delivery, for one of its jobs: it is acknowledged with the last share. If all are
/// dropped unspent, the broker delivers again once the channel closes; one that is dropped beside others counts as acknowledged.
#[derive(Debug, Clone)]
pub struct Acker(Arc<Open>);

/// A delivery that is not acknowledged yet.
#[derive(Debug)]
struct Open {
    delivery: AmqpDelivery,
    /// Of the delivery's channel.
    acked: Arc<Mutex<Acked>>,
}

/// Which delivery tags of a channel were acknowledged: the first and the last of each run. Between two runs something is open, so there
/// are no more runs than the channel may have open deliveries.
#[derive(Debug, Default)]
struct Acked(BTreeMap<DeliveryTag, DeliveryTag>);

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
            acked: Arc::default(),
            deliveries,
        })
    }

    /// The next delivery. Safe to drop half-way. An error is the end of this subscription.
    pub async fn next(&mut self) -> Result<Delivery, QueueError> {
        match self.deliveries.next().await {
            Some(Ok(delivery)) => Ok(read(delivery, self.acked.clone())),
            Some(Err(error)) => Err(error),
            None => Err(QueueError::Ended),
        }
    }
}

fn read(delivery: AmqpDelivery, acked: Arc<Mutex<Acked>>) -> Delivery {
    let headers = delivery.properties.headers().as_ref();
    let traceparent = headers
        .and_then(|headers| headers.inner().get("traceparent"))
        .and_then(|value| value.as_long_string())
        .map(ToString::to_string);
    Delivery {
        message: JobMessage::decode(&delivery.data, traceparent),
        acker: Acker(Arc::new(Open { delivery, acked })),
    }
}

/// Acknowledges the deliveries of which no share is left besides these, by one frame as far as nothing before them is open: each
/// frame is an entry of the queue's log.
///
/// An error means that a channel is gone and the broker will deliver again, which claims make harmless. Goes on although nobody waits for
/// it any more: what it has begun to send must be waited for by who comes next.
pub async fn acknowledge(ackers: Vec<Acker>) -> Result<(), QueueError> {
    let done: Vec<_> = ackers
        .into_iter()
        .filter_map(|acker| Arc::into_inner(acker.0))
        .collect();
    if done.is_empty() {
        return Ok(());
    }
    let done = tokio::spawn(acknowledge_all(done)).await;
    done.unwrap_or(Err(QueueError::Ended))
}

async fn acknowledge_all(done: Vec<Open>) -> Result<(), QueueError> {
    let mut channels: Vec<Vec<Open>> = Vec::new();
    for one in done {
        let own = channels
            .iter_mut()
            .find(|other| Arc::ptr_eq(&other[0].acked, &one.acked));
        match own {
            Some(channel) => channel.push(one),
            None => channels.push(vec![one]),
        }
    }
    let done = join_all(channels.into_iter().map(acknowledge_on_one)).await;
    done.into_iter().collect()
}

/// The same for deliveries of one channel, at least one.
async fn acknowledge_on_one(done: Vec<Open>) -> Result<(), QueueError> {
    let acked = done[0].acked.clone();
    // Held until all is sent: to acknowledge a delivery once more would end the channel.
    let mut acked = acked.lock().await;
    let together = acked.add(done.iter().map(Open::tag));
    let sent = done.iter().filter(|one| together.is_none_or(|tag| one.tag() >= tag));
    let sent = sent.map(|one| {
        let multiple = together == Some(one.tag());
        one.delivery.ack(BasicAckOptions { multiple })
    });
    for outcome in join_all(sent).await {
        // On a dead channel lapin answers `Ok(false)`.
        if !outcome? {
            return Err(QueueError::Ended);
        }
    }
    Ok(())
}

impl Open {
    const fn tag(&self) -> DeliveryTag {
        self.delivery.delivery_tag
    }
}

impl Acked {
    /// Adds tags that were open, and answers the greatest of them before which none is open any more, those that nobody has seen yet
    /// included.
    fn add(&mut self, tags: impl Iterator<Item = DeliveryTag> + Clone) -> Option<DeliveryTag> {
        for tag in tags.clone() {
            let last = self.0.remove(&(tag + 1)).unwrap_or(tag);
            match self.0.range_mut(..tag).next_back() {
                Some((_, before)) if *before + 1 == tag => *before = last,
                _ => {
                    self.0.insert(tag, last);
                }
            }
        }
        // A channel's first delivery has tag 1.
        let all_to = *self.0.get(&1)?;
        tags.filter(|tag| *tag <= all_to).max()
    }
}

#[cfg(test)]
mod tests {
    use super::Acked;

    #[test]
    fn tags_go_together_as_far_as_none_before_them_is_open() {
        let mut acked = Acked::default();
        let mut add = |tags: &[u64]| acked.add(tags.iter().copied());
        assert_eq!(add(&[2, 3]), None, "1 is open");
        assert_eq!(add(&[1, 5]), Some(1), "what was acknowledged before is not named again");
        assert_eq!(add(&[4, 7]), Some(4), "6 is open");
        assert_eq!(add(&[9, 6, 8]), Some(9));
        assert_eq!(add(&[10]), Some(10));
        assert_eq!(add(&[14, 12, 13, 16]), None, "11 is open");
        assert_eq!(acked.0.len(), 3);
        assert_eq!(
            acked.add([11, 15].into_iter()),
            Some(15),
            "what was acknowledged before is not named again"
        );
        assert_eq!(acked.0.into_iter().collect::<Vec<_>>(), [(1, 16)]);
    }
}
