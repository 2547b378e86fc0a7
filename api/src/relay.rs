//! The relay: from outbox rows to confirmed messages. It is the queue's only entrance and its release window.
//!
//! Any number of replicas may run; one at a time serves a queue. A failure rolls its transaction back, so that every row
//! stays until its message was confirmed: messages may be doubled, never lost. Next: the worker's `consumer.rs`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::domain::{JobId, QueueName};
use claimcheck_common::pace::Pace;
use claimcheck_common::queue::{Broker, JobMessage, Publisher, QueueError};
use claimcheck_common::store::notify::JobChanges;
use claimcheck_common::store::outbox::{Look, OutboxRow, Taken};
use claimcheck_common::store::{Lane, Pool, StoreError, outbox};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::outgoing::{Outgoing, Where};
use crate::throughput::Throughput;

/// A turn that takes longer waits for a server that is gone, or has so much to do that it can as well begin anew.
const TURN_TIME: Duration = Duration::from_secs(30);
/// A queue that is not served keeps the others waiting whenever it is tried.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Most jobs in one transaction, so that the confirms of their messages come well within its time limit.
const BATCH: u32 = 512;

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("a turn took longer than {TURN_TIME:?}")]
    Late,
}

/// Moves due outbox rows to the broker.
pub struct Relay {
    pool: Pool,
    lane: Lane,
    broker: Broker,
    config: DeliveryConfig,
    changes: JobChanges,
    outgoing: Outgoing,
    /// Queues with rows that wait for room, for their time or for an operator.
    left: BTreeSet<QueueName>,
    /// Where what is new begins.
    frontier: Frontier,
    /// When all queues were looked at.
    looked: Instant,
    /// How fast jobs go to each queue.
    throughputs: HashMap<QueueName, Throughput>,
    /// Queues that the broker does not serve, and when each is tried again.
    refused: HashMap<QueueName, (Backoff, Instant)>,
    publisher: Option<Publisher>,
}

impl Relay {
    /// `outgoing` is told of each commit that wrote to the outbox here; `changes` tells of claims anywhere, which make room
    /// in the window. Rows written elsewhere are found within the relay interval.
    pub fn new(pool: Pool, broker: Broker, config: DeliveryConfig, changes: JobChanges, outgoing: Outgoing) -> Self {
        Self {
            lane: Lane::new(&pool),
            pool,
            broker,
            config,
            changes,
            outgoing,
            left: BTreeSet::new(),
            frontier: Frontier::default(),
            looked: Instant::now(),
            throughputs: HashMap::new(),
            refused: HashMap::new(),
            publisher: None,
        }
    }

