//! A worker that was thought dead and comes back: the fence refuses its result, and nothing else would.

use claimcheck_tests::{Installation, Process, World, in_world};

use super::{Caller, LONG, RUNNING, assert_each_settled_once, count, hurry, job, until_count};

/// A heart that beats once and then not again during the test, so that no beat tells this worker that it lost its job:
/// it finds that out, or not, when it settles.
const SLOW: [(&str, &str); 2] = [("CLAIMCHECK_LEASE", "1h"), ("CLAIMCHECK_HEARTBEAT", "20m")];

/// How often a worker's settle was accepted and refused.
async fn settles(worker: &Process) -> (f64, f64) {
    (
        worker.metric("claimcheck_jobs_settled_total").await,
        worker.metric("claimcheck_settle_refused_total").await,
    )
}

/// The first worker sleeps, the second one claims its job and is held up, the first one wakes and finishes. Answers the
/// settles of the first and of the second worker.
async fn a_sleeper_wakes(world: &World) -> ((f64, f64), (f64, f64)) {
    let installation = Installation::of(world);
    let api = installation.api().await;
    let _maintainer = installation.maintainer().await;
    let caller = Caller::of(&api, "ada").await;
    let slow = || SLOW.map(|(name, value)| (name, value.to_owned()));
    let sleeper = installation.generator("sleeper", slow()).await;
    caller.submit("once", &job(1, LONG)).await;
    until_count(world, 1, RUNNING).await;
    sleeper.freeze().await;
    assert_eq!(
        count(world, "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL").await,
        0
    );
    world.execute_as_owner("UPDATE jobs SET lease_expires_at = now()").await;
    until_count(world, 1, "SELECT lapses::int8 FROM jobs").await;
    let second = installation.generator("second", slow()).await;
    until_count(
        world,
        1,
        "SELECT count(*) FROM jobs WHERE status = 'in_progress' AND attempt = 2",
    )
    .await;
    second.freeze().await;
    assert_eq!(
        count(world, "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL").await,
        0
    );
    sleeper.signal("CONT");
    let slept = claimcheck_tests::eventually("the sleeper settles", super::LIMIT, async || {
        let settles = settles(&sleeper).await;
        (settles.0 + settles.1 > 0.0).then_some(settles)
    })
    .await;
    second.signal("CONT");
    let other = claimcheck_tests::eventually("the second settles", super::LIMIT, async || {
        let settles = settles(&second).await;
        (settles.0 + settles.1 > 0.0).then_some(settles)
    })
    .await;
    (slept, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_of_a_worker_that_slept_through_its_lease_is_refused() {
    in_world(async |world| {
        hurry(world);
        let (sleeper, second) = a_sleeper_wakes(world).await;
        assert_eq!(
            count(world, "SELECT fence FROM jobs").await,
            2,
            "the second claim grew the fence"
        );
        assert_eq!(sleeper, (0.0, 1.0), "accepted and refused settles of the sleeper");
        assert_eq!(second, (1.0, 0.0), "accepted and refused settles of the second worker");
        assert_each_settled_once(world, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_fence_the_result_of_a_worker_that_slept_would_count() {
    in_world(async |world| {
        hurry(world);
        world
            .execute_as_owner(
                "CREATE FUNCTION no_fence() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN NEW.fence := OLD.fence; RETURN NEW; END';
                 CREATE TRIGGER no_fence BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION no_fence()",
            )
            .await;
        let (sleeper, second) = a_sleeper_wakes(world).await;
        assert_eq!(count(world, "SELECT fence FROM jobs").await, 0);
        assert_eq!(
            sleeper,
            (1.0, 0.0),
            "the stale settle is accepted: only the fence stands in its way"
        );
        assert_eq!(second, (0.0, 1.0), "and the rightful one comes too late");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_lapsed_while_it_was_frozen_is_replaced_and_changes_nothing() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        let frozen = installation.worker("frozen", []).await;
        let caller = Caller::of(&api, "ada").await;
        for number in 0..4 {
            caller.submit(&format!("job-{number}"), &job(number, LONG)).await;
        }
        until_count(world, 4, RUNNING).await;
        frozen.freeze().await;
        let _second = installation.worker("second", []).await;
        until_count(world, 4, "SELECT count(*) FROM jobs WHERE fence >= 2").await;
        frozen.signal("CONT");
        until_count(world, 4, super::COMPLETED).await;
        assert_each_settled_once(world, 4).await;
        frozen.answers("/readyz").await;
    })
    .await;
}
