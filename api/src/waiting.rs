//! Requests that wait for jobs to end.
//!
//! Each registers before it reads, so that no change falls between; the process's one listening connection wakes it, and
//! that connection looks again by itself every few seconds. No waiter polls the table.

use claimcheck_common::domain::{JobId, ProjectId};
use claimcheck_common::store::jobs::{self, JobView};
use tokio::time::Instant;

use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::path::job_not_found;

/// Counts the requests that wait, also those whose client hangs up.
pub struct Waiting;

impl Waiting {
    /// One more.
    pub fn begin() -> Self {
        metrics::gauge!("claimcheck_http_waiting").increment(1);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!("claimcheck_http_waiting").decrement(1);
    }
}

/// The job when it has ended, or as it is at `deadline` or when the process is to stop.
pub async fn until_ended(
    state: &AppState,
    project: ProjectId,
    id: JobId,
    deadline: Instant,
) -> Result<JobView, ApiError> {
    let waiter = state.changes.subscribe(id);
    loop {
        let changed = waiter.changed();
        let job = jobs::get(&state.pool, project, id).await?.ok_or_else(job_not_found)?;
        if job.status.is_terminal() || Instant::now() >= deadline || state.stopping.is_cancelled() {
            return Ok(job);
        }
        let _counted = Waiting::begin();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = state.stopping.cancelled() => {}
        }
    }
}