    /// Relays until `stop`, through every failure of broker and database.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let (mut next, mut pace) = (Where::Anywhere, Pace::default());
        while !stop.is_cancelled() {
            let began = Instant::now();
            let turn = tokio::time::timeout(TURN_TIME, self.relay_due(next)).await;
            match turn.unwrap_or_else(|_| Err(RelayError::Late)) {
                Ok(moved) => {
                    backoff.reset();
                    pace.turned(began, moved);
                    pace.rest().await;
                    next = self.work(&stop).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the relay failed and will try again");
                    self.publisher = None;
                    // A database that was restored begins with smaller ids.
                    self.frontier = Frontier::default();
                    next = Where::Anywhere;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = backoff.wait() => {}
                    }
                }
            }
        }
    }

    /// Waits until there may be something to do.
    async fn work(&self, stop: &CancellationToken) -> Where {
        tokio::select! {
            // In this order: what is told of all the time must not keep the rest from being looked at.
            biased;
            () = stop.cancelled() => Where::Anywhere,
            () = tokio::time::sleep_until(self.looked + self.config.relay_interval) => Where::Anywhere,
            () = self.changes.any(), if !self.left.is_empty() => self.left_and_fresh(),
            place = self.outgoing.next() => place,
        }
    }

    /// Where rows were left, and where there are new ones.
    fn left_and_fresh(&self) -> Where {
        match self.outgoing.take() {
            Some(Where::Queues(fresh)) => Where::Queues(&fresh | &self.left),
            Some(Where::Anywhere) => Where::Anywhere,
            None => Where::Queues(self.left.clone()),
        }
    }

    /// Answers how many rows went.
    async fn relay_due(&mut self, place: Where) -> Result<usize, RelayError> {
        // Who knows its queues need not look for them, nor at what was there before, if nothing was left: that is the way of a job
        // that comes alone.
        let (queues, new) = match place {
            Where::Queues(queues) => (queues, self.frontier.look()),
            Where::Anywhere => {
                self.outgoing.take();
                self.looked = Instant::now();
                self.frontier.pass();
                self.left.clear();
                (outbox::queues(&self.pool).await?.into_iter().collect(), Look::All)
            }
        };
        let mut moved = 0;
        for queue in queues {
            let look = if self.left.contains(&queue) { Look::All } else { new };
            moved += self.relay_queue(queue, look).await?;
        }
        Ok(moved)
    }

    /// Relays what is due of one queue, and answers how many rows went. One that the broker does not serve is left for a while: the
    /// others need not wait for it.
    async fn relay_queue(&mut self, queue: QueueName, mut look: Look) -> Result<usize, RelayError> {
        self.left.insert(queue.clone());
        if self
            .refused
            .get(&queue)
            .is_some_and(|(_, until)| Instant::now() < *until)
        {
            return Ok(0);
        }
        // Without a connection no queue is served. It is made first: while that takes its time, no row is locked.
        self.publisher().await?;
        let mut moved = 0;
        loop {
            match self.relay_batch(&queue, look).await {
                Ok(Taken { rows, left }) => {
                    moved += rows.len();
                    for row in &rows {
                        self.frontier.reached(row.id);
                    }
                    if rows.len() == BATCH as usize {
                        look = Look::All;
                        continue;
                    }
                    self.refused.remove(&queue);
                    if !left {
                        self.left.remove(&queue);
                    }
                    return Ok(moved);
                }
                Err(RelayError::Queue(error)) => {
                    let (model, class) = (queue.model.clone(), queue.class.as_str());
                    tracing::warn!(%error, model, class, "messages of a queue could not be published");
                    self.publisher = None;
                    let (backoff, until) = self
                        .refused
                        .entry(queue)
                        .or_insert_with(|| (Backoff::up_to(REFUSED_FOR), Instant::now()));
                    *until = Instant::now() + backoff.pause();
                    return Ok(moved);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One transaction: take what the window has room for, publish, delete what was confirmed.
    async fn relay_batch(&mut self, queue: &QueueName, look: Look) -> Result<Taken, RelayError> {
        let mut connection = self.lane.acquire().await?;
        let mut transaction = outbox::begin(&mut connection).await?;
        let taken = outbox::take(&mut transaction, queue, look, self.config.release_window, BATCH).await?;
        if !taken.rows.is_empty() {
            let messages = self.messages(queue, &taken.rows);
            if let Err(error) = self.publisher().await?.publish(queue, &messages).await {
                transaction.rollback().await.map_err(StoreError::from)?;
                connection.give_back();
                return Err(error.into());
            }
            outbox::confirm(&mut transaction, &sent(&taken.rows, &messages)).await?;
            metrics::counter!("claimcheck_relay_messages_total").increment(messages.len() as u64);
        }
        transaction.commit().await.map_err(StoreError::from)?;
        connection.give_back();
        Ok(taken)
    }

    fn messages(&mut self, queue: &QueueName, rows: &[OutboxRow]) -> Vec<JobMessage> {
        let now = Instant::now();
        let throughput = self.throughputs.entry(queue.clone());
        let throughput = throughput.or_insert_with(|| Throughput::since(now));
        throughput.add(rows.len(), now);
        let jobs = rows.iter().map(|row| (row.job_id, row.traceparent.clone()));
        JobMessage::of_group(jobs, throughput.sustained())
    }

    async fn publisher(&mut self) -> Result<&mut Publisher, QueueError> {
        if self.publisher.is_none() {
            self.publisher = Some(Publisher::connect(self.broker.clone()).await?);
            tracing::info!("the relay is connected to the broker");
        }
        Ok(self.publisher.as_mut().expect("connected above"))
    }
}

/// Each row with the message that its job went in: rows and messages have the jobs in the same order.
fn sent<'r>(rows: &'r [OutboxRow], messages: &[JobMessage]) -> Vec<(&'r OutboxRow, JobId)> {
    let of_jobs = messages
        .iter()
        .flat_map(|message| message.jobs().iter().map(|_| message.id()));
    rows.iter().zip(of_jobs).collect()
}

/// How far the relay has come in the outbox, whose ids are drawn in order but committed out of it: what is drawn before one look at all
/// queues and committed after the next may be passed over, and is found by the one after that.
#[derive(Default)]
struct Frontier {
    /// The greatest id that went.
    newest: i64,
    /// What it was at the last two looks at all queues, the older one first.
    passed: [i64; 2],
}

impl Frontier {
    /// Where to look for what is new.
    const fn look(&self) -> Look {
        match self.passed[0] {
            0 => Look::All,
            passed => Look::From(passed),
        }
    }

    /// Rows up to this id went.
    fn reached(&mut self, id: i64) {
        self.newest = self.newest.max(id);
    }

    /// All queues are looked at.
    const fn pass(&mut self) {
        self.passed = [self.passed[1], self.newest];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_begins_with_what_went_before_the_last_look_but_one() {
        let mut frontier = Frontier::default();
        frontier.reached(7);
        frontier.pass();
        frontier.reached(9);
        assert_eq!(
            frontier.look(),
            Look::All,
            "one that is still on its way may have a smaller id"
        );
        frontier.pass();
        frontier.reached(8);
        assert_eq!(frontier.look(), Look::From(7));
        frontier.pass();
        assert_eq!(frontier.look(), Look::From(9));
    }
}
