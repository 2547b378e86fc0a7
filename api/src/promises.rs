//! How good our guesses are: each first `eta_p90` that a caller was shown is held against the job's start.
//!
//! In memory and bounded: a guess that is forgotten is a sample less.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use claimcheck_common::domain::JobId;
use time::OffsetDateTime;

/// Guesses that are remembered at the same time.
const MOST: usize = 10_000;

/// The guesses of one process.
#[derive(Debug, Clone, Default)]
pub struct Promises {
    /// When each job should have begun.
    latest: Arc<Mutex<HashMap<JobId, OffsetDateTime>>>,
}

impl Promises {
    /// A caller was told that the job begins within `p90`, in nine cases of ten.
    pub fn made(&self, id: JobId, p90: Duration) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() < MOST {
            latest.entry(id).or_insert_with(|| OffsetDateTime::now_utc() + p90);
        }
    }

    /// A caller looks at a job. One that has begun, or never will, answers the guess that was made about it.
    pub fn seen(&self, id: JobId, started_at: Option<OffsetDateTime>, ended: bool) {
        if started_at.is_none() && !ended {
            return;
        }
        let promised = self.latest.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let (Some(promised), Some(started_at)) = (promised, started_at) {
            let held = if started_at <= promised { "true" } else { "false" };
            metrics::counter!("claimcheck_eta_p90_checked_total", "held" => held).increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    const P90: Duration = Duration::from_secs(90);
    const MOMENT: Duration = Duration::from_nanos(1);

    /// Hears of the one counter.
    #[derive(Default)]
    struct Listener {
        held: Arc<AtomicU64>,
        broken: Arc<AtomicU64>,
    }

    impl Recorder for Listener {
        fn describe_counter(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

        fn describe_gauge(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

        fn describe_histogram(&self, _name: KeyName, _unit: Option<Unit>, _text: SharedString) {}

        fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
            let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
            match (key.name(), &labels[..]) {
                ("claimcheck_eta_p90_checked_total", [("held", "true")]) => Counter::from_arc(self.held.clone()),
                ("claimcheck_eta_p90_checked_total", [("held", "false")]) => Counter::from_arc(self.broken.clone()),
                _ => Counter::noop(),
            }
        }

        fn register_gauge(&self, _key: &Key, _metadata: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    /// How many guesses held and how many did not, in what is done here.
    fn counted(done: impl FnOnce(&Promises)) -> (u64, u64) {
        let listener = Listener::default();
        metrics::with_local_recorder(&listener, || done(&Promises::default()));
        let [held, broken] = [&listener.held, &listener.broken].map(|count| count.load(Ordering::Relaxed));
        (held, broken)
    }

    /// A job of which a guess was told, and the time until which it should have begun.
    fn guessed(promises: &Promises) -> (JobId, OffsetDateTime) {
        let id = JobId::new();
        promises.made(id, P90);
        let latest = promises.latest.lock().unwrap()[&id];
        (id, latest)
    }

    #[test]
    fn a_guess_is_good_for_its_p90_from_the_moment_it_is_told() {
        let before = OffsetDateTime::now_utc();
        let (_, latest) = guessed(&Promises::default());
        assert!((before + P90..=OffsetDateTime::now_utc() + P90).contains(&latest));
    }

    #[test]
    fn a_job_that_began_within_its_p90_counts_as_held_and_one_that_began_a_moment_later_as_not_held() {
        let began = |late: Duration| {
            counted(|promises| {
                let (id, latest) = guessed(promises);
                promises.seen(id, Some(latest + late), false);
            })
        };
        assert_eq!(began(Duration::ZERO), (1, 0));
        assert_eq!(began(MOMENT), (0, 1));
    }

    #[test]
    fn a_job_that_ended_without_beginning_or_of_which_nothing_was_guessed_counts_not_at_all() {
        let counts = counted(|promises| {
            let (cancelled, latest) = guessed(promises);
            promises.seen(cancelled, None, true);
            assert!(promises.latest.lock().unwrap().is_empty(), "its guess is forgotten");
            promises.seen(JobId::new(), Some(latest), true);
        });
        assert_eq!(counts, (0, 0));
    }

    #[test]
    fn a_look_at_a_job_that_waits_leaves_its_guess_standing() {
        let counts = counted(|promises| {
            let (id, latest) = guessed(promises);
            promises.seen(id, None, false);
            promises.seen(id, Some(latest), false);
        });
        assert_eq!(counts, (1, 0));
    }

    #[test]
    fn of_several_guesses_the_first_counts_and_it_counts_once() {
        let counts = counted(|promises| {
            let (id, latest) = guessed(promises);
            promises.made(id, 2 * P90);
            for _ in 0..2 {
                promises.seen(id, Some(latest + MOMENT), true);
            }
        });
        assert_eq!(counts, (0, 1));
    }

    #[test]
    fn a_full_memory_takes_no_further_guess_and_keeps_those_it_has() {
        let counts = counted(|promises| {
            let (first, latest) = guessed(promises);
            for _ in 1..MOST {
                promises.made(JobId::new(), P90);
            }
            let further = JobId::new();
            promises.made(further, P90);
            promises.seen(further, Some(latest), false);
            promises.seen(first, Some(latest + MOMENT), false);
        });
        assert_eq!(counts, (0, 1));
    }
}
