//! Who follows this worker's jobs, and what they are told of the texts.
//!
//! Two loops beside the engine: one looks in Redis who follows what, the other publishes the engine's pieces in groups, as far as
//! the content policy lets them out (`curtain.rs`). Must never hold up the engine or a result; while Redis is away nobody follows
//! anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claimcheck_common::deltas::{Delta, DeltaPublisher, Followers as Names};
use claimcheck_common::domain::{JobId, JobKey};
use claimcheck_common::policy::Rules;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::curtain::Curtain;
use crate::engine::Followed;
use crate::gauge_share::GaugeShare;
use crate::in_flight::InFlight;

/// Looks are at least so far apart, however many jobs come and go,
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// and at most so far, so that who begins to follow a running job soon has its text.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// Most pieces that share one round trip.
const GROUP: usize = 512;

/// Tells followers of running texts.
pub struct Followers {
    /// The way to them.
    pub publisher: DeltaPublisher,
    /// Which jobs are this worker's.
    pub in_flight: Arc<InFlight>,
    /// What the engine goes by.
    pub followed: Followed,
    /// What they may be told.
    pub policy: Rules,
}

/// Who follows each job, with the number that the engine was given for it.
type Known = HashMap<JobKey, (Names, u64)>;

impl Followers {
    /// Looks and publishes until `stop`.
    pub async fn run(self, pieces: mpsc::Receiver<Delta>, stop: CancellationToken) {
        let known = Mutex::new(Known::new());
        let both = async { tokio::join!(self.look_always(&known), self.publish_always(&known, pieces)) };
        let _stopped = stop.run_until_cancelled(both).await;
    }

    async fn look_always(&self, known: &Mutex<Known>) {
        let mut number = 0;
        let followed = GaugeShare::new("claimcheck_jobs_followed");
        loop {
            let looked = Instant::now();
            let keys = self.in_flight.unfinished();
            let ids: Vec<JobId> = keys.iter().map(|key| key.id).collect();
            let mut followers = if ids.is_empty() {
                HashMap::new()
            } else {
                self.publisher.followers(&ids).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, "nobody can be told of running texts");
                    HashMap::new()
                })
            };
            let now = keys
                .into_iter()
                .filter_map(|key| Some((key, followers.remove(&key.id)?)));
            let numbers = note(&mut lock(known), now.collect(), &mut number);
            followed.set(numbers.len());
            self.followed.replace(numbers);
            sleep_until(looked + LOOK_PAUSE).await;
            tokio::select! {
                () = self.in_flight.changed() => {}
                () = sleep_until(looked + LOOK_PERIOD) => {}
            }
        }
    }

    async fn publish_always(&self, known: &Mutex<Known>, mut pieces: mpsc::Receiver<Delta>) {
        let mut group = Vec::with_capacity(GROUP);
        let mut curtain = Curtain::default();
        while pieces.recv_many(&mut group, GROUP).await > 0 {
            let names: HashMap<JobKey, Names> = {
                let known = lock(known);
                let of = |delta: &Delta| Some((delta.key, known.get(&delta.key)?.0.clone()));
                group.iter().filter_map(of).collect()
            };
            let policy = self.policy.current();
            curtain.keep(|key| lock(known).contains_key(&key));
            let followed = group.drain(..).filter(|delta| names.contains_key(&delta.key));
            let lifted: Vec<Delta> = followed.filter_map(|delta| curtain.lift(&policy, &delta)).collect();
            let mut news: BTreeMap<&str, Vec<&Delta>> = BTreeMap::new();
            for delta in &lifted {
                for name in names.get(&delta.key).into_iter().flat_map(BTreeMap::keys) {
                    news.entry(name).or_default().push(delta);
                }
            }
            metrics::counter!("claimcheck_deltas_published_total").increment(lifted.len() as u64);
            if !news.is_empty()
                && let Err(error) = self.publisher.publish(&news).await
            {
                tracing::debug!(%error, "followers were not told of running texts");
                // Whoever still follows is found anew, and told all of it.
                lock(known).clear();
            }
        }
    }
}

/// Notes who follows now. A job whose followers changed, or want all again, gets a new number.
fn note(known: &mut Known, now: HashMap<JobKey, Names>, number: &mut u64) -> HashMap<JobKey, u64> {
    known.retain(|key, _| now.contains_key(key));
    for (key, names) in now {
        if known.get(&key).is_none_or(|(before, _)| *before != names) {
            *number += 1;
            known.insert(key, (names, *number));
        }
    }
    known.iter().map(|(key, (_, number))| (*key, *number)).collect()
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_told_anew_when_its_followers_change_and_only_then() {
        let key = JobKey {
            id: JobId::new(),
            fence: 1,
        };
        let (mut known, mut number) = (Known::new(), 0);
        let mut told = |names: &[(&str, u64)]| {
            let names: Names = names.iter().map(|(name, wish)| ((*name).to_owned(), *wish)).collect();
            let now = if names.is_empty() {
                HashMap::new()
            } else {
                [(key, names)].into()
            };
            note(&mut known, now, &mut number).get(&key).copied()
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("a", 1)]), Some(1));
        assert_eq!(told(&[("a", 1)]), Some(1));
        assert_eq!(told(&[("a", 2)]), Some(2), "it wants all again");
        assert_eq!(told(&[("a", 2), ("b", 1)]), Some(3));
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("a", 2), ("b", 1)]), Some(4));
    }
}
