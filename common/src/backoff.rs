//! Waiting longer after each failure, with jitter, so that many processes do not come back in step.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_millis(50);
/// A server that is back is found so soon.
const LONGEST: Duration = Duration::from_secs(1);

/// Exponential back-off: 50 ms doubling to a second, each wait drawn between its half and its whole.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// Doubles to another limit: for what costs others something each time.
    pub const fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    /// Waits for this failure's turn.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }

    /// Things work again: the next failure waits briefly.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long this failure is to wait.
    pub fn pause(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.pause() <= LONGEST);
        }
        assert!(backoff.pause() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
