//! Connections and transactions.

use std::str::FromStr;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

use super::lane::{Held, Lane};
use super::{StoreError, StoreResult, events};
use crate::config::DatabaseConfig;

/// The pool that every store function takes.
pub type Pool = PgPool;

/// A connection that rested for longer is asked whether it lives before it is used.
pub(super) const TRUSTED: Duration = Duration::from_secs(1);
/// A connection that does not answer at once within this is closed.
const PING_LIMIT: Duration = Duration::from_secs(1);
/// A transaction that takes longer waits for a server that is gone: longer than any statement may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// A transaction that rests for longer between two statements is ended by the database: it was forgotten, or its process is frozen.
/// Longer than the relay takes to publish.
const REST_LIMIT: Duration = Duration::from_secs(10);

/// How often a transaction is repeated after a deadlock before the caller hears of it.
const REPEATS: usize = 5;

fn options(url: &str, rest: Duration) -> StoreResult<PgConnectOptions> {
    Ok(PgConnectOptions::from_str(url)?
        .application_name("claimcheck")
        .options([
            // A statement that hangs must not hold its locks for ever.
            ("statement_timeout", "30s"),
            // Every statement here touches few rows: starting parallel workers for one costs more than it saves.
            ("max_parallel_workers_per_gather", "0"),
            // Plans are kept, since making one costs more than most statements do. One that was made while the tables were
            // small must still do when they are large, hence by index always; where there is none, the price of reading
            // the whole table would set off the compiler.
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ])
        .options([("idle_in_transaction_session_timeout", rest.as_millis())]))
}

/// A pool that connects at its first use, so that a process starts and says so while the database is away.
pub fn connect(config: &DatabaseConfig) -> StoreResult<Pool> {
    pool(config, REST_LIMIT)
}

/// As [`connect`], for a process that holds jobs by leases: frozen in the middle of a transaction, it holds rows for no longer
/// than it keeps its jobs.
pub fn connect_leased(config: &DatabaseConfig, lease: Duration) -> StoreResult<Pool> {
    pool(config, lease.min(REST_LIMIT))
}

fn pool(config: &DatabaseConfig, rest: Duration) -> StoreResult<Pool> {
    Ok(PgPoolOptions::new()
        .max_connections(config.pool_size)
        .acquire_timeout(Duration::from_secs(5))
        // Asking each connection whether it lives would double the way of every short statement.
        .test_before_acquire(false)
        .before_acquire(|connection, seen| {
            Box::pin(async move {
                if seen.idle_for > TRUSTED {
                    alive(connection).await?;
                }
                Ok(true)
            })
        })
        // Whoever was dropped while waiting for an answer leaves a connection that may never give one.
        .after_release(|connection, _| {
            Box::pin(async move {
                alive(connection).await?;
                Ok(true)
            })
        })
        .connect_lazy_with(options(&config.url, rest)?))
}

/// What `work` answers, unless nobody is there to answer it: a connection that died in silence is given up after `limit`.
pub async fn within<T>(limit: Duration, work: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
    let answer = tokio::time::timeout(limit, work).await;
    answer.unwrap_or_else(|_| Err(silent(limit).into()))
}

pub(super) async fn alive(connection: &mut PgConnection) -> sqlx::Result<()> {
    let answer = tokio::time::timeout(PING_LIMIT, connection.ping()).await;
    answer.unwrap_or_else(|_| Err(silent(PING_LIMIT)))
}

/// The failure of a connection that does not answer: the server's machine is gone, or the way to it.
fn silent(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no answer within {limit:?}"),
    ))
}

/// What holds for a piece of work beside what holds for every connection, as the words that begin a transaction and as those for a
/// connection that does nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// `BEGIN`, and the settings until its end.
    pub(super) begin: &'static str,
    /// The settings from now on, in place of others.
    pub(super) session: &'static str,
}

macro_rules! settings {
    ($($setting:literal),*) => {
        crate::store::pool::Settings {
            begin: concat!("BEGIN" $(, "; SET LOCAL ", $setting)*),
            session: concat!("RESET ALL" $(, "; SET ", $setting)*),
        }
    };
}
pub(super) use settings;

/// [`KEPT_PLANS`] and more.
macro_rules! kept_plans {
    ($($more:literal),*) => {
        crate::store::pool::settings!(
            "plan_cache_mode = force_generic_plan",
            "enable_bitmapscan = off",
            "enable_material = off"
            $(, $more)*
        )
    };
}
pub(super) use kept_plans;

