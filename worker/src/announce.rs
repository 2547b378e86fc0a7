//! Telling the database who serves what: the API resolves names and counts tokens by it (`common/src/store/models.rs`).
//!
//! Done before the first delivery is taken, and again whenever the heartbeat finds that nobody knows this worker.

use claimcheck_common::backoff::Backoff;
use claimcheck_common::domain::WorkerId;
use claimcheck_common::store::models::{self, NewModel};
use claimcheck_common::store::{Pool, StoreResult};
use tokio_util::sync::CancellationToken;

/// What this worker says of itself.
#[derive(Clone)]
pub struct Announcement {
    /// Where to.
    pub pool: Pool,
    /// This life of this process.
    pub worker: WorkerId,
    /// Unacked deliveries that it takes from each queue.
    pub prefetch: u16,
    /// What it serves.
    pub model: NewModel,
}

impl Announcement {
    /// One try.
    pub async fn once(&self) -> StoreResult<()> {
        models::announce(&self.pool, self.worker, self.prefetch, self.model.clone()).await
    }

    /// Tries until it is known or `stop`, also where the schema is still to come. Answers whether it is known.
    pub async fn until_known(&self, stop: &CancellationToken) -> bool {
        let mut backoff = Backoff::default();
        let tries = async {
            while let Err(error) = self.once().await {
                tracing::warn!(%error, "could not announce the model and will try again");
                backoff.wait().await;
            }
        };
        let known = stop.run_until_cancelled(tries).await.is_some();
        if known {
            let model = &self.model.model;
            tracing::info!(worker = %self.worker, model = model.name, revision = model.revision, "announced");
        }
        known
    }
}
