//! The work behind batches, part of the role `maintain`: checking their lines, feeding them as jobs, counting what has ended,
//! writing their files.
//!
//! Any number of processes may do it: a batch is taken up under a lease, looked after for a moment and let go. Each step
//! stands in the tables before the next begins (`common/src/store/batch_work/`), so a process may be killed anywhere: the
//! next one goes on from there. Memory is bounded by the chunk, whatever the batch's size.
//!
//! A batch's way: `validate.rs` → `feed.rs` → `finalize.rs`, turn by turn (`turn.rs`).

mod feed;
mod finalize;
mod lines;
mod models;
mod sweep;
mod turn;
mod validate;

use std::time::Duration;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::{BatchConfig, DeliveryConfig};
use claimcheck_common::files::{FileError, FileStore};
use claimcheck_common::policy::Rules;
use claimcheck_common::store::{Pool, StoreError, batch_work};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::models::Models;
use self::turn::Turn;

/// Batches that a process looks after at the same time: one that is being checked holds up no other.
const LANES: usize = 2;
/// How often a lane looks for a batch that is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A turn that takes longer waits for a server that is gone. Its lease has run out long before, and what it has not committed
/// is undone.
const TURN_TIME: Duration = Duration::from_mins(30);

#[derive(Debug, thiserror::Error)]
enum BatchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("a part of the work panicked")]
    Panicked(#[from] tokio::task::JoinError),
    #[error("a line could not be written: {0}")]
    Line(#[from] serde_json::Error),
    #[error("a turn took longer than {TURN_TIME:?}")]
    Late,
}

/// What the work needs.
#[derive(Clone)]
pub struct Batches {
    /// Postgres.
    pub pool: Pool,
    /// Where files lie.
    pub files: FileStore,
    /// What prompts are held against.
    pub policy: Rules,
    /// The lease's time.
    pub delivery: DeliveryConfig,
    /// How many lines of a batch are jobs at the same time, and the tenants' limits.
    pub config: BatchConfig,
}

impl Batches {
    /// Looks after batches until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let models = Models::default();
        let mut lanes = JoinSet::new();
        for _ in 0..LANES {
            let lane = self.clone().lane(models.clone());
            let stop = stop.clone();
            lanes.spawn(async move {
                let _stopped: Option<()> = stop.run_until_cancelled(lane).await;
            });
        }
        let sweep = sweep::repeat(self.pool, self.files);
        lanes.spawn(async move {
            let _stopped: Option<()> = stop.run_until_cancelled(sweep).await;
        });
        lanes.join_all().await;
    }

    /// May be dropped anywhere: the batch is taken up again when its lease has run out.
    async fn lane(self, models: Models) {
        let mut backoff = Backoff::default();
        loop {
            let turn = tokio::time::timeout(TURN_TIME, self.turn(&models)).await;
            match turn.unwrap_or(Err(BatchError::Late)) {
                Ok(true) => backoff.reset(),
                Ok(false) => {
                    backoff.reset();
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, "a batch could not be looked after and will be taken up again");
                    backoff.wait().await;
                }
            }
        }
    }

    /// One turn of one batch. Answers whether one was due.
    async fn turn(&self, models: &Models) -> Result<bool, BatchError> {
        let Some(held) = batch_work::take(&self.pool, self.delivery.lease).await? else {
            return Ok(false);
        };
        let (batch, turn) = (held.view.id, Turn::new(self, models, held));
        let span = tracing::info_span!("batch", %batch);
        tracing::Instrument::instrument(turn.run(), span).await?;
        Ok(true)
    }
}

/// The error with what it came from.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
