//! Cancels as they are pushed: the running row leaves the engine at its next step.
//!
//! Must never end a job: it passes the wish on to the engine, whose ending `results.rs` settles. A push that is lost, or
//! that comes between a claim's commit and its place in `in_flight.rs`, is made up for by the heartbeat.

use std::sync::Arc;

use claimcheck_common::domain::JobId;
use claimcheck_common::store::{Pool, cancels};
use tokio_util::sync::CancellationToken;

use crate::engine::EngineHandle;
use crate::in_flight::{InFlight, StopReason};

/// Hears which jobs to stop.
pub struct Cancels {
    /// Where callers ask.
    pub pool: Pool,
    /// Which jobs are this worker's.
    pub in_flight: Arc<InFlight>,
    /// Stops them.
    pub engine: EngineHandle,
}

impl Cancels {
    /// Listens until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            pool,
            in_flight,
            engine,
        } = self;
        let heard = move |id: JobId| {
            for key in in_flight.claims(id) {
                if in_flight.stop(key, StopReason::Cancelled) {
                    engine.cancel(key);
                }
            }
        };
        cancels::listen(pool, heard, stop).await;
    }
}
