//! From attempts to the log: what has come by now shares one commit.
//!
//! While the database is away attempts wait here, and the bounded channel holds new ones back. What is recorded too late, after its
//! lease, is sent again: at least once.

use std::sync::Arc;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::store::Pool;
use claimcheck_common::store::webhooks::dispatch::{self, Attempt};
use tokio::sync::{Notify, mpsc};

use super::schedule::PATIENCE;

/// Most attempts that share one commit.
const GROUP: usize = 256;

/// Writes down what came of attempts.
pub(super) struct Recorder {
    pool: Pool,
    freed: Arc<Notify>,
}

impl Recorder {
    /// `freed` is told after each commit: a receiver has room again.
    pub(super) const fn new(pool: Pool, freed: Arc<Notify>) -> Self {
        Self { pool, freed }
    }

    /// Records until nobody sends any more.
    pub(super) async fn run(self, mut attempts: mpsc::Receiver<Attempt>) {
        let mut group = Vec::with_capacity(GROUP);
        while attempts.recv_many(&mut group, GROUP).await > 0 {
            self.record(std::mem::take(&mut group)).await;
            self.freed.notify_one();
        }
    }

    async fn record(&self, group: Vec<Attempt>) {
        let mut backoff = Backoff::default();
        loop {
            match dispatch::record(&self.pool, group.clone(), PATIENCE).await {
                Ok(disabled) => {
                    for endpoint in disabled {
                        tracing::warn!(%endpoint, "a webhook endpoint was disabled");
                        metrics::counter!("claimcheck_webhook_endpoints_disabled_total").increment(1);
                    }
                    return;
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, attempts = group.len(), "attempts wait for the database");
                }
                Err(error) => {
                    // They come to their lease's end and are made again.
                    tracing::error!(%error, attempts = group.len(), "the database refuses attempts");
                    return;
                }
            }
            backoff.wait().await;
        }
    }
}
