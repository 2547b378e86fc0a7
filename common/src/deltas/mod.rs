//! The text of running jobs, from their workers to whoever follows them, by way of Redis.
//!
//! Nothing here is kept: Redis says who follows which job, and passes pieces of text on. A piece says where it begins, so
//! that a follower sees when one is missing and asks for all of it again; what never comes is completed from Postgres when
//! the job has ended. Must never hold up the engine, and must never be needed for a job to end.
//!
//! An API process is one follower, whatever the number of its callers: it writes itself into `follow:{job}` (`following.rs`),
//! and the job's worker, which looks there, publishes to `deltas:{follower}` (`publisher.rs`).

mod following;
mod publisher;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{JobId, JobKey};
use crate::redis::Redis;

pub use following::{Follow, Following, LiveChoice, LiveText};
pub use publisher::{DeltaPublisher, Followers};

/// A wish to follow is good for this long unless it is renewed.
const WISH_TTL: Duration = Duration::from_secs(30);

/// A piece of a running job's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// The job and the attempt.
    pub key: JobKey,
    /// Which of its choices.
    pub choice: u32,
    /// Bytes of the choice's text before this piece.
    pub offset: usize,
    /// The piece.
    pub text: String,
}

/// Who follows a job: a hash from follower to a number that changes when it wants all of the text again.
fn wishes(redis: &Redis, job: JobId) -> String {
    redis.key(format_args!("follow:{}", job.uuid().simple()))
}

/// Is there while anybody follows anything, so that workers need not ask about each of their jobs.
fn anybody(redis: &Redis) -> String {
    redis.key("follow:anybody")
}

/// Where a follower listens.
fn channel(redis: &Redis, follower: &str) -> String {
    redis.key(format_args!("deltas:{follower}"))
}
