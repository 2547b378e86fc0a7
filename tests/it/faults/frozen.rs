//! Processes that are frozen in the middle of a transaction, their connections standing: what they hold goes on without them.

use std::time::{Duration, Instant};

use claimcheck_tests::{Gate, Installation, Moment, Process, World, in_world};

use super::{COMPLETED, Caller, LONG, assert_each_settled_once, count, hurry, job, until_count};

/// A lease of 3 s, or the 10 s for which an API may rest, and much time for a busy machine. Where nothing ends the transaction of a
/// frozen process for being frozen, it holds on for 30 s and more.
const SOON: Duration = Duration::from_secs(25);

/// Freezes a process that stands at the gate, and opens: its statement ends, and its transaction stays open. Answers when.
async fn freeze(process: &Process, mut gate: Gate) -> Instant {
    gate.reached().await;
    process.freeze().await;
    // Not opened by dropping the trigger: that would wait for the end of the transaction.
    drop(gate);
    Instant::now()
}

/// A worker that is given one job and is frozen in the transaction which does `event`, beside another one; answers how many
/// attempts the job took, and how often it was rescued. Ends with the job.
async fn frozen_worker(world: &mut World, condition: &str) -> (i64, i64) {
    hurry(world);
    // Messages are not sent anew during this test.
    world.delivery.reemit_after = Duration::from_hours(1);
    let installation = Installation::of(world);
    let api = installation.api().await;
    let _maintainer = installation.maintainer().await;
    let silent = installation.generator("silent", []).await;
    let caller = Caller::of(&api, "ada").await;
    let mut gate = Gate::shut(world, Moment::Statement, "UPDATE ON jobs", condition).await;
    caller.submit("once", &job(1, LONG)).await;
    gate.reached().await;
    let _other = installation.generator("other", []).await;
    let began = freeze(&silent, gate).await;
    until_count(world, 1, OTHERS_CLAIM).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    silent.signal("CONT");
    until_count(world, 1, COMPLETED).await;
    assert_each_settled_once(world, 1).await;
    silent.answers("/readyz").await;
    (
        count(world, "SELECT attempt::int8 FROM jobs").await,
        count(world, "SELECT lapses::int8 FROM jobs").await,
    )
}

/// The worker that was announced last has a job.
const OTHERS_CLAIM: &str = "SELECT count(*) FROM jobs WHERE status = 'in_progress'
    AND worker_id = (SELECT id FROM workers ORDER BY id DESC LIMIT 1)";

#[tokio::test(flavor = "multi_thread")]
async fn frozen_in_the_middle_of_a_claim_a_worker_leaves_the_job_to_another_at_no_cost() {
    in_world(async |world| {
        let claims = "OLD.status = 'queued' AND NEW.status = 'in_progress'";
        assert_eq!(frozen_worker(world, claims).await, (1, 0), "attempts, lapses");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_with_a_jobs_row_locked_a_worker_loses_the_job_when_its_lease_is_over() {
    in_world(async |world| {
        let starts = "OLD.started_at IS NULL AND NEW.started_at IS NOT NULL";
        assert_eq!(frozen_worker(world, starts).await, (2, 1), "attempts, lapses");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_while_it_relays_an_api_leaves_the_queue_to_another() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let frozen = installation.api().await;
        let _worker = installation.worker("worker", []).await;
        let caller = Caller::of(&frozen, "ada").await;
        let gate = Gate::shut(world, Moment::Statement, "DELETE ON outbox", "true").await;
        caller.submit("once", &job(1, 4)).await;
        let began = freeze(&frozen, gate).await;
        let other = installation.api_with("other", []).await;
        let caller = Caller::of(&other, "bob").await;
        caller.submit("again", &job(2, 4)).await;
        until_count(world, 2, COMPLETED).await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        frozen.signal("CONT");
        frozen.answers("/readyz").await;
        assert_each_settled_once(world, 2).await;
    })
    .await;
}
