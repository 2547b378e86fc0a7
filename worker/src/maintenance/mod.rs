//! The role `maintain`: small tasks that find their work in the tables, again and again.
//!
//! Each is idempotent and takes no input, so any number of processes may run them, a missed turn costs time only, and a
//! failed one is repeated. What they put back goes through the outbox, like everything else (`api/src/relay.rs`).

mod abandoned;
mod reap_clock;
mod reaper;
mod reemit;
mod rescue;
mod retention;
mod sweep;

use std::time::Duration;

use claimcheck_common::backoff::Backoff;
use claimcheck_common::config::DeliveryConfig;
use claimcheck_common::queue::{Broker, QueueError};
use claimcheck_common::store::{Pool, StoreError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::reaper::Reaper;
use self::reemit::Reemit;
use self::retention::Retention;
use self::sweep::Sweep;

/// A turn that takes longer waits for a server that is gone.
const TURN_TIME: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
enum MaintenanceError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("a turn took longer than {TURN_TIME:?}")]
    Late,
}

/// A task of the common loop.
trait Task: Send + 'static {
    /// What the log calls it.
    fn name(&self) -> &'static str;

    /// The pause between two turns.
    fn period(&self) -> Duration;

    /// One turn: all that is to be done at this moment.
    fn run(&mut self) -> impl Future<Output = Result<(), MaintenanceError>> + Send;
}

/// Runs all tasks until `stop`. The delivery log of webhooks goes back for `keep_log`.
pub async fn run(pool: Pool, broker: Broker, config: DeliveryConfig, keep_log: Duration, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    for reaper in Reaper::all(&pool, &config) {
        tasks.spawn(repeat(reaper, stop.clone()));
    }
    for sweep in Sweep::all(&pool, &config) {
        tasks.spawn(repeat(sweep, stop.clone()));
    }
    tasks.spawn(repeat(Reemit::new(pool.clone(), broker, &config), stop.clone()));
    tasks.spawn(repeat(Retention::new(pool, &config, keep_log), stop));
    tasks.join_all().await;
}

async fn repeat(mut task: impl Task, stop: CancellationToken) {
    let name = task.name();
    let mut backoff = Backoff::default();
    let turns = async {
        loop {
            let turn = tokio::time::timeout(TURN_TIME, task.run()).await;
            match turn.unwrap_or_else(|_| Err(MaintenanceError::Late)) {
                Ok(()) => {
                    backoff.reset();
                    tokio::time::sleep(task.period()).await;
                }
                Err(error) => {
                    tracing::warn!(task = name, %error, "a maintenance task failed and will try again");
                    backoff.wait().await;
                }
            }
        }
    };
    // May drop a turn half-way: a transaction runs on in its own task, to its end or not at all.
    let _stopped: Option<()> = stop.run_until_cancelled(turns).await;
}
