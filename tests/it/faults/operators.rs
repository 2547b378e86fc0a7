//! What operators and callers do to workers that are at work.

use std::time::Duration;

use claimcheck_common::store::{accounts, operators};
use claimcheck_tests::{Installation, Stack, eventually, in_world_on};
use serde_json::Value;

use super::{Caller, LIMIT, LONG, RUNNING, assert_each_settled_once, count, hurry, job, until_count};

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_a_running_job_long_before_the_next_heartbeat() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        // Longer than the test: only the push can bring the cancel.
        world.delivery.lease = Duration::from_mins(30);
        world.delivery.heartbeat = Duration::from_mins(10);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        let id = caller.submit("long", &job(0, LONG)).await;
        until_count(world, 1, RUNNING).await;
        let cancel = caller.post(&format!("/v1/jobs/{id}/cancel")).send().await.unwrap();
        assert_eq!(cancel.json::<Value>().await.unwrap()["status"], "cancelling");
        eventually("it is cancelled", LIMIT, async || {
            (caller.job(&id).await["status"] == "cancelled").then_some(())
        })
        .await;
        let stopped = caller.job(&id).await["stopped_after_tokens"].as_u64().unwrap();
        assert!(stopped < LONG as u64, "it stopped after {stopped} tokens");
        assert!((worker.metric("claimcheck_cancel_latency_seconds_count").await - 1.0).abs() < f64::EPSILON);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_ends_its_job_and_leaves_the_next_one_to_another() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _first = installation.worker("first", []).await;
        let caller = Caller::of(&api, "ada").await;
        let id = caller.submit("long", &job(0, LONG)).await;
        until_count(world, 1, RUNNING).await;
        let first = operators::workers(&world.pool).await.unwrap()[0].id;
        let root = accounts::find_by_username(&world.pool, "ada")
            .await
            .unwrap()
            .unwrap()
            .user_id;
        assert!(operators::drain(&world.pool, first, root).await.unwrap());
        eventually("it has signed off", LIMIT, async || {
            operators::workers(&world.pool).await.ok()?.is_empty().then_some(())
        })
        .await;
        assert_eq!(caller.job(&id).await["status"], "completed", "what ran was finished");
        caller.submit("next", &job(1, 8)).await;
        let _second = installation.worker("second", []).await;
        until_count(world, 2, super::COMPLETED).await;
        assert_each_settled_once(world, 2).await;
        assert_eq!(count(world, "SELECT max(attempt)::int8 FROM jobs").await, 1);
    })
    .await;
}
