//! The generic cell rate algorithm (ITU-T I.371): one time a limit tells how many requests may come and when the next may.
//!
//! That time is the theoretical arrival time (TAT): each request moves it on by the rate's gap, and may do so while it is no
//! further ahead of now than a period. Times are whole microseconds on the clock of whoever counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use claimcheck_common::domain::Rate;

/// Limits that the local table holds; a full one forgets first what is over, then all.
const LOCAL_MOST: usize = 1 << 16;

/// One limit of a request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) policy: &'static str,
    pub(super) key: String,
    pub(super) rate: Rate,
}

/// Where a caller stands with one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which limit.
    pub policy: &'static str,
    /// Its rate, as it is at this moment.
    pub rate: Rate,
    /// Requests that may come at once.
    pub remaining: u32,
    /// When all of the rate is there again.
    pub reset: Duration,
    /// Set if this limit refused the request: when one more may come.
    pub retry_after: Option<Duration>,
}

/// What all limits of a request say together: it counts with all of them or with none.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) standings: Vec<Standing>,
}

impl Ask {
    /// The same limit at a part of its rate.
    pub(super) fn at(self, part: f64) -> Self {
        Self {
            rate: self.rate.at(part),
            ..self
        }
    }

    pub(super) fn gap(&self) -> u64 {
        (self.rate.gap().as_micros() as u64).max(1)
    }

    pub(super) fn burst(&self) -> u64 {
        u64::from(self.rate.limit())
    }

    /// How far the TAT may be ahead of now.
    fn reach(&self) -> u64 {
        self.gap() * self.burst()
    }

    /// Where the caller stands with its TAT at `tat`.
    fn standing(&self, tat: u64, now: u64, refused: bool) -> Standing {
        let room = (now + self.reach()).saturating_sub(tat.max(now));
        let wait = (tat + self.gap()).saturating_sub(now + self.reach());
        Standing {
            policy: self.policy,
            rate: self.rate,
            remaining: (room / self.gap()) as u32,
            reset: Duration::from_micros(tat.saturating_sub(now)),
            retry_after: (refused && wait > 0).then(|| Duration::from_micros(wait)),
        }
    }
}

impl Outcome {
    /// From the TAT of each limit after the decision.
    pub(super) fn of(asks: &[Ask], tats: &[u64], now: u64, passed: bool) -> Self {
        let standings = asks.iter().zip(tats);
        Self {
            standings: standings.map(|(ask, tat)| ask.standing(*tat, now, !passed)).collect(),
        }
    }

    #[cfg(test)]
    fn passed(&self) -> bool {
        self.standings.iter().all(|standing| standing.retry_after.is_none())
    }
}

/// Counts in this process.
#[derive(Debug)]
pub(super) struct Local {
    born: Instant,
    tats: Mutex<HashMap<String, u64>>,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            tats: Mutex::default(),
        }
    }
}

impl Local {
    pub(super) fn take(&self, asks: &[Ask]) -> Outcome {
        self.take_at(asks, self.born.elapsed().as_micros() as u64)
    }

    fn take_at(&self, asks: &[Ask], now: u64) -> Outcome {
        let mut known = self.tats.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tats: Vec<u64> = asks
            .iter()
            .map(|ask| known.get(&ask.key).copied().unwrap_or(0).max(now))
            .collect();
        let passed = asks
            .iter()
            .zip(&tats)
            .all(|(ask, tat)| tat + ask.gap() <= now + ask.reach());
        if passed {
            if known.len() + asks.len() > LOCAL_MOST {
                known.retain(|_, tat| *tat > now);
            }
            if known.len() + asks.len() > LOCAL_MOST {
                known.clear();
            }
            for (ask, tat) in asks.iter().zip(&mut tats) {
                *tat += ask.gap();
                known.insert(ask.key.clone(), *tat);
            }
        }
        drop(known);
        Outcome::of(asks, &tats, now, passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(key: &str, rate: &str) -> Ask {
        Ask {
            policy: "user",
            key: key.to_owned(),
            rate: rate.parse().unwrap(),
        }
    }

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_passes_up_to_the_limit_and_then_one_a_gap() {
        let (local, asks) = (Local::default(), [ask("a", "10/min")]);
        for left in (0..10).rev() {
            let outcome = local.take_at(&asks, 0);
            assert!(outcome.passed());
            assert_eq!(outcome.standings[0].remaining, left);
        }
        let refused = local.take_at(&asks, 0);
        assert_eq!(refused.standings[0].retry_after, Some(Duration::from_secs(6)));
        assert_eq!(refused.standings[0].reset, Duration::from_mins(1));
        assert!(!local.take_at(&asks, 6 * SECOND - 1).passed());
        assert!(local.take_at(&asks, 6 * SECOND).passed());
        assert!(!local.take_at(&asks, 6 * SECOND).passed());
    }

    #[test]
    fn a_request_counts_with_all_of_its_limits_or_with_none() {
        let local = Local::default();
        let (wide, narrow) = (ask("wide", "10/min"), ask("narrow", "1/min"));
        assert!(local.take_at(&[wide.clone(), narrow.clone()], 0).passed());
        for _ in 0..20 {
            let refused = local.take_at(&[wide.clone(), narrow.clone()], 0);
            assert!(refused.standings[0].retry_after.is_none() && refused.standings[1].retry_after.is_some());
        }
        assert_eq!(local.take_at(&[wide], 0).standings[0].remaining, 8);
    }

    #[test]
    fn a_rate_that_shrinks_holds_back_until_the_greater_one_has_flowed_off() {
        let (local, asks) = (Local::default(), [ask("a", "60/min")]);
        for _ in 0..60 {
            assert!(local.take_at(&asks, 0).passed());
        }
        let shrunk = [asks[0].clone().at(0.1)];
        let refused = local.take_at(&shrunk, SECOND);
        assert_eq!(refused.standings[0].retry_after, Some(Duration::from_secs(9)));
        assert!(local.take_at(&shrunk, 10 * SECOND).passed());
    }

    proptest! {
        #[test]
        fn in_no_stretch_of_time_do_more_pass_than_the_burst_and_what_came_back(
            steps in proptest::collection::vec(0..SECOND, 1..200),
            limit in 1..20_u32,
        ) {
            let (local, asks) = (Local::default(), [ask("a", &format!("{limit}/min"))]);
            let (mut now, mut passed) = (0, 0);
            for step in steps {
                now += step;
                passed += u64::from(local.take_at(&asks, now).passed());
                prop_assert!(passed <= u64::from(limit) + now / asks[0].gap());
            }
        }
    }
}
