//! The role `dispatch`: claims deliveries that are due, sends each, and records what came of it.
//!
//! Any number of processes may do so. A claim is a lease (`common/src/store/webhooks/dispatch.rs`): what a dispatcher that dies has
//! in hand is sent again by another one, under the same `webhook-id`. Woken by a notification at the commit that wrote an event, and
//! by a look of its own every half second, since a notification may be lost. Must never hold a transaction while it sends.
//!
//! A delivery goes through `attempt.rs` (prepare, send by `client.rs`, judge by `schedule.rs`) to `recorder.rs`.

mod attempt;
mod client;
mod recorder;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::WebhookConfig;
use claimcheck_common::store::webhooks::CHANNEL;
use claimcheck_common::store::webhooks::dispatch::{self, ClaimTerms, Claimed};
use claimcheck_common::store::{Pool, StoreResult, notify, within};
use claimcheck_common::webhook::Vault;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::attempt::Sender;
use self::recorder::Recorder;

pub use self::client::ClientError;

/// Most deliveries of one claim: others wait for the lock meanwhile.
const CLAIM: usize = 128;
/// Attempts that wait to be recorded.
const UNRECORDED: usize = 1024;
/// How long the last attempts may wait for the database; then their leases end and they are made again.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(5);
/// A claim that takes longer waits for a server that is gone.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);
/// For what a dispatcher does with a delivery besides sending it.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// A dispatcher.
pub struct Dispatch {
    pool: Pool,
    config: WebhookConfig,
    sender: Arc<Sender>,
    wake: Arc<Notify>,
    freed: Arc<Notify>,
}

impl Dispatch {
    /// A dispatcher that opens secrets with `vault`.
    pub fn new(pool: Pool, config: WebhookConfig, vault: Vault) -> Result<Self, ClientError> {
        let sender = Sender::new(pool.clone(), &config, vault)?;
        Ok(Self {
            pool,
            config,
            sender: Arc::new(sender),
            wake: Arc::default(),
            freed: Arc::default(),
        })
    }

    /// Dispatches until `stop`; then ends what is being sent, which takes no longer than a receiver may.
    pub async fn run(self, stop: CancellationToken) {
        let _listening = self.listen(&stop);
        let (done, attempts) = mpsc::channel(UNRECORDED);
        let recorder = Recorder::new(self.pool.clone(), self.freed.clone());
        let recording = tokio::spawn(recorder.run(attempts));
        let mut sending = JoinSet::new();
        self.send_all(&mut sending, &done, &stop).await;
        sending.join_all().await;
        drop(done);
        if tokio::time::timeout(LAST_WORD_LIMIT, recording).await.is_err() {
            tracing::warn!("left without recording the last webhooks: they will be sent again");
        }
    }

    fn listen(&self, stop: &CancellationToken) -> AbortOnDropHandle<()> {
        let (pool, wake, stop) = (self.pool.clone(), self.wake.clone(), stop.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            notify::listen(&pool, CHANNEL, |_| wake.notify_one(), stop).await;
        }))
    }

    /// Claims and sends until `stop`. A claim that has begun by then is sent: nobody else would before its lease ends.
    async fn send_all(
        &self,
        sending: &mut JoinSet<()>,
        done: &mpsc::Sender<dispatch::Attempt>,
        stop: &CancellationToken,
    ) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            while sending.try_join_next().is_some() {}
            let room = (self.config.in_flight as usize).saturating_sub(sending.len());
            let limit = room.min(CLAIM);
            let mut more = false;
            if limit > 0 {
                match self.claim(limit as u32).await {
                    Ok(claimed) => {
                        backoff.reset();
                        let full = claimed.deliveries.len() == limit;
                        more = claimed.more;
                        self.send(claimed, sending, done);
                        if full && more && limit < room {
                            continue;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "webhooks wait for the database");
                        let _stopped: Option<()> = stop.run_until_cancelled(backoff.wait()).await;
                        continue;
                    }
                }
            }
            let full = sending.len() >= self.config.in_flight as usize;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified(), if !full => {}
                // A receiver that was at its limit has room again.
                () = self.freed.notified(), if more && !full => {}
                _ = sending.join_next(), if full => {}
                () = tokio::time::sleep(self.config.interval) => {}
            }
        }
    }

    async fn claim(&self, limit: u32) -> StoreResult<Claimed> {
        let terms = ClaimTerms {
            limit,
            lease: self.config.timeout * 2 + LEASE_MARGIN,
            tries_max: schedule::TRIES_MAX,
        };
        within(CLAIM_LIMIT, dispatch::claim(&self.pool, terms)).await
    }

    fn send(&self, claimed: Claimed, sending: &mut JoinSet<()>, done: &mpsc::Sender<dispatch::Attempt>) {
        for delivery in claimed.deliveries {
            if delivery.attempt == 1 {
                metrics::histogram!("claimcheck_webhook_first_attempt_seconds").record(delivery.age.as_secs_f64());
            }
            let (sender, done) = (self.sender.clone(), done.clone());
            sending.spawn(async move {
                metrics::gauge!("claimcheck_webhooks_in_flight").increment(1.0);
                let attempt = sender.send(delivery).await;
                metrics::gauge!("claimcheck_webhooks_in_flight").decrement(1.0);
                // Nobody there: the process ends, and the lease with it.
                let _unrecorded = done.send(attempt).await;
            });
        }
    }
}
