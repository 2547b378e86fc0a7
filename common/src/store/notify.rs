//! Waking who waits for a job: one listening connection a process, whatever the number of waiters.
//!
//! A notification is a hint and may be lost. So the hub looks at all awaited jobs with one query after every reconnect
//! and every few seconds: a lost notification costs time, not an answer. Subscribe first, then read the job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{Executor, PgConnection, Row};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Pool, StoreResult, within};
use crate::backoff::Backoff;
use crate::domain::JobId;

const CHANNEL: &str = "claimcheck_jobs";
/// Ids in one payload: at most 37 bytes each, under Postgres' limit of 8,000.
const IDS_PER_PAYLOAD: usize = 200;
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// After so long without a notification, a connection is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(10);

/// The last word of a payload whose jobs have begun: none of them has ended. Releases that do not know it read it as no id.
const BEGUN: &str = ",begun";

/// Tells every process of the rows `$changed` of a statement on jobs, at the commit of its transaction, as a CTE. It must be joined, or
/// it is not run; it is always one row. `begun`: they have begun, and none of them has ended.
macro_rules! changed {
    ($changed:literal) => {
        crate::store::notify::changed!(@ $changed, "")
    };
    ($changed:literal, begun) => {
        crate::store::notify::changed!(@ $changed, ",begun")
    };
    (@ $changed:literal, $last:literal) => {
        concat!(
            "told AS MATERIALIZED (
                 SELECT count(pg_notify('claimcheck_jobs', ids)) AS payloads FROM (
                     SELECT string_agg(id::text, ',') || '",
            $last,
            "' AS ids FROM (
                         SELECT id, (row_number() OVER () - 1) / 200 AS payload FROM ",
            $changed,
            "
                     ) numbered GROUP BY payload
                 ) payloads
             )"
        )
    };
}
pub(super) use changed;

/// Tells whoever listens to `channel` of these jobs, at the commit of the caller's transaction.
pub(super) async fn tell(connection: &mut PgConnection, channel: &str, ids: &[JobId]) -> StoreResult<()> {
    for chunk in ids.chunks(IDS_PER_PAYLOAD) {
        let payload: Vec<_> = chunk.iter().map(|id| id.uuid().simple().to_string()).collect();
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(channel)
            .bind(payload.join(","))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Calls `heard` with each payload on `channel`, until `stop` and through every failure of the database; with `None` after the
/// connection was made anew, since what came in between is unknown.
pub async fn listen(pool: &Pool, channel: &str, heard: impl Fn(Option<&str>) + Send + Sync, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let listening = Box::pin(async {
        loop {
            if let Err(error) = listen_to(pool, channel, &heard, &mut backoff).await {
                tracing::warn!(%error, channel, "lost a connection that listens");
            }
            backoff.wait().await;
        }
    });
    let _stopped: Option<()> = stop.run_until_cancelled(listening).await;
}

async fn listen_to(
    pool: &Pool,
    channel: &str,
    heard: &(impl Fn(Option<&str>) + Send + Sync),
    backoff: &mut Backoff,
) -> StoreResult<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    heard(None);
    loop {
        match tokio::time::timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => heard(Some(notification.payload())),
            Ok(Ok(None)) => heard(None),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => still_there(&mut listener).await?,
        }
        backoff.reset();
    }
}

/// A connection that only listens would never notice that nobody is at its other end.
pub(super) async fn still_there(listener: &mut PgListener) -> StoreResult<()> {
    within(ANSWER_LIMIT, async {
        listener.execute("SELECT 1").await?;
        Ok(())
    })
    .await
}

/// The ids that [`tell`] wrote.
pub(super) fn told(payload: &str) -> impl Iterator<Item = JobId> {
    payload
        .split(',')
        .filter_map(|id| Uuid::try_parse(id).ok())
        .map(JobId::from_uuid)
}

/// The waiters of one process.
#[derive(Clone, Default)]
pub struct JobChanges {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiters: Mutex<HashMap<Uuid, Waiting>>,
    any: Notify,
}

