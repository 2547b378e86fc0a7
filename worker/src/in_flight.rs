//! The jobs in this worker's hands: claimed and not yet settled, each with its share in acknowledging its message.
//!
//! Shared by `consumer.rs` (admits), `feeder.rs` (starts), `heartbeat.rs` (beats for all, hears which are lost or to be
//! stopped), `cancels.rs` (hears it sooner) and `results.rs` (ends, removes). Its size is bounded by the prefetch and by what a
//! message may hold. Must never do I/O.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use claimcheck_common::domain::{JobId, JobKey};
use claimcheck_common::queue::Acker;
use tokio::sync::Notify;

use crate::gauge_share::GaugeShare;

/// Where a job stands in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Claimed, not yet with the engine.
    Waiting,
    /// With the engine.
    Running,
    /// With the engine, which was told to drop it; another claim owns the job.
    Lost,
    /// The engine is done; the result waits for its commit.
    Ended,
}

/// Why a claim is to stop before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A caller asked.
    Cancelled,
    /// Its deadline has passed.
    Expired,
    /// The attempt took longer than one may.
    Overdue,
}

struct Entry<A> {
    acker: Option<A>,
    phase: Phase,
    stop: Option<StopReason>,
}

/// The table. `A` is what acknowledges a message.
pub struct InFlight<A = Acker> {
    jobs: Mutex<BTreeMap<JobKey, Entry<A>>>,
    changed: Notify,
    size: GaugeShare,
}

impl<A> Default for InFlight<A> {
    fn default() -> Self {
        Self {
            jobs: Mutex::new(BTreeMap::new()),
            changed: Notify::new(),
            size: GaugeShare::new("claimcheck_jobs_in_flight"),
        }
    }
}

impl<A> InFlight<A> {
    /// A job was claimed: from now on its lease is beaten for.
    pub fn admit(&self, key: JobKey, acker: A) {
        self.change(|jobs| {
            jobs.insert(
                key,
                Entry {
                    acker: Some(acker),
                    phase: Phase::Waiting,
                    stop: None,
                },
            )
        });
    }

    /// The engine is about to get the job. `false` if it was lost meanwhile and must not run.
    pub fn start(&self, key: JobKey) -> bool {
        self.change(|jobs| jobs.get_mut(&key).map(|job| job.phase = Phase::Running).is_some())
    }

    /// The claim is to stop; the first reason counts. `false` if it has ended here or was never here.
    pub fn stop(&self, key: JobKey, reason: StopReason) -> bool {
        let mut jobs = self.lock();
        let running = jobs
            .get_mut(&key)
            .filter(|job| matches!(job.phase, Phase::Waiting | Phase::Running));
        running.map(|job| job.stop.get_or_insert(reason)).is_some()
    }

    /// Why the claim is to stop, if it is.
    pub fn stop_reason(&self, key: JobKey) -> Option<StopReason> {
        self.lock().get(&key)?.stop
    }

    /// The claims of a job that are not lost: one, or none.
    pub fn claims(&self, id: JobId) -> Vec<JobKey> {
        let all = JobKey { id, fence: i64::MIN }..=JobKey { id, fence: i64::MAX };
        self.lock()
            .range(all)
            .filter(|(_, job)| job.phase != Phase::Lost)
            .map(|(key, _)| *key)
            .collect()
    }

    /// The engine is done with the job. `false` if its result is to be discarded.
    pub fn end(&self, key: JobKey) -> bool {
        self.change(|jobs| match jobs.get_mut(&key) {
            Some(job) if job.phase != Phase::Lost => {
                job.phase = Phase::Ended;
                true
            }
            _ => {
                jobs.remove(&key);
                false
            }
        })
    }

    /// Another claim owns the job. Answers what acknowledges its message, which nobody needs any more.
    pub fn lose(&self, key: JobKey) -> Option<A> {
        self.change(|jobs| {
            let job = jobs.get_mut(&key)?;
            if job.phase == Phase::Running || job.phase == Phase::Lost {
                // Stays until the engine has let go of it: it still takes part in steps.
                job.phase = Phase::Lost;
                job.acker.take()
            } else {
                jobs.remove(&key)?.acker
            }
        })
    }

    /// The job is settled, refused or handed back.
    pub fn remove(&self, key: JobKey) -> Option<A> {
        self.change(|jobs| jobs.remove(&key)?.acker)
    }

    /// The claims to beat for, in id order.
    pub fn held(&self) -> Vec<JobKey> {
        self.keys(|phase| phase != Phase::Lost)
    }

    /// The claims that are not done: what is handed back when the worker stops.
    pub fn unfinished(&self) -> Vec<JobKey> {
        self.keys(|phase| matches!(phase, Phase::Waiting | Phase::Running))
    }

    /// Completes when the engine has nothing of this table.
    pub async fn engine_idle(&self) {
        self.until(|phase| matches!(phase, Phase::Waiting | Phase::Ended)).await;
    }

