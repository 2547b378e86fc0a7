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
use claimcheck_common::store::{Held, Lane, Pool, StoreError, StoreResult, sessions, within};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::groups::{self, Limits};

/// One read is with the database while the next gathers its questions: a read costs far more than a row.
const LIMITS: Limits = Limits {
    waiting: 1024,
    group: 256,
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
        let door = open(
            &pool,
            |connection, asked| {
                Box::pin(async move { Ok(HashMap::from_iter(sessions::present(&mut **connection, asked).await?)) })
            },
            |found: &HashMap<sessions::Asked, Present>, asked| found.get(&asked).cloned(),
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
        let door = open(
            &pool,
            |connection, digests| {
                Box::pin(async move { Ok(HashMap::from_iter(api_keys::holders(&mut **connection, digests).await?)) })
            },
            |found: &HashMap<Digest, Holder>, digest| found.get(&digest).cloned(),
        );
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
        let door = open(
            &pool,
            |connection, _| Box::pin(async move { Ok(Arc::from(models::aliases(&mut **connection).await?)) }),
            |found: &Arc<[Alias]>, ()| found.clone(),
        );
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

/// Opens a door where `read` is told each key that a group asks for, once, and each asker gets its `part` of what was found.
fn open<K, V, R>(
    pool: &Pool,
    read: for<'c> fn(&'c mut Held, Vec<K>) -> BoxFuture<'c, StoreResult<R>>,
    part: fn(&R, K) -> V,
) -> mpsc::Sender<Asked<K, V>>
where
    K: Copy + Ord + Send + 'static,
    V: Send + 'static,
    R: Send + Sync + 'static,
{
    let lane = Lane::new(pool);
    groups::open(LIMITS, move |group: Vec<Asked<K, V>>| {
        let keys: BTreeSet<K> = group.iter().map(|(key, _)| *key).collect();
        let lane = lane.clone();
        async move {
            let reading = async {
                let mut connection = lane.acquire().await?;
                let found = read(&mut connection, keys.into_iter().collect()).await?;
                connection.give_back();
                Ok(found)
            };
            let found = within(READ_LIMIT, reading).await;
            answer_all(group, found.as_ref(), part);
        }
    })
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
