//! Claims and settles that must wait for a job's row, and in which order they lock several.

use std::time::Duration;

use claimcheck_common::domain::{JobId, JobStatus, WorkerId};
use claimcheck_common::store::outbox::Look;
use claimcheck_common::store::settle::{self, Settled, Settlement};
use claimcheck_common::store::{Pool, claim, outbox};
use claimcheck_tests::{World, eventually, in_world};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::store::{LEASE, accept, account, alone, completion, count, new_job, queue, submitted};

const LIMIT: Duration = Duration::from_secs(20);
const WINDOW: u32 = 100;

#[tokio::test]
async fn claims_and_settles_lock_in_the_order_of_ids_whatever_order_they_are_given() {
    in_world(async |world| {
        let pool = &world.pool;
        let mut ids = accepted_backwards(pool).await;
        let given = ids.clone();
        ids.sort_unstable_by_key(|id| id.uuid());
        let middle = ids[ids.len() / 2];

        let (waits, jobs) = (pool.clone(), given.clone());
        let work = async move { claim::claim(&waits, WorkerId::new(), jobs, LEASE).await };
        let (claimed, free) = while_held(world, middle, work).await;
        assert_eq!(free, ids[ids.len() / 2 + 1..], "a claim has those before it");

        // In the order of the answer, which is that of the ids, backwards.
        let completed = claimed.unwrap().into_iter().rev();
        let group: Vec<_> = completed
            .map(|job| Settlement::completed(job.key, completion("a text")))
            .collect();
        assert_eq!(group.len(), ids.len());
        let waits = pool.clone();
        let work = async move { settle::settle_group(&waits, group, "worker:test".to_owned()).await };
        let (settled, free) = while_held(world, middle, work).await;
        assert_eq!(free, ids[ids.len() / 2 + 1..], "a settle has those before it");
        assert_eq!(settled.unwrap().len(), ids.len());
    })
    .await;
}

#[tokio::test]
async fn a_settle_that_waited_for_a_cancel_knows_of_it() {
    in_world(async |world| {
        let pool = &world.pool;
        let key = crate::store::claimed(pool).await;
        let mut cancel = begin(
            world,
            "UPDATE jobs SET status = 'cancelling', cancel_requested_at = now()",
        )
        .await;
        let settling = spawn_settle(pool, Settlement::completed(key, completion("a text")));
        blocked(world).await;
        sqlx::raw_sql("COMMIT").execute(&mut cancel).await.unwrap();
        let settled = settling.await.unwrap();
        assert_eq!(
            settled.iter().map(|one| one.status).collect::<Vec<_>>(),
            [JobStatus::Cancelled]
        );
        assert_eq!(
            crate::store::view(pool, key.id).await.choices.unwrap()[0].text,
            "a text"
        );
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_waited_for_the_relay_forgets_the_release() {
    in_world(async |world| {
        let pool = &world.pool;
        let id = submitted(pool).await.key.id;
        let mut connection = pool.acquire().await.unwrap();
        let mut relay = outbox::begin(&mut connection).await.unwrap();
        let taken = outbox::take(&mut relay, &queue(), Look::All, WINDOW, WINDOW)
            .await
            .unwrap();
        outbox::confirm(&mut relay, &alone(&taken.rows)).await.unwrap();
        let waits = pool.clone();
        let claiming = tokio::spawn(async move { claim::claim(&waits, WorkerId::new(), vec![id], LEASE).await });
        blocked(world).await;
        relay.commit().await.unwrap();
        assert_eq!(claiming.await.unwrap().unwrap().len(), 1);
        assert_eq!(count(pool, "SELECT count(*) FROM released").await, 0);
    })
    .await;
}

/// Jobs that lie in the table in the order of the answer, which is the opposite of that of their ids.
async fn accepted_backwards(pool: &Pool) -> Vec<JobId> {
    let account = account(pool).await;
    let mut jobs: Vec<_> = (0..7).map(|_| new_job(&account)).collect();
    jobs.sort_unstable_by_key(|job| std::cmp::Reverse(job.id.uuid()));
    let mut ids = Vec::new();
    for job in jobs {
        ids.push(accept(pool, job).await.key.id);
    }
    ids
}

/// What `work` answers, and the jobs that nobody had locked while it waited for this one, in the order of their ids.
async fn while_held<T: Send + 'static>(
    world: &World,
    held: JobId,
    work: impl Future<Output = T> + Send + 'static,
) -> (T, Vec<JobId>) {
    let lock = format!("SELECT FROM jobs WHERE id = '{}' FOR UPDATE", held.uuid());
    let mut holder = begin(world, &lock).await;
    let work = tokio::spawn(work);
    blocked(world).await;
    let free = sqlx::query_scalar("SELECT id FROM jobs ORDER BY id FOR UPDATE SKIP LOCKED")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    (work.await.unwrap(), free.into_iter().map(JobId::from_uuid).collect())
}

/// A transaction that has run this and is open.
async fn begin(world: &World, sql: &str) -> PgConnection {
    let mut connection = PgConnection::connect(world.database.owner_url()).await.unwrap();
    for sql in ["BEGIN", sql] {
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await;
        done.unwrap();
    }
    connection
}

/// Waits until somebody waits for a transaction's end.
async fn blocked(world: &World) {
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted
                   AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
    eventually("somebody waits for a row", LIMIT, async || {
        (count(&world.pool, waiting).await > 0).then_some(())
    })
    .await;
}

fn spawn_settle(pool: &Pool, settlement: Settlement) -> JoinHandle<Vec<Settled>> {
    let pool = pool.clone();
    tokio::spawn(async move {
        let by = "worker:test".to_owned();
        settle::settle_group(&pool, vec![settlement], by).await.unwrap()
    })
}
