//! From a delivery to a claimed job in the engine's hands.
//!
//! Jobs whose deliveries arrive together are claimed together; what cannot be claimed is a duplicate or has ended, and is
//! forgotten. A message is acked when all of its jobs have ended. Any failure of the broker ends the subscription and a new
//! one is opened: jobs in flight go on, and what the broker delivers again finds nothing to claim. Each queue has a subscription of its own, so that
//! one which the broker cannot serve keeps none of the others from being served. Must never drop a claimed job: it is in
//! `in_flight.rs` from its claim to its settle (`results.rs`). Next: `engine/`.

use std::collections::HashMap;
use std::sync::Arc;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::domain::{Class, JobId, QueueName, WorkerId};
use claimcheck_common::pace::Pace;
use claimcheck_common::queue::{Acker, Broker, Delivery, QueueError, Subscription};
use claimcheck_common::store::claim::{self, ClaimedJob};
use claimcheck_common::store::{Lane, StoreError};
use futures::FutureExt;
use futures::future::try_join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acks;
use crate::engine::EngineStopped;
use crate::feeder::Feeder;
use crate::health::ModelHealth;
use crate::in_flight::InFlight;

/// A group is claimed in one transaction as soon as it has so many jobs.
const GROUP: usize = 256;

/// A queue that lets so many subscriptions in a row go unanswered is deleted and declared anew. RabbitMQ 3.10 brings a
/// quorum queue back without a leader when it was killed within a second of the queue's declaration, and such a queue
/// never answers again. Its messages need not be saved: jobs that nobody claims are emitted again.
const UNANSWERED: u32 = 3;

