//! Work that is interrupted on its way: a broker that forgets, and a worker that is told to stop.

use std::time::{Duration, Instant};

use claimcheck_common::domain::{Class, QueueName};
use claimcheck_tests::{Installation, TINY, World, eventually, in_world};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;

use super::{COMPLETED, Caller, LIMIT, LONG, RUNNING, assert_each_settled_once, count, hurry, job, until_count};

const JOBS: usize = 200;

/// The broker's name of a queue of the model.
fn queue(world: &World, class: Class) -> String {
    let model = TINY.to_owned();
    world.broker().queue(&QueueName { model, class })
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_messages_the_broker_lost_are_sent_again_and_completed() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        drop(installation.generator("first", []).await);
        let caller = Caller::of(&api, "ada").await;
        for number in 0..JOBS {
            caller.submit(&format!("job-{number}"), &job(number, 4)).await;
        }
        until_count(world, JOBS, "SELECT count(*) FROM released").await;
        let connection = world.broker().connect("test").await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let name = queue(world, Class::Interactive);
        let purged = channel
            .queue_purge(name.as_str().into(), QueuePurgeOptions::default())
            .await
            .unwrap();
        assert_eq!(purged as usize, JOBS, "all messages were in the queue, and none is now");
        let worker = installation.worker("worker", []).await;
        until_count(world, JOBS, COMPLETED).await;
        assert!(worker.metric("claimcheck_reemitted_total").await >= JOBS as f64);
        assert_each_settled_once(world, JOBS).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_hands_its_jobs_on_at_no_cost() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let mut first = installation
            .worker("first", [("CLAIMCHECK_DRAIN", "200ms".to_owned())])
            .await;
        let caller = Caller::of(&api, "ada").await;
        for number in 0..JOBS {
            // Some end at once, some are still running when the drain is over.
            let length = if number % 10 == 0 { LONG } else { 8 };
            caller.submit(&format!("job-{number}"), &job(number, length)).await;
        }
        until_count(
            world,
            1,
            "SELECT least(count(*), 1) FROM jobs WHERE status = 'in_progress'",
        )
        .await;
        first.signal("TERM");
        assert!(first.ended().await.success());
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs WHERE status = 'in_progress'").await,
            0
        );
        assert!(
            count(world, COMPLETED).await < JOBS as i64,
            "the stop came in the middle"
        );
        let _second = installation.worker("second", []).await;
        until_count(world, JOBS, COMPLETED).await;
        assert_each_settled_once(world, JOBS).await;
        assert_eq!(
            count(world, "SELECT max(attempt)::int8 FROM jobs").await,
            1,
            "no attempt was charged"
        );
        assert_eq!(
            count(world, "SELECT sum(lapses)::int8 FROM jobs").await,
            0,
            "no lease had to lapse"
        );
    })
    .await;
}

/// Puts a queue of another kind in the place of the batch queue: no worker can declare or consume that one.
async fn spoil_the_batch_queue(world: &World) {
    let connection = world.broker().connect("test").await.unwrap();
    let name = queue(world, Class::Batch);
    eventually("the batch queue is another one", LIMIT, async || {
        let channel = connection.create_channel().await.ok()?;
        let delete = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        delete.await.ok()?;
        let options = QueueDeclareOptions::default();
        let classic = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
        // The worker may be faster with its own.
        classic.await.ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_the_broker_cannot_serve_holds_up_no_other() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        spoil_the_batch_queue(world).await;
        eventually("the worker misses a queue", LIMIT, async || {
            let ready = caller.client.get(worker.url("/readyz")).send().await.ok()?;
            (!ready.status().is_success()).then_some(())
        })
        .await;
        // Its queue comes before the other one's, and its message cannot be published.
        let mut late = job(1, 4);
        late["class"] = "batch".into();
        caller.submit("late", &late).await;
        caller.submit("job", &job(2, 4)).await;
        until_count(world, 1, COMPLETED).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rescued_jobs_that_are_sent_to_the_silent_worker_again_soon_go_to_another() {
    in_world(async |world| {
        hurry(world);
        // Others whose messages are missing have to wait for a minute, which is longer than this test may take.
        world.delivery.reemit_after = Duration::from_mins(1);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _maintainer = installation.maintainer().await;
        let caller = Caller::of(&api, "ada").await;
        let silent = installation.generator("silent", []).await;
        for number in 0..8 {
            caller.submit(&format!("job-{number}"), &job(number, LONG)).await;
        }
        until_count(world, 8, RUNNING).await;
        // Its connections stand, and the broker takes turns.
        silent.freeze().await;
        let began = Instant::now();
        let other = installation.generator("other", []).await;
        until_count(
            world,
            8,
            "SELECT count(*) FROM jobs WHERE claimed_at IS NOT NULL AND attempt = 2",
        )
        .await;
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(other.metric("claimcheck_jobs_claimed_total").await >= 8.0);
    })
    .await;
}
