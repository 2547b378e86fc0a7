//! What the engine tells of running texts: pieces, of followed jobs alone, and only while there is room for them.
//!
//! The engine never waits here. What finds no room is part of the next piece, since a piece is everything since the last
//! one that went. Next: `followers.rs`, which publishes them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use claimcheck_common::deltas::Delta;
use claimcheck_common::domain::JobKey;
use tokio::sync::mpsc;

use super::sequence::Sequence;

/// The followed jobs among those of this worker, each with a number: when it changes, all of the text is told again.
#[derive(Clone, Default)]
pub struct Followed {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Spares a lock a row while nobody follows anything.
    any: AtomicBool,
    jobs: Mutex<HashMap<JobKey, u64>>,
}

impl Followed {
    /// These jobs are followed from now on, and no others.
    pub fn replace(&self, jobs: HashMap<JobKey, u64>) {
        self.shared.any.store(!jobs.is_empty(), Ordering::Relaxed);
        *self.lock() = jobs;
    }

    fn number(&self, key: JobKey) -> Option<u64> {
        if !self.shared.any.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().get(&key).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobKey, u64>> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where pieces go.
pub struct Deltas {
    /// Whose.
    pub followed: Followed,
    /// Bounded; a full one is no reason to wait.
    pub pieces: mpsc::Sender<Delta>,
}

impl Deltas {
    /// Tells what is new of a choice, if anybody follows its job.
    pub(super) fn tell(&self, key: JobKey, choice: u32, sequence: &mut Sequence) {
        let Some(number) = self.followed.number(key) else {
            return;
        };
        if let Ok(room) = self.pieces.try_reserve()
            && let Some(piece) = sequence.untold(number)
        {
            room.send(Delta {
                key,
                choice,
                offset: piece.offset,
                text: piece.text,
            });
        }
    }
}
