//! One server away for a while: what goes on without it, and that everything finds back by itself.

use std::time::Duration;

use claimcheck_tests::{Installation, Server, Stack, eventually, in_world_on};
use reqwest::StatusCode;

use super::{COMPLETED, Caller, LIMIT, LONG, RUNNING, assert_each_settled_once, count, hurry, job, until_count};

const JOBS: usize = 20;

async fn submit(caller: &Caller, numbers: std::ops::Range<usize>) {
    for number in numbers {
        caller.submit(&format!("job-{number}"), &job(number, 8)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_accepted_without_rabbitmq_and_run_when_it_is_back_and_flow_without_redis() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        submit(&caller, 0..JOBS).await;
        until_count(world, JOBS, COMPLETED).await;

        stack.kill(Server::RabbitMq).await;
        submit(&caller, JOBS..2 * JOBS).await;
        assert_eq!(
            count(world, "SELECT count(*) FROM outbox").await,
            JOBS as i64,
            "they wait in the outbox"
        );
        stack.start(Server::RabbitMq).await;
        until_count(world, 2 * JOBS, COMPLETED).await;

        stack.kill(Server::Redis).await;
        submit(&caller, 2 * JOBS..3 * JOBS).await;
        until_count(world, 3 * JOBS, COMPLETED).await;
        assert_each_settled_once(world, 3 * JOBS).await;
        stack.start(Server::Redis).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_the_api_answers_503_and_all_parts_recover_without_a_restart() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        caller.submit("long", &job(JOBS, LONG)).await;
        until_count(world, 1, RUNNING).await;
        stack.kill(Server::Postgres).await;
        let refused = caller.post("/v1/jobs").json(&job(0, 8)).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(Duration::from_secs(after) < LIMIT);
        eventually("the API is not ready", LIMIT, async || {
            let ready = caller.client.get(api.url("/readyz")).send().await.ok()?;
            (ready.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
        })
        .await;
        stack.start(Server::Postgres).await;
        submit(&caller, 0..JOBS).await;
        until_count(world, JOBS + 1, COMPLETED).await;
        assert_each_settled_once(world, JOBS + 1).await;
        assert_eq!(
            count(world, "SELECT max(attempt)::int8 FROM jobs").await,
            1,
            "an outage costs no attempt"
        );
        worker.answers("/readyz").await;
        api.answers("/readyz").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_memory_alarm_of_the_broker_jobs_are_accepted_and_running_ones_settle_and_ack() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        caller.submit("long", &job(JOBS, LONG)).await;
        until_count(world, 1, RUNNING).await;
        stack.memory_alarm(true).await;
        submit(&caller, 0..JOBS).await;
        until_count(world, 1, COMPLETED).await;
        eventually("its message is acked", LIMIT, async || {
            (worker.metric("claimcheck_jobs_in_flight").await == 0.0).then_some(())
        })
        .await;
        assert_eq!(
            count(world, "SELECT count(*) FROM outbox").await,
            JOBS as i64,
            "the others wait in the outbox"
        );
        stack.memory_alarm(false).await;
        until_count(world, JOBS + 1, COMPLETED).await;
        assert_each_settled_once(world, JOBS + 1).await;
    })
    .await;
}