#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("a stop was asked for")]
    Stopping,
    #[error(transparent)]
    Engine(#[from] EngineStopped),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Takes deliveries as long as the worker runs.
pub struct Consumer {
    /// Where jobs are claimed.
    pub lane: Lane,
    /// Where deliveries come from.
    pub broker: Broker,
    /// The lease.
    pub delivery: DeliveryConfig,
    /// Who claims.
    pub worker: WorkerId,
    /// The model whose queues are consumed.
    pub model: String,
    /// Most unacked deliveries of each queue, each of a few jobs.
    pub prefetch: u16,
    /// Where claimed jobs are kept.
    pub in_flight: Arc<InFlight>,
    /// The way into the engine.
    pub feeder: Feeder,
    /// Hears whether there is a subscription.
    pub health: ModelHealth,
    /// Held while a group goes to the engine: a suspect that runs alone is alone among the jobs of all queues.
    pub feeding: Mutex<()>,
}

impl Consumer {
    /// Consumes until `stop`, through every failure of broker and database. An error means that the engine is dead.
    pub async fn run(self, stop: CancellationToken) -> Result<(), EngineStopped> {
        let queues = Class::ALL.map(|class| QueueName {
            model: self.model.clone(),
            class,
        });
        try_join_all(queues.iter().map(|queue| self.consume_always(queue, &stop))).await?;
        Ok(())
    }

    async fn consume_always(&self, queue: &QueueName, stop: &CancellationToken) -> Result<(), EngineStopped> {
        let mut backoff = Backoff::default();
        let mut unanswered = 0;
        loop {
            let outcome = self.consume(queue, &mut backoff, stop).await;
            self.health.subscribed(queue.class, false);
            let error = match outcome {
                Interrupted::Stopping => return Ok(()),
                Interrupted::Engine(stopped) => return Err(stopped),
                Interrupted::Queue(error) => error,
            };
            tracing::warn!(%error, class = queue.class.as_str(), "lost the subscription and will open a new one");
            unanswered = if matches!(error, QueueError::TimedOut(_)) {
                unanswered + 1
            } else {
                0
            };
            if unanswered == UNANSWERED {
                unanswered = 0;
                self.replace(queue).await;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = backoff.wait() => {}
            }
        }
    }

    /// Deletes a queue that does not answer; the next subscription declares it.
    async fn replace(&self, queue: &QueueName) {
        let class = queue.class.as_str();
        match self.broker.delete(queue).await {
            Ok(()) => tracing::warn!(class, "deleted a queue that did not answer"),
            Err(error) => tracing::warn!(%error, class, "a queue does not answer and cannot be deleted"),
        }
    }

    /// One subscription's life. Dropping it gives unclaimed deliveries back to the broker.
    async fn consume(&self, queue: &QueueName, backoff: &mut Backoff, stop: &CancellationToken) -> Interrupted {
        let work = async {
            let mut subscription = self.subscribe(queue, stop).await?;
            let (opened, mut pace) = (Instant::now(), Pace::default());
            loop {
                unless(stop, pace.rest()).await?;
                let first = unless(stop, subscription.next()).await?;
                if opened.elapsed() > self.delivery.lease {
                    backoff.reset();
                }
                let (jobs, malformed) = sort(gather(first?, &mut subscription)?);
                acks::spend(malformed).await;
                pace.turned(Instant::now(), jobs.len());
                let _alone = self.feeding.lock().await;
                self.take(jobs, stop).await?;
            }
        };
        match work.await {
            Ok(never) => never,
            Err(interrupted) => interrupted,
        }
    }

    async fn subscribe(&self, queue: &QueueName, stop: &CancellationToken) -> Result<Subscription, Interrupted> {
        let queues = std::slice::from_ref(queue);
        let opening = Subscription::open(&self.broker, queues, self.prefetch, self.delivery.lease);
        let subscription = unless(stop, opening).await??;
        let class = queue.class;
        tracing::info!(
            model = self.model,
            class = class.as_str(),
            prefetch = self.prefetch,
            "subscribed"
        );
        self.health.subscribed(class, true);
        Ok(subscription)
    }

    /// Claims a group of delivered jobs and feeds what was claimed to the engine.
    async fn take(&self, group: Vec<(JobId, Acker)>, stop: &CancellationToken) -> Result<(), Interrupted> {
        let mut claimed = self.claim(group.iter().map(|(id, _)| *id).collect(), stop).await?;
        metrics::counter!("claimcheck_jobs_claimed_total").increment(claimed.len() as u64);
        let (mut jobs, mut nobodys) = (Vec::with_capacity(claimed.len()), Vec::new());
        for (id, acker) in group {
            if let Some(job) = claimed.remove(&id) {
                self.in_flight.admit(job.key, acker);
                jobs.push(job);
            } else {
                nobodys.push(acker);
            }
        }
        metrics::counter!("claimcheck_claims_refused_total").increment(nobodys.len() as u64);
        acks::spend(nobodys).await;
        self.feeder.feed(jobs, stop).await?;
        Ok(())
    }

    /// Claims as soon as the database is there. Until then the deliveries stay unacked.
    async fn claim(
        &self,
        ids: Vec<JobId>,
        stop: &CancellationToken,
    ) -> Result<HashMap<JobId, ClaimedJob>, Interrupted> {
        let mut backoff = Backoff::default();
        let lease = self.delivery.lease;
        let mut unheard = Vec::new();
        loop {
            // Not dropped at a stop: the commit could still come, and the job would have to lapse.
            match claim::claim_again(&self.lane, self.worker, ids.clone(), unheard.clone(), lease).await {
                Ok(jobs) => return Ok(by_id(jobs)),
                Err(error) if !error.is_transient() => return Ok(self.claim_singly(ids, &unheard, &error).await),
                Err(error) => tracing::warn!(%error, deliveries = ids.len(), "deliveries wait for the database"),
            }
            // It may have been committed all the same. What is in flight was claimed before, and its message comes twice.
            unheard.clone_from(&ids);
            unheard.retain(|id| self.in_flight.claims(*id).is_empty());
            unless(stop, backoff.wait()).await?;
        }
    }

    /// One row that does not read must not keep its neighbours from being claimed. It stays queued: re-emission brings it
    /// back, each time later than before.
    async fn claim_singly(&self, ids: Vec<JobId>, unheard: &[JobId], error: &StoreError) -> HashMap<JobId, ClaimedJob> {
        tracing::error!(%error, deliveries = ids.len(), "a group could not be claimed, claiming one by one");
        let mut claimed = Vec::new();
        for id in ids {
            let unheard = unheard.iter().filter(|one| **one == id).copied().collect();
            match claim::claim_again(&self.lane, self.worker, vec![id], unheard, self.delivery.lease).await {
                Ok(jobs) => claimed.extend(jobs),
                Err(error) => tracing::error!(job = %id, %error, "the job cannot be claimed"),
            }
        }
        by_id(claimed)
    }
}

fn by_id(jobs: Vec<ClaimedJob>) -> HashMap<JobId, ClaimedJob> {
    jobs.into_iter().map(|job| (job.key.id, job)).collect()
}

/// What `work` answers, unless a stop comes first.
async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Interrupted> {
    stop.run_until_cancelled(work).await.ok_or(Interrupted::Stopping)
}

/// A first delivery and what is ready at once.
fn gather(first: Delivery, subscription: &mut Subscription) -> Result<Vec<Delivery>, QueueError> {
    let mut jobs = first.jobs().len();
    let mut group = vec![first];
    while jobs < GROUP
        && let Some(delivery) = subscription.next().now_or_never()
    {
        // After an error nothing of this subscription can be acked: the broker delivers it all again.
        let delivery = delivery?;
        jobs += delivery.jobs().len();
        group.push(delivery);
    }
    Ok(group)
}

/// Job ids with their shares of the ackers, and the ackers of what is no job message.
fn sort(group: Vec<Delivery>) -> (Vec<(JobId, Acker)>, Vec<Acker>) {
    let (mut jobs, mut malformed) = (Vec::with_capacity(group.len()), Vec::new());
    for Delivery { message, acker } in group {
        match message {
            Ok(message) => jobs.extend(message.jobs().iter().map(|id| (*id, acker.clone()))),
            Err(error) => {
                tracing::error!(%error, "dropped a malformed message");
                malformed.push(acker);
            }
        }
    }
    (jobs, malformed)
}
