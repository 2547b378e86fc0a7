//! Connections that stay with one errand.

use std::time::Duration;

use claimcheck_common::domain::{JobError, JobStatus};
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::{Held, Lane, Pool};
use claimcheck_tests::{eventually, in_world};

use crate::store::{claimed, completion, view};

const LIMIT: Duration = Duration::from_secs(10);

/// Which server process a connection leads to.
async fn process(connection: &mut Held) -> i32 {
    let process = sqlx::query_scalar("SELECT pg_backend_pid()");
    process.fetch_one(&mut **connection).await.unwrap()
}

async fn of(lane: &Lane) -> i32 {
    let mut connection = lane.acquire().await.unwrap();
    let process = process(&mut connection).await;
    connection.give_back();
    process
}

async fn is_there(pool: &Pool, process: i32) -> bool {
    let found = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)");
    found.bind(process).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_lane_has_one_connection_to_itself_and_takes_the_pools_while_that_is_in_use() {
    in_world(async |world| {
        let lane = Lane::new(&world.pool);
        let own = of(&lane).await;
        assert_eq!(of(&lane.clone()).await, own);
        let mut first = lane.acquire().await.unwrap();
        let mut second = lane.acquire().await.unwrap();
        assert_eq!(process(&mut first).await, own);
        assert_ne!(process(&mut second).await, own);
        first.give_back();
        second.give_back();
        assert_eq!(of(&lane).await, own);
        // The pool's are not used up by what a lane keeps, and it closes without waiting for that.
        let places = world.pool.options().get_max_connections() as usize;
        let mut all = Vec::new();
        for _ in 0..places {
            all.push(world.pool.acquire().await.unwrap());
        }
        drop(all);
        tokio::time::timeout(LIMIT, world.pool.close()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_is_not_given_back_is_closed_and_replaced() {
    in_world(async |world| {
        let lane = Lane::new(&world.pool);
        let first = of(&lane).await;
        let mut dropped = lane.acquire().await.unwrap();
        sqlx::query("BEGIN").execute(&mut *dropped).await.unwrap();
        drop(dropped);
        eventually("its connection is closed", LIMIT, async || {
            (!is_there(&world.pool, first).await).then_some(())
        })
        .await;
        assert_ne!(of(&lane).await, first);
    })
    .await;
}

#[tokio::test]
async fn a_transaction_that_the_database_refuses_leaves_the_connection_as_it_was() {
    in_world(async |world| {
        let lane = Lane::new(&world.pool);
        let own = of(&lane).await;
        let key = claimed(&world.pool).await;
        // Text with a zero character cannot be stored.
        let refused = vec![Settlement::completed(key, completion("\0"))];
        settle::settle_group(&lane, refused, "worker:test").await.unwrap();
        assert_eq!(of(&lane).await, own);
        let job = view(&world.pool, key.id).await;
        assert_eq!(job.status, JobStatus::Failed);
        let code = job.error.map(|JobError { code, .. }| code);
        assert_eq!(code.as_deref(), Some("output_not_storable"));
    })
    .await;
}
