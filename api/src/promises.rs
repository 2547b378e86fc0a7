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
