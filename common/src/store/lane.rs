//! Connections that stay with one errand.
//!
//! A pool hands its connections out in turn and asks each, whenever it comes back, whether it lives. What every job passes through
//! (submit, relay, claim, settle) keeps a connection of its own instead: its statements are planned once and not once for each
//! connection, and its server process finds what it needs in its caches.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::pool::{TRUSTED, alive};
use super::{Pool, StoreResult};

/// Where an errand gets its connections from. Cheap to clone; clones share the connection that is kept.
///
/// Made of a pool by `From`, it keeps none and leaves all to the pool.
#[derive(Clone)]
pub struct Lane {
    pool: Pool,
    place: Option<Arc<Mutex<Option<Kept>>>>,
}

struct Kept {
    connection: PgConnection,
    since: Instant,
}

/// A connection on loan. Dropped without [`Held::give_back`] it is looked at by its pool, or closed if it is a lane's own.
pub struct Held(Whose);

enum Whose {
    Pools(PoolConnection<Postgres>),
    /// Nobody else has the place meanwhile.
    Lanes(PgConnection, OwnedMutexGuard<Option<Kept>>),
}

impl Lane {
    /// Keeps one connection beside those of the pool, from its first use on.
    pub fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            place: Some(Arc::default()),
        }
    }

    /// The pool behind it, for what is no part of the errand.
    pub(super) const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The lane's own connection, or one of the pool's while another has that.
    pub async fn acquire(&self) -> StoreResult<Held> {
        let place = self.place.clone().and_then(|place| place.try_lock_owned().ok());
        let Some(mut place) = place else {
            return Ok(Held(Whose::Pools(self.pool.acquire().await?)));
        };
        if let Some(Kept { mut connection, since }) = place.take()
            && (since.elapsed() <= TRUSTED || alive(&mut connection).await.is_ok())
        {
            return Ok(Held(Whose::Lanes(connection, place)));
        }
        // The pool may open another in its stead.
        let connection = self.pool.acquire().await?.detach();
        Ok(Held(Whose::Lanes(connection, place)))
    }
}

impl From<&Pool> for Lane {
    fn from(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            place: None,
        }
    }
}

impl From<&Self> for Lane {
    fn from(lane: &Self) -> Self {
        lane.clone()
    }
}

impl Held {
    /// Gives a connection back on which nothing is going on.
    pub fn give_back(self) {
        if let Whose::Lanes(connection, mut place) = self.0 {
            let since = Instant::now();
            *place = Some(Kept { connection, since });
        }
    }

    /// Closes a connection that may never answer again.
    pub(super) fn close(self) {
        if let Whose::Pools(mut connection) = self.0 {
            connection.close_on_drop();
        }
    }
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.0 {
            Whose::Pools(connection) => connection,
            Whose::Lanes(connection, _) => connection,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.0 {
            Whose::Pools(connection) => connection,
            Whose::Lanes(connection, _) => connection,
        }
    }
}
