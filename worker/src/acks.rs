//! Spending ackers, when the outcome is committed or there was nothing to do.
//!
//! An ack that fails costs nothing: the broker delivers again, and the claim finds nothing to do. So it is not repeated.

use std::time::Duration;

use claimcheck_common::queue::{Acker, acknowledge};

/// A broker alarm can hold an ack up; nobody waits for it longer than this.
const LIMIT: Duration = Duration::from_secs(5);

/// Acknowledges all of them.
pub async fn spend(ackers: Vec<Acker>) {
    match tokio::time::timeout(LIMIT, acknowledge(ackers)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "acks came too late, the broker will deliver again"),
        Err(_) => tracing::warn!("the broker takes no acks"),
    }
}
