//! Spending ackers, when the outcome is committed or there was nothing to do.
//!
//! An ack that fails costs nothing: the broker delivers again, and the claim finds nothing to do. So it is not repeated.

use std::time::Duration;

use claimcheck_common::queue::Acker;
use futures::future::join_all;

/// A broker alarm can hold an ack up; nobody waits for it longer than this.
const LIMIT: Duration = Duration::from_secs(5);

/// Acknowledges all of them.
pub async fn spend(ackers: Vec<Acker>) {
    let acks = join_all(ackers.into_iter().map(Acker::ack));
    let Ok(outcomes) = tokio::time::timeout(LIMIT, acks).await else {
        tracing::warn!("the broker takes no acks");
        return;
    };
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    if failed > 0 {
        tracing::debug!(failed, "acks came too late, the broker will deliver again");
    }
}
