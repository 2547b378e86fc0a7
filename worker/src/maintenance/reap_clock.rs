//! When a lapsed lease may be believed.
//!
//! A lease lapses because its worker is gone, or because nobody could beat: the database was away, or this very process
//! (its network, its whole machine) was. Only the first is a reason to run a job again. So nothing is reaped until this
//! rescuer has seen the database without a gap for one full lease: by then every worker that lives has beaten.
//!
//! A look that nobody answers (a cut connection) is no look, and no more of a gap than the time without one: the next look tells
//! by the database's uptime whether it was away. One that the database refuses (a full disk) ends the series.

use std::time::{Duration, Instant};

/// Measures how long rescuer and database have been up and connected.
#[derive(Debug)]
pub(super) struct ReapClock {
    lease: Duration,
    /// The first and the last look of an unbroken series.
    series: Option<(Instant, Instant)>,
}

impl ReapClock {
    pub(super) const fn new(lease: Duration) -> Self {
        Self { lease, series: None }
    }

    /// The database refused a look, and beats as well then: the series is broken.
    pub(super) const fn refused(&mut self) {
        self.series = None;
    }

    /// A look at `now` succeeded and found the database up for `uptime`. Answers whether lapsed leases may be reaped.
    pub(super) fn succeeded(&mut self, now: Instant, uptime: Duration) -> bool {
        let since = match self.series {
            // A longer pause than half a lease is one in which beats may have been missed as well (a suspended machine).
            Some((since, last)) if now.duration_since(last) <= self.lease / 2 => since,
            _ => now,
        };
        self.series = Some((since, now));
        now.duration_since(since) >= self.lease && uptime >= self.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const LONG_UP: Duration = Duration::from_hours(1);

    /// Looks once a second from `from` to `to` and answers the last verdict.
    fn look(clock: &mut ReapClock, start: Instant, from: u64, to: u64) -> bool {
        (from..=to).fold(false, |_, second| {
            clock.succeeded(start + Duration::from_secs(second), LONG_UP)
        })
    }

    #[test]
    fn a_new_rescuer_waits_one_full_lease() {
        let (mut clock, start) = (ReapClock::new(LEASE), Instant::now());
        assert!(!look(&mut clock, start, 0, 9));
        assert!(look(&mut clock, start, 10, 10));
    }

    #[test]
    fn looks_that_nobody_answers_count_as_none() {
        let (mut clock, start) = (ReapClock::new(LEASE), Instant::now());
        assert!(look(&mut clock, start, 0, 20));
        // From 21 to 24 the connection was cut; at 25 it is back, and then it is gone for 26 to 30.
        assert!(look(&mut clock, start, 25, 25), "half a lease without a look");
        assert!(!look(&mut clock, start, 31, 40), "more than that");
        assert!(look(&mut clock, start, 41, 41));
    }

    #[test]
    fn a_refusal_of_the_database_starts_the_wait_anew() {
        let (mut clock, start) = (ReapClock::new(LEASE), Instant::now());
        assert!(look(&mut clock, start, 0, 20));
        clock.refused();
        assert!(!look(&mut clock, start, 21, 30));
        assert!(look(&mut clock, start, 31, 31));
    }

    #[test]
    fn a_restart_of_the_database_between_two_looks_is_noticed() {
        let (mut clock, start) = (ReapClock::new(LEASE), Instant::now());
        assert!(look(&mut clock, start, 0, 20));
        assert!(!clock.succeeded(start + Duration::from_secs(21), Duration::from_secs(1)));
        assert!(clock.succeeded(start + Duration::from_secs(22), LEASE));
    }

    #[test]
    fn a_rescuer_that_was_suspended_waits_again() {
        let (mut clock, start) = (ReapClock::new(LEASE), Instant::now());
        assert!(look(&mut clock, start, 0, 20));
        assert!(!look(&mut clock, start, 40, 49));
        assert!(look(&mut clock, start, 50, 50));
    }
}
