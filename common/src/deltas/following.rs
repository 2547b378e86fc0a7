//! The API's end: the texts of the jobs that its callers follow, as far as they came.
//!
//! One subscription a process, whatever the number of callers. A caller reads the shared text at its own pace, so that a
//! slow one holds up nothing and queues nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Delta, WISH_TTL, anybody, channel, wishes};
use crate::backoff::Backoff;
use crate::domain::JobId;
use crate::redis::{Redis, RedisError, pipe};

/// Wishes are renewed this often, and what failed is tried again.
const RENEW: Duration = Duration::from_secs(8);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Wishes in one round trip.
const CHUNK: usize = 500;

/// What a choice of a running attempt has come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LiveChoice {
    /// Its text; nothing of it is taken back within the attempt.
    pub text: String,
}

/// What the newest attempt has come to, as far as it is known here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LiveText {
    /// The attempt; 0 while nothing is known.
    pub fence: i64,
    /// Its choices, by index.
    pub choices: Vec<LiveChoice>,
}

/// The jobs that are followed in this process. Cheap to clone.
#[derive(Clone)]
pub struct Following {
    shared: Arc<Shared>,
}

struct Shared {
    redis: Redis,
    /// Who this process is among the followers.
    name: String,
    jobs: Mutex<Jobs>,
    changed: Notify,
}

#[derive(Default)]
struct Jobs {
    followed: HashMap<JobId, Followed>,
    /// Not followed any more, and Redis was not told yet.
    gone: Vec<JobId>,
    /// The last number that was given to a wish.
    number: u64,
}

struct Followed {
    live: Arc<Live>,
    callers: usize,
    /// Changes when all of the text is wanted again.
    number: u64,
    asked_at: Instant,
    /// Redis has not heard of this number yet.
    unsaid: bool,
}

#[derive(Default)]
struct Live {
    text: Mutex<LiveText>,
    changed: Arc<Notify>,
}

/// One caller's wish to follow one job; dropping it ends it.
pub struct Follow {
    following: Following,
    id: JobId,
    live: Arc<Live>,
}

impl Following {
    /// Connects to nothing yet; nothing comes before [`Self::listen`] runs.
    pub fn new(redis: Redis) -> Self {
        Self {
            shared: Arc::new(Shared {
                redis,
                name: Uuid::now_v7().simple().to_string(),
                jobs: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }

    /// Follows a job, whether it runs, waits or has ended.
    pub fn follow(&self, id: JobId) -> Follow {
        let mut jobs = self.lock();
        jobs.number += 1;
        let number = jobs.number;
        let followed = jobs.followed.entry(id).or_insert_with(|| Followed {
            live: Arc::default(),
            callers: 0,
            number,
            asked_at: Instant::now(),
            unsaid: true,
        });
        followed.callers += 1;
        let live = followed.live.clone();
        drop(jobs);
        self.shared.changed.notify_one();
        Follow {
            following: self.clone(),
            id,
            live,
        }
    }

    /// Listens until `stop`, through every failure of Redis.
    pub async fn listen(self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let listening = async {
            loop {
                if let Err(error) = self.listen_once(&mut backoff).await {
                    tracing::debug!(%error, "lost the connection that running texts come by");
                }
                backoff.wait().await;
            }
        };
        let _stopped: Option<()> = stop.run_until_cancelled(listening).await;
    }

    async fn listen_once(&self, backoff: &mut Backoff) -> Result<(), RedisError> {
        let Shared {
            redis, name, changed, ..
        } = &*self.shared;
        let mut listener = redis.listener().await?;
        listener
            .subscribe(channel(redis, name))
            .await
            .map_err(|error| RedisError::Away(Some(error)))?;
        backoff.reset();
        let mut messages = listener.into_on_message();
        // What came while nobody listened is lost.
        self.want_all_again();
        let mut renew = tokio::time::interval(RENEW);
        let mut again = tokio::time::interval(TRY_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let all = tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        self.hear(message.get_payload_bytes());
                        continue;
                    }
                    None => return Ok(()),
                },
                () = changed.notified() => false,
                _ = again.tick() => false,
                _ = renew.tick() => true,
            };
            self.say(all).await?;
        }
    }