    /// Completes at the next change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Completes when no claim is in this worker's hands.
    pub async fn empty(&self) {
        self.until(|_| false).await;
    }

    /// Waits until every job is in an acceptable phase.
    async fn until(&self, acceptable: impl Fn(Phase) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change falls in between.
            changed.as_mut().enable();
            if self.lock().values().all(|job| acceptable(job.phase)) {
                return;
            }
            changed.await;
        }
    }

    fn keys(&self, wanted: impl Fn(Phase) -> bool) -> Vec<JobKey> {
        self.lock()
            .iter()
            .filter(|(_, job)| wanted(job.phase))
            .map(|(key, _)| *key)
            .collect()
    }

    fn change<T>(&self, work: impl FnOnce(&mut BTreeMap<JobKey, Entry<A>>) -> T) -> T {
        let mut jobs = self.lock();
        let value = work(&mut jobs);
        self.size.set(jobs.len());
        drop(jobs);
        self.changed.notify_waiters();
        value
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobKey, Entry<A>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    fn key() -> JobKey {
        JobKey {
            id: JobId::new(),
            fence: 1,
        }
    }

    #[test]
    fn a_finished_job_is_beaten_for_until_it_is_settled() {
        let (table, key) = (InFlight::default(), key());
        table.admit(key, "ack");
        assert!(table.start(key));
        assert!(table.end(key));
        assert_eq!(table.held(), [key]);
        assert_eq!(table.unfinished(), []);
        assert_eq!(table.remove(key), Some("ack"));
        assert_eq!(table.held(), []);
    }

    #[test]
    fn the_result_of_a_lost_job_is_discarded_and_its_message_acked_once() {
        let (table, key) = (InFlight::default(), key());
        table.admit(key, "ack");
        assert!(table.start(key));
        assert_eq!(table.lose(key), Some("ack"));
        assert_eq!(table.lose(key), None);
        assert_eq!(table.held(), [], "its lease is not ours to extend");
        assert!(table.engine_idle().now_or_never().is_none(), "the engine still has it");
        assert!(!table.end(key));
        assert!(table.empty().now_or_never().is_some());
    }

    #[test]
    fn a_claim_that_is_to_stop_says_why_until_it_is_gone_and_the_first_reason_counts() {
        let (table, key) = (InFlight::default(), key());
        assert!(!table.stop(key, StopReason::Cancelled), "never here");
        table.admit(key, ());
        assert!(table.stop(key, StopReason::Expired));
        assert!(table.stop(key, StopReason::Cancelled));
        assert_eq!(table.stop_reason(key), Some(StopReason::Expired));
        table.start(key);
        table.end(key);
        assert!(
            !table.stop(key, StopReason::Cancelled),
            "its result waits for its commit"
        );
        table.remove(key);
        assert_eq!(table.stop_reason(key), None);
    }

    #[test]
    fn a_jobs_claims_are_found_by_its_id_and_lost_ones_left_out() {
        let (table, old) = (InFlight::default(), key());
        let new = JobKey { fence: 2, ..old };
        table.admit(old, ());
        table.start(old);
        table.lose(old);
        table.admit(new, ());
        table.admit(key(), ());
        assert_eq!(table.claims(old.id), [new]);
    }

    #[test]
    fn the_jobs_of_all_models_of_a_process_are_counted_together() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let counted = |count: usize| {
            let shown = recorder.handle().render();
            assert!(shown.contains(&format!("claimcheck_jobs_in_flight {count}")), "{shown}");
        };
        metrics::with_local_recorder(&recorder, || {
            let [first, second] = [(); 2].map(|()| InFlight::default());
            let ended = key();
            for key in [ended, key()] {
                first.admit(key, ());
            }
            second.admit(key(), ());
            counted(3);
            first.remove(ended);
            counted(2);
            drop(second);
            counted(1);
        });
    }

    #[test]
    fn a_job_that_is_lost_before_it_started_never_starts() {
        let (table, key) = (InFlight::default(), key());
        table.admit(key, ());
        table.lose(key);
        assert!(!table.start(key));
    }

    #[test]
    fn a_newer_claim_of_a_job_stands_beside_the_lost_one() {
        let (table, old) = (InFlight::default(), key());
        let new = JobKey { fence: 2, ..old };
        table.admit(old, "old");
        table.start(old);
        table.admit(new, "new");
        table.start(new);
        table.lose(old);
        assert!(!table.end(old));
        assert!(table.end(new));
        assert_eq!(table.remove(new), Some("new"));
    }

    #[tokio::test]
    async fn who_waits_for_an_idle_engine_is_woken_by_the_last_ending() {
        let (table, key) = (Arc::new(InFlight::default()), key());
        table.admit(key, ());
        table.start(key);
        let waiter = tokio::spawn({
            let table = table.clone();
            async move { table.engine_idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        table.end(key);
        waiter.await.unwrap();
    }
}
