//! When a delivery is tried again: ten tries over three days, as Standard Webhooks suggests, and later if the receiver asks for it.

use std::time::{Duration, SystemTime};

use claimcheck_common::store::webhooks::dispatch::Verdict;
use rand::RngExt;

const SECOND: u64 = 1;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// From one try to the next.
const PAUSES: [u64; 9] = [
    5 * SECOND,
    5 * MINUTE,
    30 * MINUTE,
    2 * HOUR,
    5 * HOUR,
    10 * HOUR,
    14 * HOUR,
    20 * HOUR,
    24 * HOUR,
];
/// Most tries of a delivery.
pub(super) const TRIES_MAX: u32 = PAUSES.len() as u32 + 1;
/// An endpoint that did nothing but fail for so long is disabled: as long as one delivery is tried.
pub(super) const PATIENCE: Duration = Duration::from_hours(72);
/// A receiver may put a try off by so much.
const PUT_OFF_MAX: Duration = Duration::from_hours(24);
/// Each pause is drawn around its length, so that what failed together does not come back together.
const JITTER: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// What becomes of a delivery whose `tries`th try failed, where the receiver asked to be left alone for `put_off`.
pub(super) fn after_failure(tries: u32, put_off: Option<Duration>) -> Verdict {
    let Some(pause) = PAUSES.get(tries.saturating_sub(1) as usize) else {
        return Verdict::Failed;
    };
    let pause = Duration::from_secs(*pause).mul_f64(rand::rng().random_range(JITTER));
    Verdict::Again(pause.max(put_off.unwrap_or_default().min(PUT_OFF_MAX)))
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value.trim()).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_tries_are_spread_over_three_days() {
        let mut waited = Duration::ZERO;
        for tries in 1..TRIES_MAX {
            let Verdict::Again(pause) = after_failure(tries, None) else {
                panic!("given up after {tries}")
            };
            let usual = Duration::from_secs(PAUSES[tries as usize - 1]);
            assert!(
                pause >= usual.mul_f64(0.9) && pause <= usual.mul_f64(1.1),
                "{tries}: {pause:?}"
            );
            waited += pause;
        }
        assert!(
            waited > Duration::from_hours(68) && waited < Duration::from_hours(84),
            "{waited:?}"
        );
        assert_eq!(after_failure(TRIES_MAX, None), Verdict::Failed);
        assert_eq!(after_failure(u32::MAX, None), Verdict::Failed);
    }

    #[test]
    fn a_receiver_can_put_a_try_off_but_neither_hurry_nor_stop_it() {
        let wait = |seconds| match after_failure(1, Some(Duration::from_secs(seconds))) {
            Verdict::Again(pause) => pause,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(120), Duration::from_mins(2));
        assert!(wait(0) >= Duration::from_millis(4500));
        assert_eq!(wait(u64::MAX), PUT_OFF_MAX);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_mins(2)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now),
            Some(Duration::from_mins(1))
        );
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        for bad in ["", "soon", "-5", "1.5"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }
}