    /// Tells Redis of wishes that it has not heard of, or of all.
    async fn say(&self, all: bool) -> Result<(), RedisError> {
        let Shared { redis, name, .. } = &*self.shared;
        let (said, gone) = {
            let mut jobs = self.lock();
            let due = jobs.followed.iter_mut().filter(|(_, job)| all || job.unsaid);
            let said: Vec<_> = due.map(|(id, job)| (*id, job.number)).collect();
            (said, std::mem::take(&mut jobs.gone))
        };
        let ttl = WISH_TTL.as_secs().cast_signed();
        for chunk in said.chunks(CHUNK) {
            let mut words = pipe();
            words.cmd("SET").arg(anybody(redis)).arg(1).arg("EX").arg(ttl).ignore();
            for (id, number) in chunk {
                let key = wishes(redis, *id);
                words.hset(&key, name, number).ignore().expire(&key, ttl).ignore();
            }
            redis.run_all::<()>(&words).await?;
            let mut jobs = self.lock();
            for (id, number) in chunk {
                if let Some(job) = jobs.followed.get_mut(id).filter(|job| job.number == *number) {
                    job.unsaid = false;
                }
            }
        }
        for chunk in gone.chunks(CHUNK) {
            let mut words = pipe();
            for id in chunk {
                words.hdel(wishes(redis, *id), name).ignore();
            }
            redis.run_all::<()>(&words).await?;
        }
        Ok(())
    }

    fn want_all_again(&self) {
        let mut jobs = self.lock();
        let Jobs { followed, number, .. } = &mut *jobs;
        for job in followed.values_mut() {
            *number += 1;
            job.number = *number;
            job.unsaid = true;
        }
    }

    fn hear(&self, payload: &[u8]) {
        let Ok(deltas) = serde_json::from_slice::<Vec<Delta>>(payload) else {
            tracing::warn!("a worker said something that does not read");
            return;
        };
        for delta in deltas {
            let mut jobs = self.lock();
            let Jobs { followed, number, .. } = &mut *jobs;
            let Some(job) = followed.get_mut(&delta.key.id) else {
                continue;
            };
            let fits = job.live.text().take(&delta);
            if fits {
                job.live.changed.notify_waiters();
            } else if job.asked_at.elapsed() >= TRY_AGAIN {
                // A piece is missing.
                *number += 1;
                (job.number, job.asked_at, job.unsaid) = (*number, Instant::now(), true);
                self.shared.changed.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn text(&self) -> MutexGuard<'_, LiveText> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follow {
    /// A future that completes at the next piece after this call (not after its first poll).
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.live.changed.clone().notified_owned()
    }

    /// Looks at what is known so far.
    pub fn look<T>(&self, look: impl FnOnce(&LiveText) -> T) -> T {
        look(&self.live.text())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut jobs = self.following.lock();
        let Some(job) = jobs.followed.get_mut(&self.id) else {
            return;
        };
        job.callers -= 1;
        if job.callers == 0 {
            jobs.followed.remove(&self.id);
            jobs.gone.push(self.id);
            self.following.shared.changed.notify_one();
        }
    }
}

impl LiveText {
    /// Adds a piece. `false`: something before it is missing.
    fn take(&mut self, delta: &Delta) -> bool {
        if delta.key.fence < self.fence {
            // Of a worker that was given up.
            return true;
        }
        if delta.key.fence > self.fence {
            *self = Self {
                fence: delta.key.fence,
                choices: Vec::new(),
            };
        }
        let index = delta.choice as usize;
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, LiveChoice::default);
        }
        self.choices[index].take(delta)
    }
}

impl LiveChoice {
    fn take(&mut self, delta: &Delta) -> bool {
        if delta.offset > self.text.len() {
            return false;
        }
        // What is known already comes again when somebody asks for all of it.
        if let Some(new) = delta.text.get(self.text.len() - delta.offset..) {
            self.text.push_str(new);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::JobKey;

    fn delta(fence: i64, offset: usize, text: &str) -> Delta {
        Delta {
            key: JobKey {
                id: JobId::from_uuid(Uuid::nil()),
                fence,
            },
            choice: 0,
            offset,
            text: text.to_owned(),
        }
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_twice_or_lost_never_make_another_text(
            text in "[aé😀]{0,20}", picks in prop::collection::vec((0..21_usize, 0..21_usize), 0..40),
        ) {
            let places: Vec<usize> = text.char_indices().map(|(place, _)| place).chain([text.len()]).collect();
            let mut live = LiveText::default();
            for (a, b) in picks {
                let (a, b) = (places[a % places.len()], places[b % places.len()]);
                let (from, to) = (a.min(b), a.max(b));
                let known = live.choices.first().map_or(0, |choice| choice.text.len());
                let fits = live.take(&delta(1, from, &text[from..to]));
                prop_assert_eq!(fits, from <= known);
                let now = live.choices.first().map_or("", |choice| choice.text.as_str());
                let wanted = if fits { known.max(to) } else { known };
                prop_assert_eq!(now, &text[..wanted]);
            }
        }
    }

    #[test]
    fn a_new_attempt_begins_anew_and_an_old_one_is_not_heard() {
        let mut live = LiveText::default();
        assert!(live.take(&delta(2, 0, "old")));
        assert!(live.take(&delta(3, 0, "new")));
        assert!(live.take(&delta(2, 3, "er")));
        assert_eq!((live.fence, live.choices[0].text.as_str()), (3, "new"));
        assert!(!live.take(&delta(4, 3, "x")), "its beginning is missing");
    }
}