struct Waiting {
    changed: Arc<Notify>,
    /// Not told of beginnings.
    ended: Arc<Notify>,
    waiters: usize,
    /// Status and fence as the last look saw them.
    seen: Option<(String, i64)>,
}

impl Waiting {
    fn wake(&self, has_ended: bool) {
        self.changed.notify_waiters();
        if has_ended {
            self.ended.notify_waiters();
        }
    }
}

/// What a caller wants to hear of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Every change.
    Changes,
    /// Its end. It may be woken by other changes too, but not by the job's claim and its first step, which every job has.
    TheEnd,
}

/// One caller's wish to hear of one job; dropping it ends it.
pub struct JobWaiter {
    changes: JobChanges,
    id: Uuid,
    wake: Arc<Notify>,
}

impl JobChanges {
    /// Registers before the first read, so that no change falls between reading and waiting.
    pub fn subscribe(&self, id: JobId, of: Of) -> JobWaiter {
        let mut waiters = self.lock();
        let waiting = waiters.entry(id.uuid()).or_insert_with(|| Waiting {
            changed: Arc::default(),
            ended: Arc::default(),
            waiters: 0,
            seen: None,
        });
        waiting.waiters += 1;
        JobWaiter {
            changes: self.clone(),
            id: id.uuid(),
            wake: match of {
                Of::Changes => waiting.changed.clone(),
                Of::TheEnd => waiting.ended.clone(),
            },
        }
    }

    /// Completes when any job changed anywhere: room in a queue's window, perhaps.
    pub async fn any(&self) {
        self.shared.any.notified().await;
    }

    /// Wakes whoever listens for [`Self::any`] in this process.
    pub fn poke(&self) {
        self.shared.any.notify_one();
    }

    /// Listens until `stop`, through every failure of the database.
    pub async fn listen(&self, pool: Pool, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.listen_once(&pool, &mut backoff) => outcome,
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "lost the notification connection");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = backoff.wait() => {}
            }
        }
    }

    async fn listen_once(&self, pool: &Pool, backoff: &mut Backoff) -> StoreResult<()> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        loop {
            still_there(&mut listener).await?;
            within(ANSWER_LIMIT, self.look(pool)).await?;
            backoff.reset();
            let look_again = tokio::time::sleep(LOOK_AGAIN);
            tokio::pin!(look_again);
            loop {
                tokio::select! {
                    () = &mut look_again => break,
                    notification = listener.try_recv() => match notification? {
                        Some(notification) => self.wake(notification.payload()),
                        // The connection was lost and made anew: what came in between is unknown.
                        None => break,
                    },
                }
            }
        }
    }

    fn wake(&self, payload: &str) {
        let waiters = self.lock();
        let has_ended = !payload.ends_with(BEGUN);
        for id in told(payload) {
            if let Some(waiting) = waiters.get(&id.uuid()) {
                waiting.wake(has_ended);
            }
        }
        drop(waiters);
        self.poke();
    }

    /// One query for all awaited jobs; wakes those that changed since the last one.
    async fn look(&self, pool: &Pool) -> StoreResult<()> {
        let ids: Vec<Uuid> = self.lock().keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query("SELECT id, status, fence FROM jobs WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(pool)
            .await?;
        let mut waiters = self.lock();
        for row in rows {
            let (id, now): (Uuid, _) = (row.try_get("id")?, (row.try_get("status")?, row.try_get("fence")?));
            if let Some(waiting) = waiters.get_mut(&id)
                && waiting.seen.as_ref() != Some(&now)
            {
                waiting.seen = Some(now);
                waiting.wake(true);
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Waiting>> {
        self.shared.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobWaiter {
    /// A future that completes at the next change after this call (not after its first poll).
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.wake.clone().notified_owned()
    }
}

impl Drop for JobWaiter {
    fn drop(&mut self) {
        let mut waiters = self.changes.lock();
        if let Some(waiting) = waiters.get_mut(&self.id) {
            waiting.waiters -= 1;
            if waiting.waiters == 0 {
                waiters.remove(&self.id);
            }
        }
    }
}
