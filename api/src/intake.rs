//! Group commit: submissions that come while others are being committed share the next transaction.
//!
//! Each is answered after its own commit. Who comes alone goes at once; under load a group holds whatever has come
//! meanwhile (`groups.rs`). A group that fails or takes too long is undone, and each of its submissions is then
//! committed alone, so that a bad one fails alone and a slow one waits alone.

use std::sync::Arc;

use claimcheck_common::domain::QueueName;
use claimcheck_common::store::idempotency::Render;
use claimcheck_common::store::submit::{self, Patience, Submission, Submitted};
use claimcheck_common::store::{Lane, Pool, StoreError, StoreResult};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::groups::{self, Limits};
use crate::outgoing::Outgoing;

const LIMITS: Limits = Limits {
    waiting: 1024,
    group: 128,
};
/// Submissions that are committed alone at the same time.
const ALONE: usize = 4;
/// Those of them that were too slow for the rest. Together they leave most of the pool to others.
const SLOW: usize = 2;

/// Where submissions are handed in. Its tasks end with its last clone.
#[derive(Clone)]
pub struct Intake {
    door: mpsc::Sender<Waiting>,
}

struct Waiting {
    submission: Submission,
    answer: oneshot::Sender<StoreResult<Submitted>>,
}

/// What all groups share.
struct Committer {
    /// Of the groups; who goes alone must not hold it.
    lane: Lane,
    pool: Pool,
    render: Render,
    outgoing: Outgoing,
    alone: Semaphore,
    slow: Semaphore,
}

impl Intake {
    /// Opens the door; `outgoing` hears of what is committed. Must be called within a runtime.
    pub fn open(pool: &Pool, render: Render, outgoing: Outgoing) -> Self {
        let committer = Arc::new(Committer {
            lane: Lane::new(pool),
            pool: pool.clone(),
            render,
            outgoing,
            alone: Semaphore::new(ALONE),
            slow: Semaphore::new(SLOW),
        });
        let door = groups::open(LIMITS, move |group| committer.clone().commit(group));
        Self { door }
    }

    /// Answers when the submission is committed or refused. A caller that leaves changes nothing for the others; its own
    /// submission may or may not be carried out.
    pub async fn submit(&self, submission: Submission) -> StoreResult<Submitted> {
        let (answer, outcome) = oneshot::channel();
        let sent = self.door.send(Waiting { submission, answer }).await;
        sent.map_err(|_| StoreError::interrupted("the intake is closed"))?;
        outcome
            .await
            .unwrap_or_else(|_| Err(StoreError::interrupted("a group of submissions was dropped")))
    }
}

impl Committer {
    async fn commit(self: Arc<Self>, mut group: Vec<Waiting>) {
        // Whoever has left by now would never see the answer.
        group.retain(|waiting| !waiting.answer.is_closed());
        metrics::histogram!("claimcheck_submit_group_jobs").record(group.len() as f64);
        if group.is_empty() {
            return;
        }
        let submissions: Arc<[Submission]> = group.iter().map(|waiting| waiting.submission.clone()).collect();
        match self.submit(&self.lane, submissions, Patience::Short).await {
            Ok(outcomes) => {
                for (waiting, outcome) in group.into_iter().zip(outcomes) {
                    let _left = waiting.answer.send(Ok(outcome));
                }
            }
            Err(error) => {
                metrics::counter!("claimcheck_submit_groups_undone_total").increment(1);
                tracing::debug!(%error, jobs = group.len(), "a group was undone; its jobs are committed one by one");
                for waiting in group {
                    tokio::spawn(self.clone().commit_alone(waiting));
                }
            }
        }
    }

    async fn commit_alone(self: Arc<Self>, waiting: Waiting) {
        let outcome = match self.try_alone(&waiting.submission, Patience::Short, &self.alone).await {
            Err(error) if error.is_out_of_time() => {
                self.try_alone(&waiting.submission, Patience::Full, &self.slow).await
            }
            outcome => outcome,
        };
        let _left = waiting.answer.send(outcome);
    }

    async fn try_alone(&self, submission: &Submission, patience: Patience, room: &Semaphore) -> StoreResult<Submitted> {
        let _place = room.acquire().await;
        let alone = [submission.clone()].into();
        let mut outcomes = self.submit(&Lane::from(&self.pool), alone, patience).await?;
        outcomes
            .pop()
            .ok_or_else(|| StoreError::interrupted("a submit without an outcome"))
    }

    /// Commits, and tells the relay before anybody is answered: the message is what a job waits for next.
    async fn submit(
        &self,
        lane: &Lane,
        submissions: Arc<[Submission]>,
        patience: Patience,
    ) -> StoreResult<Vec<Submitted>> {
        let outcomes = submit::submit_group(lane, submissions, patience, self.render).await?;
        for outcome in &outcomes {
            if let Submitted::Accepted(job, _) = outcome {
                self.outgoing.to(QueueName {
                    model: job.model.name.clone(),
                    class: job.class,
                });
            }
        }
        Ok(outcomes)
    }
}
