//! How often a loop turns that serves in groups whatever has come.
//!
//! Such a loop turns as fast as it can: at half load it makes many small groups, and a job costs twice what it costs at full load.
//! So a turn that served several is followed by a short rest, in which the next ones gather. What comes to an idle loop goes at once.
//! (PostgreSQL's `commit_delay` with `commit_siblings` is the same thought.)

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// From the beginning of a turn that served several to the next: no more than a caller notices in each of the loops on a job's way.
const TURN: Duration = Duration::from_millis(10);
/// The pace of one loop.
#[derive(Debug, Default)]
pub struct Pace {
    rests_until: Option<Instant>,
}

impl Pace {
    /// Waits until the next turn may begin: at once, unless the last one served several.
    pub async fn rest(&self) {
        if let Some(until) = self.rests_until {
            sleep_until(until).await;
        }
    }

    /// The last turn began then and served so many.
    pub fn turned(&mut self, began: Instant, group: usize) {
        self.rests_until = (group > 1).then(|| began + TURN);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_company_is_followed_by_a_rest_and_the_turn_itself_counts() {
        let mut pace = Pace::default();
        pace.rest().now_or_never().expect("nothing was served yet");
        let began = Instant::now();
        pace.turned(began, 1);
        pace.rest().now_or_never().expect("it came alone");
        pace.turned(began, 2);
        pace.rest().await;
        assert!(began.elapsed() >= TURN);
        pace.turned(began, 2);
        pace.rest().now_or_never().expect("the turn took as long");
    }
}
