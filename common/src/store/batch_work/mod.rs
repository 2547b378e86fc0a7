//! The work behind a batch: taking it up under a lease, feeding its lines as jobs, counting what has ended, and its end.
//!
//! One worker at a time holds a batch, by a lease on the database's clock. Every statement here is guarded by the lease that
//! its caller took ([`Held`]): who lost it changes nothing and hears [`Progress::Lost`]. Lines become items and jobs in the
//! transaction that moves the mark, and `(batch_id, line)` is unique, so that no line is lost or doubled wherever its
//! worker is killed.
//!
//! A batch's way: `lease.rs` (taken up and let go, turn by turn) → `feed.rs` (lines become jobs) → `running.rs` (jobs are counted,
//! held and stopped), and from state to state by `states.rs`.

mod feed;
mod lease;
mod running;
mod states;

use std::time::Duration;

use uuid::Uuid;

use super::api_keys::Grant;
use super::batches::BatchView;
use crate::domain::{ApiKeyId, ProjectId, TenantId, UserId};

pub use self::feed::{Fed, FedLine, failed_lines, feed, no_more_lines};
pub use self::lease::{keep, let_go, take};
pub use self::running::{cancel_jobs, count, hold_waiting};
pub use self::states::{Verdict, Written, begin_finalizing, expire, fail, finish, validated};

/// A batch that this process works at.
#[derive(Debug, Clone)]
pub struct Held {
    /// The batch as it was when it was taken up.
    pub view: BatchView,
    /// The organization.
    pub tenant_id: TenantId,
    /// The project.
    pub project_id: ProjectId,
    /// Who asked for it.
    pub user_id: UserId,
    /// With which key.
    pub api_key_id: Option<ApiKeyId>,
    /// What that key is good for, also after it was revoked: the batch was accepted before.
    pub grant: Option<Grant>,
    /// The input's length.
    pub input_bytes: u64,
    /// How far the input was fed.
    pub mark: Mark,
    /// Its output files go by themselves after this time.
    pub output_ttl: Option<Duration>,
    /// Its waiting jobs were put off while it was paused.
    pub holding: bool,
    late: bool,
    lease: Uuid,
    lease_time: Duration,
}

/// How far a batch's input was fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Bytes: where the next line begins.
    pub bytes: u64,
    /// The number of the last line.
    pub line: u32,
    /// Lines that became items.
    pub items: u32,
}

impl Held {
    /// Items whose jobs have not ended, as far as they were counted.
    pub const fn open(&self) -> u32 {
        self.mark.items.saturating_sub(self.view.completed + self.view.failed)
    }

    /// Whether every line has become an item.
    pub const fn is_fed(&self) -> bool {
        self.mark.items >= self.view.total || self.mark.bytes >= self.input_bytes
    }

    /// How often long work should say that it goes on.
    pub fn keep_every(&self) -> Duration {
        self.lease_time / 4
    }

    /// Whether its window is over, by the database's clock.
    pub const fn is_late(&self) -> bool {
        self.late
    }
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<T = ()> {
    /// It is done.
    Done(T),
    /// The batch is another worker's by now, or a caller has changed its way: nothing was done.
    Lost,
}

const fn progress(rows: u64) -> Progress {
    if rows == 0 { Progress::Lost } else { Progress::Done(()) }
}
