//! Whose callers wait at this process's connections: says so in the store again and again, and stops when they hang up.
//!
//! A job that nobody attends is cancelled some seconds later (`worker/src/maintenance/abandoned.rs`), also when this
//! process dies. Must never cancel a job itself: a retry of the request may be with another process already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claimcheck_common::domain::JobId;
use claimcheck_common::store::{Pool, StoreResult, attend, within};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// A statement that takes longer waits for a server that is gone.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The jobs that are waited for here.
#[derive(Clone)]
pub struct Attendance {
    grace: Duration,
    lease: Duration,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Callers of each job.
    present: HashMap<JobId, usize>,
    /// Jobs whose last caller left since the store was told.
    left: Vec<JobId>,
}

/// One caller's presence; dropping it ends it.
pub struct Attending {
    attendance: Attendance,
    id: JobId,
}

impl Attendance {
    /// `grace`: how long a job outlives the hang-up; `lease`: how long a word to the store is good for, which must be longer.
    pub fn new(grace: Duration, lease: Duration) -> Self {
        Self {
            grace,
            lease,
            seen: Arc::default(),
        }
    }

    /// What a new job is to be given with its submit.
    pub const fn lease(&self) -> Duration {
        self.lease
    }

    /// A caller waits for a job whose submit said so.
    pub fn enter(&self, id: JobId) -> Attending {
        *self.lock().present.entry(id).or_default() += 1;
        Attending {
            attendance: self.clone(),
            id,
        }
    }

    /// A caller waits again for a job that it was cut off from.
    pub async fn resume(&self, pool: &Pool, id: JobId) -> StoreResult<Attending> {
        let attending = self.enter(id);
        attend::attend(pool, &[id], self.lease).await?;
        Ok(attending)
    }

    /// Tells the store until `stop`, and a last time then.
    pub async fn run(self, pool: Pool, stop: CancellationToken) {
        let (look, renew) = (self.grace / 15, self.grace / 3);
        let mut ticks = tokio::time::interval(look);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed = Instant::now();
        loop {
            let last = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            let due = renewed.elapsed() >= renew;
            match within(ANSWER_LIMIT, self.tell(&pool, due)).await {
                Ok(()) if due => renewed = Instant::now(),
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, "could not say who waits for jobs"),
            }
            if last {
                return;
            }
        }
    }

    async fn tell(&self, pool: &Pool, renew: bool) -> StoreResult<()> {
        let (left, present) = {
            let mut seen = self.lock();
            let left = std::mem::take(&mut seen.left);
            let gone = left.into_iter().filter(|id| !seen.present.contains_key(id));
            let gone: Vec<_> = gone.collect();
            let present: Vec<_> = seen.present.keys().copied().collect();
            drop(seen);
            (gone, present)
        };
        metrics::gauge!("claimcheck_jobs_attended").set(present.len() as f64);
        // What is not told for a failure lapses by itself.
        if !left.is_empty() {
            attend::leave(pool, &left, self.grace).await?;
        }
        if renew && !present.is_empty() {
            attend::attend(pool, &present, self.lease).await?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        let mut seen = self.attendance.lock();
        if let Some(callers) = seen.present.get_mut(&self.id) {
            *callers -= 1;
            if *callers == 0 {
                seen.present.remove(&self.id);
                seen.left.push(self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_left_when_its_last_caller_is_gone() {
        let attendance = Attendance::new(Duration::from_secs(15), Duration::from_secs(20));
        let id = JobId::new();
        let (first, retry) = (attendance.enter(id), attendance.enter(id));
        drop(first);
        assert!(attendance.lock().left.is_empty(), "its retry is here");
        drop(retry);
        assert_eq!(attendance.lock().left, [id]);
        assert!(attendance.lock().present.is_empty());
    }
}
