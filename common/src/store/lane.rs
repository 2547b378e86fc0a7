//! Connections that stay with one errand.
//!
//! A pool hands its connections out in turn and asks each, whenever it comes back, whether it lives. What every job passes through
//! (shared reads, submit, relay, claim, settle, and the reads of who waits for it) keeps a connection of its own instead: its statements
//! are planned once and not once for each connection, and its server process finds what it needs in its caches.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::pool::{TRUSTED, alive};
use super::{Pool, StoreResult};

/// A connection is replaced when it is so old, as a pool does: what its server process keeps grows.
const LIFE: Duration = Duration::from_mins(30);

/// Where an errand gets its connections from. Cheap to clone; clones share the connection that is kept.
///
/// Made of a pool by `From`, it keeps none and leaves all to the pool.
#[derive(Clone)]
pub struct Lane {
    pool: Pool,
    place: Option<Arc<Mutex<Option<Own>>>>,
}

/// A lane's own connection.
struct Own {
    connection: PgConnection,
    /// What was set for it last.
    set: &'static str,
    opened: Instant,
    used: Instant,
}

/// A connection on loan. Dropped without [`Held::give_back`] it is looked at by its pool, or closed if it is a lane's own.
pub struct Held(Whose);

enum Whose {
    Pools(PoolConnection<Postgres>),
    /// Nobody else has the place meanwhile.
    Lanes(Own, OwnedMutexGuard<Option<Own>>),
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
            return Ok(Held(Whose::Pools(self.pooled().await?)));
        };
        if let Some(mut own) = place.take().filter(|own| own.opened.elapsed() < LIFE)
            && (own.used.elapsed() <= TRUSTED || alive(&mut own.connection).await.is_ok())
        {
            return Ok(Held(Whose::Lanes(own, place)));
        }
        // The pool may open another in its stead.
        let connection = self.pooled().await?.detach();
        let now = Instant::now();
        let own = Own {
            connection,
            set: "",
            opened: now,
            used: now,
        };
        Ok(Held(Whose::Lanes(own, place)))
    }

    /// In a box: it is large and seldom needed, and would make every future large that acquires.
    async fn pooled(&self) -> StoreResult<PoolConnection<Postgres>> {
        Ok(Box::pin(self.pool.acquire()).await?)
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
    /// Sets what is to hold for the lane's own connection from now on; answers whether this is that.
    pub(super) async fn set(&mut self, settings: &'static str) -> StoreResult<bool> {
        let Whose::Lanes(own, _) = &mut self.0 else {
            return Ok(false);
        };
        if own.set != settings {
            sqlx::raw_sql(settings).execute(&mut own.connection).await?;
            own.set = settings;
        }
        Ok(true)
    }

    /// Gives a connection back on which nothing is going on.
    pub fn give_back(self) {
        if let Whose::Lanes(mut own, mut place) = self.0 {
            own.used = Instant::now();
            *place = Some(own);
        }
    }

    /// Closes a connection that may never answer again.
    pub(super) fn close(self) {
        match self.0 {
            Whose::Pools(mut connection) => connection.close_on_drop(),
            Whose::Lanes(..) => {}
        }
    }
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.0 {
            Whose::Pools(connection) => connection,
            Whose::Lanes(own, _) => &own.connection,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.0 {
            Whose::Pools(connection) => connection,
            Whose::Lanes(own, _) => &mut own.connection,
        }
    }
}
