//! Waiting for conditions.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it has an answer, for `limit` at most.
///
/// # Panics
/// If there is no answer in time; `what` says what was waited for.
pub async fn eventually<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(LOOK_AGAIN).await;
    }
}
