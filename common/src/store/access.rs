//! Changes of what somebody may do, and who is to hear of them.
//!
//! A process may keep what it read of a credential only as long as it hears of changes. What takes access away answers a
//! [`Changed`], whose outcome is had together with whose access it was: whoever answers the caller first tells the other
//! processes. Besides, triggers tell of every change with its commit (`migrations/20261126000400_access.sql`), whoever makes it:
//! [`listen`].

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Pool, notify};

const CHANNEL: &str = "claimcheck_access";

/// What came of a change of access.
#[derive(Debug)]
#[must_use = "the other processes are to be told whose access changed"]
pub struct Changed<T> {
    outcome: T,
    whose: Option<Uuid>,
}

impl<T> Changed<T> {
    /// The access of an account, or of all who act in a project, if anybody's.
    pub(super) fn of(outcome: T, whose: Option<Uuid>) -> Self {
        Self { outcome, whose }
    }

    /// What came of it, and the account or the project whose access changed, if any did. Whoever takes this apart tells.
    pub fn into_parts(self) -> (T, Option<Uuid>) {
        (self.outcome, self.whose)
    }
}

/// Calls `heard` with the id of each account, session, key or project that changed, until `stop` and through every failure of the
/// database; with `None` after the connection was made anew, since what changed in between is unknown.
pub async fn listen(pool: Pool, heard: impl Fn(Option<Uuid>) + Send + Sync, stop: CancellationToken) {
    // An id that does not read is of everybody.
    let heard = |payload: Option<&str>| heard(payload.and_then(|id| id.parse().ok()));
    notify::listen(&pool, CHANNEL, heard, stop).await;
}
