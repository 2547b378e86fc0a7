//! Requests that wait for jobs, and what follows from an ended one being shown.
//!
//! Each registers before it reads, so that no change falls between; the process's one listening connection wakes it, and
//! that connection looks again by itself every few seconds. No waiter polls the table.

use claimcheck_common::domain::{JobId, ProjectId};
use claimcheck_common::store::StoreResult;
use claimcheck_common::store::erase;
use claimcheck_common::store::jobs::{self, JobView};
use claimcheck_common::store::notify::{JobWaiter, Of};
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

/// What `read` says once it is `enough`, or says at `deadline` or when the process is to stop. It is asked again after each of `news`.
pub async fn until<T, F>(
    state: &AppState,
    id: JobId,
    news: Of,
    deadline: Instant,
    read: impl Fn() -> F,
    enough: impl Fn(&T) -> bool,
) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    // Who does not wait needs no waking.
    let waiter = (Instant::now() < deadline).then(|| state.changes.subscribe(id, news));
    loop {
        let changed = waiter.as_ref().map(JobWaiter::changed);
        let said = read().await?;
        let over = enough(&said) || Instant::now() >= deadline || state.stopping.is_cancelled();
        let Some(changed) = changed.filter(|_| !over) else {
            return Ok(said);
        };
        let _counted = Waiting::begin();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = state.stopping.cancelled() => {}
        }
    }
}

/// The job when it has ended, which then counts as handed to its owner, or as it is at `deadline` or when the process is to stop.
pub async fn until_ended(
    state: &AppState,
    project: ProjectId,
    id: JobId,
    deadline: Instant,
) -> Result<JobView, ApiError> {
    let read = || async { read_job(state, project, id).await?.ok_or_else(job_not_found) };
    let job = until(state, id, Of::TheEnd, deadline, read, |job| job.status.is_terminal()).await?;
    delivered(state, &job).await?;
    Ok(job)
}

/// The job as it is now, on the connection that such reads keep: each job that is waited for is read twice.
pub async fn read_job(state: &AppState, project: ProjectId, id: JobId) -> StoreResult<Option<JobView>> {
    let mut connection = state.job_reads.acquire().await?;
    let job = jobs::get(&mut *connection, project, id).await?;
    connection.give_back();
    Ok(job)
}

/// The caller is shown this job: if it has ended and is not to be stored, its texts go some minutes from now.
pub async fn delivered(state: &AppState, job: &JobView) -> Result<(), ApiError> {
    if job.status.is_terminal() && !job.options.store && job.erased_at.is_none() {
        erase::delivered(&state.pool, job.key.id).await?;
    }
    Ok(())
}
