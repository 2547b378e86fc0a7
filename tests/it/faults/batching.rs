//! Continuous batching, seen from outside: a backlog fills the batch, and no job's text depends on its neighbours.

use claimcheck_tests::{Installation, in_world};

use super::{COMPLETED, Caller, assert_each_settled_once, hurry, job, until_count};

const JOBS: usize = 300;
const AGAIN: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_runs_in_full_batches_and_each_text_is_the_one_the_job_has_alone() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let api = installation.api().await;
        // A first life announces the model, so that jobs for it are accepted while no worker runs.
        drop(installation.generator("first", []).await);
        let caller = Caller::of(&api, "ada").await;
        // So long that a job is computed for longer than it takes to claim one, also on a busy machine.
        let length = |number: usize| 60 + number * 7 % 120;
        let mut ids = Vec::new();
        for number in 0..JOBS {
            ids.push(
                caller
                    .submit(&format!("together-{number}"), &job(number, length(number)))
                    .await,
            );
        }
        let worker = installation.generator("worker", []).await;
        until_count(world, JOBS, COMPLETED).await;
        assert_each_settled_once(world, JOBS).await;
        let rows = worker.metric("claimcheck_engine_step_rows_sum").await;
        let steps = worker.metric("claimcheck_engine_step_rows_count").await;
        assert!(rows / steps > 8.0, "{rows} rows in {steps} steps");
        for number in (0..JOBS).step_by(JOBS / AGAIN).take(AGAIN) {
            let alone = caller
                .submit(&format!("alone-{number}"), &job(number, length(number)))
                .await;
            claimcheck_tests::eventually("the job alone ends", super::LIMIT, async || {
                (caller.job(&alone).await["status"] == "completed").then_some(())
            })
            .await;
            let (alone, together) = (caller.job(&alone).await, caller.job(&ids[number]).await);
            assert!(alone["output"]["choices"][0]["text"].is_string(), "{alone}");
            assert_eq!(
                alone["output"]["choices"], together["output"]["choices"],
                "job {number}"
            );
        }
    })
    .await;
}
