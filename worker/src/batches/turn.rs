//! One turn of a batch: whatever is due now, and when to look again.

use std::time::Duration;

use claimcheck_common::domain::BatchStatus;
use claimcheck_common::store::batch_work::{self, Held, Progress};

use super::feed::{self, Feed};
use super::models::Models;
use super::{BatchError, Batches, finalize, validate};

/// While jobs run: they are counted, and others take their places, this often.
const SOON: Duration = Duration::from_millis(250);
/// While nothing can be done but wait.
const LATER: Duration = Duration::from_secs(1);

pub(super) struct Turn<'a> {
    pub(super) work: &'a Batches,
    pub(super) models: &'a Models,
    pub(super) held: Held,
}

impl<'a> Turn<'a> {
    pub(super) const fn new(work: &'a Batches, models: &'a Models, held: Held) -> Self {
        Self { work, models, held }
    }

    pub(super) async fn run(mut self) -> Result<(), BatchError> {
        let next = match self.held.view.status {
            BatchStatus::Validating => self.validate().await?,
            _ if self.held.view.finalizing_at.is_some() => finalize::write(self.work, &self.held).await?,
            _ => self.go_on().await?,
        };
        // Who lost the batch has nothing to let go.
        if let Progress::Done(pause) = next {
            batch_work::let_go(&self.work.pool, &self.held, pause).await?;
        }
        Ok(())
    }

    /// Also while it is paused: nothing is taken up by this, and only a batch whose lines are known can end with its window.
    async fn validate(&self) -> Result<Progress<Duration>, BatchError> {
        let Progress::Done(verdict) = validate::check(&self.work.pool, &self.work.files, &self.held).await? else {
            return Ok(Progress::Lost);
        };
        // Lost as well if it was cancelled on the way; the lease is still ours to let go.
        let _written = batch_work::validated(&self.work.pool, &self.held, verdict).await?;
        Ok(Progress::Done(Duration::ZERO))
    }

    async fn go_on(&mut self) -> Result<Progress<Duration>, BatchError> {
        let pool = &self.work.pool;
        let Progress::Done((completed, failed)) = batch_work::count(pool, &self.held).await? else {
            return Ok(Progress::Lost);
        };
        self.held.view.completed = completed;
        self.held.view.failed = failed;
        if self.held.view.ending.is_none() && self.held.is_late() {
            let _changed = batch_work::expire(pool, &self.held).await?;
            return Ok(Progress::Done(Duration::ZERO));
        }
        if matches!(
            self.held.view.ending,
            Some(BatchStatus::Cancelled | BatchStatus::Failed)
        ) {
            while batch_work::cancel_jobs(pool, &self.held).await? {}
        }
        let paused = self.held.view.paused_at.is_some();
        if paused || self.held.holding {
            batch_work::hold_waiting(pool, &self.held, paused).await?;
        }
        // Who was cancelled before the lines were known has none.
        let fed = self.held.view.in_progress_at.is_none() || self.held.is_fed();
        if fed && self.held.open() == 0 {
            let _changed = batch_work::begin_finalizing(pool, &self.held).await?;
            return Ok(Progress::Done(Duration::ZERO));
        }
        if fed || paused {
            return Ok(Progress::Done(if paused { LATER } else { SOON }));
        }
        Ok(match feed::feed(self).await? {
            Feed::More => Progress::Done(Duration::ZERO),
            Feed::Full => Progress::Done(SOON),
            Feed::Blocked => Progress::Done(LATER),
            Feed::Lost => Progress::Lost,
        })
    }
}
