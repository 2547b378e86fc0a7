//! The job's states and the only legal ways between them.
//!
//! ```text
//!  scheduled ──► queued ──► in_progress ──► completed
//!      │           │ ▲        │  │  │
//!      │           │ └────────┘  │  └─────► failed
//!      │           │   (retry)   ▼
//!      │           │         cancelling ──► cancelled
//!      ├───────────┴──────────────────────► cancelled
//!      └───────────┴──────────────────────► expired     (also from in_progress)
//! ```
//!
//! Terminal states never change. The SQL in `store/` guards every change by the states that [`JobStatus::sources`]
//! names; the migration's check constraint lists the same words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker.
    Queued,
    /// Claimed by a worker that holds a lease.
    InProgress,
    /// A caller asked to stop it and its worker has not confirmed yet.
    Cancelling,
    /// Ended with an output.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended because a caller asked; what was generated is kept.
    Cancelled,
    /// Ended because its time was up.
    Expired,
}

/// A change that the diagram does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job cannot go from {from} to {to}")]
pub struct IllegalTransition {
    /// The state the job is in.
    pub from: JobStatus,
    /// The state that was wanted.
    pub to: JobStatus,
}

impl JobStatus {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::InProgress,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The states from which this one can be reached: the one place where legal transitions are written down.
    pub const fn sources(self) -> &'static [Self] {
        match self {
            Self::Scheduled => &[],
            Self::Queued => &[Self::Scheduled, Self::InProgress],
            Self::InProgress => &[Self::Queued],
            Self::Cancelling | Self::Completed | Self::Failed => &[Self::InProgress],
            Self::Cancelled => &[Self::Scheduled, Self::Queued, Self::Cancelling],
            Self::Expired => &[Self::Scheduled, Self::Queued, Self::InProgress],
        }
    }

    /// The next state, if the diagram has that arrow.
    pub fn transition(self, to: Self) -> Result<Self, IllegalTransition> {
        if to.sources().contains(&self) {
            Ok(to)
        } else {
            Err(IllegalTransition { from: self, to })
        }
    }

    /// Whether the job has ended for good.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "`{text}` is no job status; use one of {}",
                    Self::ALL.map(Self::as_str).join(", ")
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_status() -> impl Strategy<Value = JobStatus> {
        prop::sample::select(JobStatus::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_random_walk_follows_the_diagram_and_never_leaves_a_terminal_state(
            start in prop::sample::select(vec![JobStatus::Scheduled, JobStatus::Queued]),
            wishes in prop::collection::vec(any_status(), 0..64),
        ) {
            let mut status = start;
            let mut endings = 0;
            for wish in wishes {
                match status.transition(wish) {
                    Ok(next) => {
                        prop_assert!(!status.is_terminal(), "{status} was left for {next}");
                        prop_assert_ne!(next, status);
                        endings += usize::from(next.is_terminal());
                        status = next;
                    }
                    Err(refused) => prop_assert_eq!(refused, IllegalTransition { from: status, to: wish }),
                }
            }
            prop_assert!(endings <= 1);
        }
    }

    #[test]
    fn once_cancelling_a_job_can_only_end_as_cancelled() {
        let reachable: Vec<_> = JobStatus::ALL
            .into_iter()
            .filter(|to| JobStatus::Cancelling.transition(*to).is_ok())
            .collect();
        assert_eq!(reachable, [JobStatus::Cancelled]);
    }

    #[test]
    fn every_state_is_reachable_and_every_live_state_can_end() {
        for status in JobStatus::ALL {
            assert!(
                status == JobStatus::Scheduled || !status.sources().is_empty(),
                "{status} is unreachable"
            );
            let leaves = JobStatus::ALL.into_iter().any(|to| to.sources().contains(&status));
            assert_eq!(leaves, !status.is_terminal(), "{status}");
        }
    }

    #[test]
    fn the_text_form_reads_back() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }
}
