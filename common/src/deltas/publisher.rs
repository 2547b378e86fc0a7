//! The worker's end: who follows its jobs, and what they are told.

use std::collections::{BTreeMap, HashMap};

use super::{Delta, anybody, channel, wishes};
use crate::domain::JobId;
use crate::redis::{Redis, RedisError, cmd, pipe};

/// The followers of a job, each with a number that changes when it wants all of the text again.
pub type Followers = BTreeMap<String, u64>;

/// Tells followers.
#[derive(Clone)]
pub struct DeltaPublisher {
    redis: Redis,
}

impl DeltaPublisher {
    /// Connects to nothing yet.
    pub const fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// Those of `jobs` that anybody follows.
    pub async fn followers(&self, jobs: &[JobId]) -> Result<HashMap<JobId, Followers>, RedisError> {
        let some: bool = self.redis.run(cmd("EXISTS").arg(anybody(&self.redis))).await?;
        if !some || jobs.is_empty() {
            return Ok(HashMap::new());
        }
        let mut ask = pipe();
        for job in jobs {
            ask.hgetall(wishes(&self.redis, *job));
        }
        let answers: Vec<Followers> = self.redis.run_all(&ask).await?;
        let followed = jobs.iter().copied().zip(answers);
        Ok(followed.filter(|(_, followers)| !followers.is_empty()).collect())
    }

    /// Publishes to each follower what concerns it, in one round trip.
    pub async fn publish(&self, news: &BTreeMap<&str, Vec<&Delta>>) -> Result<(), RedisError> {
        let mut publish = pipe();
        for (follower, deltas) in news {
            // Every field has a JSON form.
            let payload = serde_json::to_string(deltas).unwrap_or_default();
            publish.publish(channel(&self.redis, follower), payload).ignore();
        }
        self.redis.run_all(&publish).await
    }
}
