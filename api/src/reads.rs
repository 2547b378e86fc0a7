//! Reads that many requests make at once: one statement answers all who asked before it began.
//!
//! Nothing is kept: every answer is read after its question, so that a change is seen at once. While the database is
//! away all who asked hear of it; a read that fails otherwise is made again by each of its callers alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use claimcheck_common::store::api_keys::{self, Digest, Holder};
use claimcheck_common::store::models::{self, Alias};
use claimcheck_common::store::sessions::Present;
use claimcheck_common::store::{Pool, StoreError, StoreResult, sessions, within};
use tokio::sync::{mpsc, oneshot};

use crate::groups::{self, Limits};

/// One read is with the database while the next gathers its questions: a read costs far more than a row.
const LIMITS: Limits = Limits {
    waiting: 1024,
    group: 256,
    lanes: 1,
};

/// A read that takes longer waits for a server that is gone.
const READ_LIMIT: Duration = Duration::from_secs(5);

type Asked<K, V> = (K, oneshot::Sender<StoreResult<V>>);

/// Callers who are signed in.
#[derive(Clone)]
pub struct AccountReads {
    pool: Pool,
    door: mpsc::Sender<Asked<sessions::Asked, Option<Present>>>,
}

impl AccountReads {
    /// Must be called within a runtime.
    pub fn open(pool: Pool) -> Self {
        let reader = pool.clone();
        let door = groups::open(
            LIMITS,
            move |group: Vec<Asked<sessions::Asked, Option<Present>>>, _lane| {
                let pool = reader.clone();
                async move {
                    let asked: BTreeSet<_> = group.iter().map(|(asked, _)| *asked).collect();
                    let found = within(READ_LIMIT, sessions::present(&pool, asked.into_iter().collect())).await;
                    let found = found.map(HashMap::from_iter);
                    answer_all(
                        group,
                        found.as_ref(),
                        |found: &HashMap<sessions::Asked, Present>, asked| found.get(&asked).cloned(),
                    );
                }
            },
        );
        Self { pool, door }
    }

    /// Who asks, as they are now, if their session goes on.
    pub async fn find(&self, asked: sessions::Asked) -> StoreResult<Option<Present>> {
        match ask(&self.door, asked).await {
            Some(found) => found,
            None => Ok(sessions::present(&self.pool, vec![asked])
                .await?
                .pop()
                .map(|(_, present)| present)),
        }
    }
}

/// Whom API keys stand for.
#[derive(Clone)]
pub struct KeyReads {
    pool: Pool,
    door: mpsc::Sender<Asked<Digest, Option<Holder>>>,
}

impl KeyReads {
    /// Must be called within a runtime.
    pub fn open(pool: Pool) -> Self {
        let reader = pool.clone();
        let door = groups::open(LIMITS, move |group: Vec<Asked<Digest, Option<Holder>>>, _lane| {
            let pool = reader.clone();
            async move {
                let digests: BTreeSet<Digest> = group.iter().map(|(digest, _)| *digest).collect();
                let found = within(READ_LIMIT, api_keys::holders(&pool, digests.into_iter().collect())).await;
                let found = found.map(HashMap::from_iter);
                answer_all(group, found.as_ref(), |found: &HashMap<Digest, Holder>, digest| {
                    found.get(&digest).cloned()
                });
            }
        });
        Self { pool, door }
    }

    /// Whom the key stands for, if it holds now.
    pub async fn find(&self, digest: Digest) -> StoreResult<Option<Holder>> {
        match ask(&self.door, digest).await {
            Some(found) => found,
            None => Ok(api_keys::holders(&self.pool, vec![digest])
                .await?
                .pop()
                .map(|(_, holder)| holder)),
        }
    }
}

/// What can be asked for.
#[derive(Clone)]
pub struct ModelReads {
    pool: Pool,
    door: mpsc::Sender<Asked<(), Arc<[Alias]>>>,
}

impl ModelReads {
    /// Must be called within a runtime.
    pub fn open(pool: Pool) -> Self {
        let reader = pool.clone();
        let door = groups::open(LIMITS, move |group: Vec<Asked<(), Arc<[Alias]>>>, _lane| {
            let pool = reader.clone();
            async move {
                let found: StoreResult<Arc<[Alias]>> = within(READ_LIMIT, models::aliases(&pool)).await.map(Into::into);
                answer_all(group, found.as_ref(), |found, ()| found.clone());
            }
        });
        Self { pool, door }
    }

    /// All names with what they lead to now, by name.
    pub async fn all(&self) -> StoreResult<Arc<[Alias]>> {
        match ask(&self.door, ()).await {
            Some(found) => found,
            None => Ok(models::aliases(&self.pool).await?.into()),
        }
    }
}

/// Gives each its part of what was found. Nobody is answered after a failure that may have been one caller's own.
fn answer_all<K, V, R>(group: Vec<Asked<K, V>>, found: Result<&R, &StoreError>, part: impl Fn(&R, K) -> V) {
    for (key, answer) in group {
        let outcome = match found {
            Ok(found) => Ok(part(found, key)),
            Err(error) => match error.for_another() {
                Some(error) => Err(error),
                None => continue,
            },
        };
        let _left = answer.send(outcome);
    }
}

/// `None`: nobody answered.
async fn ask<K, V>(door: &mpsc::Sender<Asked<K, V>>, key: K) -> Option<StoreResult<V>> {
    let (answer, answered) = oneshot::channel();
    door.send((key, answer)).await.ok()?;
    answered.await.ok()
}
