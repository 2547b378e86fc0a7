//! Connections that break in the middle of work, and such as fall silent without breaking, as when a machine vanishes.

use std::sync::atomic::{AtomicUsize, Ordering};

use claimcheck_tests::{Gate, Installation, Moment, Process, World, eventually, in_world};

use super::{
    ATTEMPTS, CLAIMS, COMPLETED, Caller, LIMIT, LONG, Wires, assert_each_settled_once, count, hurry, job, until_count,
    wired,
};

const JOBS: usize = 400;
const CALLERS: usize = 8;
/// A blow each time so many more jobs have ended.
const STRIDE: usize = 40;

/// A service that reaches its servers by wires, and its one caller.
struct Behind {
    wires: Wires,
    caller: Caller,
    _running: (Installation, [Process; 2]),
}

async fn behind_wires(world: &mut World) -> Behind {
    let (installation, wires) = wired(world).await;
    let api = installation.api().await;
    let worker = installation.worker("worker", []).await;
    Behind {
        wires,
        caller: Caller::of(&api, "ada").await,
        _running: (installation, [api, worker]),
    }
}

/// Submits the jobs from several tasks at once.
async fn submit_all(caller: &Caller) {
    let next = AtomicUsize::new(0);
    let submitting = (0..CALLERS).map(|_| async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= JOBS {
                return;
            }
            caller
                .submit(&format!("job-{number}"), &job(number, 2 + number % 16))
                .await;
        }
    });
    futures::future::join_all(submitting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_in_the_middle_of_work_lose_no_job() {
    in_world(async |world| {
        hurry(world);
        let behind = behind_wires(world).await;
        let (wires, caller) = (&behind.wires, &behind.caller);
        let blows = async {
            for blow in 0..JOBS / STRIDE - 1 {
                eventually("more jobs end", LIMIT, async || {
                    (count(world, COMPLETED).await >= (blow * STRIDE) as i64).then_some(())
                })
                .await;
                let wire = if blow % 2 == 0 { &wires.database } else { &wires.broker };
                wire.cut();
            }
        };
        tokio::join!(submit_all(caller), blows);
        until_count(world, JOBS, COMPLETED).await;
        assert_each_settled_once(world, JOBS).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_cut_off_is_taken_up_at_once_and_costs_no_attempt() {
    in_world(async |world| {
        hurry(world);
        // Nobody is rescued meanwhile.
        world.delivery.lease = 2 * LIMIT;
        let behind = behind_wires(world).await;
        let (wires, caller) = (&behind.wires, &behind.caller);
        let mut gate = Gate::shut(world, Moment::Commit, "UPDATE ON jobs", CLAIMS).await;
        caller.submit("once", &job(0, 4)).await;
        gate.reached().await;
        wires.database.cut();
        gate.open().await;
        until_count(world, 1, COMPLETED).await;
        assert_eq!(count(world, ATTEMPTS).await, 1);
        assert_eq!(
            count(world, "SELECT fence FROM jobs").await,
            2,
            "claimed unheard, and taken up"
        );
        assert_each_settled_once(world, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_noticed_and_the_jobs_go_on() {
    in_world(async |world| {
        hurry(world);
        let behind = behind_wires(world).await;
        let (wires, caller) = (&behind.wires, &behind.caller);
        caller.submit("before", &job(0, 4)).await;
        until_count(world, 1, COMPLETED).await;
        wires.broker.silence();
        caller.submit("after", &job(1, 4)).await;
        until_count(world, 2, COMPLETED).await;
        assert_each_settled_once(world, 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_noticed_and_no_result_is_lost() {
    in_world(async |world| {
        hurry(world);
        let behind = behind_wires(world).await;
        let (wires, caller) = (&behind.wires, &behind.caller);
        for number in 0..CALLERS {
            caller.submit(&format!("before-{number}"), &job(number, LONG)).await;
        }
        until_count(
            world,
            1,
            "SELECT least(count(*), 1) FROM jobs WHERE status = 'in_progress'",
        )
        .await;
        wires.database.silence();
        let late = (0..CALLERS).map(|number| {
            let caller = caller.clone();
            async move { caller.submit(&format!("after-{number}"), &job(number, 4)).await }
        });
        futures::future::join_all(late).await;
        until_count(world, 2 * CALLERS, COMPLETED).await;
        assert_each_settled_once(world, 2 * CALLERS).await;
    })
    .await;
}