/// Statements run by plans that are made once: for those that every job passes through, and whose plan is the same whatever they are
/// given.
///
/// A plan may be kept since the service was young. Where it knows jobs by their ids it must not look for them by their state, or it reads an
/// index of all jobs from end to end when there are many: `(status = …) IS TRUE` is a value, for which no index is looked through.
///
/// For the same reason jobs that are joined by their ids are given by `id = ANY (…)` besides: a table that was nearly empty is best read
/// from end to end. They come in the order of the index then, and are locked in it, where a bitmap would take them as they lie in
/// the table. Without `enable_material` a group is joined by hash, and not each of it with all.
pub(super) const KEPT_PLANS: Settings = kept_plans!();

/// A connection for one errand of the owner, which may read a whole table and take its time.
pub(super) async fn connect_alone(url: &str) -> StoreResult<PgConnection> {
    let options = options(url, REST_LIMIT)?.options([("statement_timeout", "0")]);
    Ok(PgConnection::connect_with(&options).await?)
}

/// Brings the schema of the database at `url` up to date, as its owner. A database that was restored from a dump goes on as one
/// that was always here.
pub async fn migrate(url: &str) -> StoreResult<()> {
    let mut connection = connect_alone(url).await?;
    sqlx::migrate!("../migrations")
        .run(&mut connection)
        .await
        .map_err(|error| StoreError::Refused(error.into()))?;
    events::settle_in(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Whether the database answers and has the schema.
pub async fn ping(pool: &Pool) -> StoreResult<()> {
    sqlx::query("SELECT 1 FROM jobs LIMIT 1").execute(pool).await?;
    Ok(())
}

/// Runs `work` in a transaction, and again if another one was in the way.
///
/// The transaction runs in a task of its own: a caller that is dropped half-way (an HTTP client that hung up) can
/// otherwise leave an open transaction to the connection's next borrower (sqlx issues 4385 and 4393).
pub async fn transaction<T, F>(pool: &Pool, work: F) -> StoreResult<T>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Send + Sync + 'static,
{
    transaction_under(pool, Extent::Statements, settings!(), ANSWER_LIMIT, work).await
}

/// How much a transaction comprises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// One statement at most. On a lane's own connection that is a transaction by itself, which spares the ways to the database and
    /// back of its `BEGIN` and `COMMIT`.
    Statement,
    Statements,
}

/// As [`transaction`], for `work` of this extent, under `settings` and given up after `limit`.
pub(super) async fn transaction_under<T, F>(
    lane: impl Into<Lane>,
    extent: Extent,
    settings: Settings,
    limit: Duration,
    work: F,
) -> StoreResult<T>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>> + Send + Sync + 'static,
{
    let lane = lane.into();
    let task = tokio::spawn(async move {
        let mut repeats = REPEATS;
        loop {
            match attempt(&lane, extent, settings, limit, &work).await {
                Err(StoreError::Retry(cause)) if repeats > 0 => {
                    tracing::debug!(%cause, "transaction repeated");
                    repeats -= 1;
                }
                outcome => return outcome,
            }
        }
    });
    task.await
        .unwrap_or_else(|panicked| Err(StoreError::contradiction(panicked)))
}

/// Does `work` in a transaction and takes it all back: fails where the database takes no writes, though it may be read.
pub(super) async fn rehearsal<T: Send + 'static>(
    pool: &Pool,
    work: for<'c> fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>>,
) -> StoreResult<()> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            let mut rehearsal = connection.begin().await?;
            work(&mut rehearsal).await?;
            Ok(rehearsal.rollback().await?)
        })
    })
    .await
}

async fn attempt<T, F>(lane: &Lane, extent: Extent, settings: Settings, limit: Duration, work: &F) -> StoreResult<T>
where
    F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>>,
{
    let mut connection = lane.acquire().await?;
    match tokio::time::timeout(limit, through(&mut connection, extent, settings, work)).await {
        Ok(Ok(outcome)) => {
            connection.give_back();
            outcome
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            connection.close();
            Err(silent(limit).into())
        }
    }
}

/// The outcome of a transaction that was committed or rolled back; an error if neither is known.
async fn through<T, F>(
    connection: &mut Held,
    extent: Extent,
    settings: Settings,
    work: &F,
) -> StoreResult<StoreResult<T>>
where
    F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, StoreResult<T>>,
{
    if extent == Extent::Statement && connection.set(settings.session).await? {
        return match work(connection).await {
            Err(error) if error.is_transient() && !error.is_out_of_time() => Err(error),
            known => Ok(known),
        };
    }
    let mut transaction = connection.begin_with(settings.begin).await?;
    match work(&mut transaction).await {
        Ok(value) => {
            transaction.commit().await?;
            Ok(Ok(value))
        }
        Err(error) => match transaction.rollback().await {
            Ok(()) => Ok(Err(error)),
            Err(_) => Err(error),
        },
    }
}
