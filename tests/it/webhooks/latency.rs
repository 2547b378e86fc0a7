//! How long it takes from a job's settling to the first attempt at its webhook.

use std::time::Duration;

use claimcheck_common::domain::{JobKey, WorkerId};
use claimcheck_common::store::{claim, settle};
use claimcheck_tests::{Receiver, World, setting};
use time::OffsetDateTime;

use super::{Dispatching, endpoint};
use crate::http_face::with_api;
use crate::http_operators::a_job;
use crate::store::{LEASE, completion};

const TARGET: Duration = Duration::from_millis(200);

/// Milliseconds from the settle's time in the database to the receiver's, for each of `jobs` that are settled one each `pause`.
async fn measure(jobs: usize, pause: Duration) -> Vec<f64> {
    let mut delays = Vec::new();
    with_api(async |world, api| {
        // The safety net must not help.
        world.webhooks.interval = Duration::from_mins(1);
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        endpoint(&ada, &receiver.url("/"), serde_json::json!({"concurrency": 100})).await;
        let mut keys = Vec::new();
        for _ in 0..jobs {
            let id = ada.submit(&a_job()).await.parse().unwrap();
            keys.push(
                claim::claim(&world.pool, WorkerId::new(), vec![id], LEASE)
                    .await
                    .unwrap()[0]
                    .key,
            );
        }
        let dispatching = Dispatching::start(world);
        let mut tick = tokio::time::interval(pause);
        let mut settling = tokio::task::JoinSet::new();
        for key in keys {
            tick.tick().await;
            let pool = world.pool.clone();
            settling.spawn(async move { settle_one(&pool, key).await });
        }
        settling.join_all().await;
        let came = receiver.wait_for(jobs).await;
        dispatching.stop().await;
        for one in came {
            let settled = settled_at(world, one.json()["data"]["id"].as_str().unwrap()).await;
            delays.push((one.at - settled).as_seconds_f64() * 1000.0);
        }
    })
    .await;
    delays.sort_by(f64::total_cmp);
    delays
}

async fn settle_one(pool: &claimcheck_common::store::Pool, key: JobKey) {
    let ending = settle::Settlement::completed(key, completion("a text"));
    settle::settle_group(pool, vec![ending], "worker:test".to_owned())
        .await
        .unwrap();
}

async fn settled_at(world: &World, job: &str) -> OffsetDateTime {
    let id: claimcheck_common::domain::JobId = job.parse().unwrap();
    sqlx::query_scalar("SELECT finished_at FROM jobs WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_job_s_webhook_leaves_at_once_though_nobody_looks() {
    let delays = measure(20, Duration::from_millis(50)).await;
    // A machine that also builds is given some more time than the target; the safety net would take a minute.
    assert!(
        quantile(&delays, 0.5) < 5.0 * TARGET.as_secs_f64() * 1000.0,
        "{delays:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the bench: docs/benchmarks/webhooks.md"]
async fn bench_from_settled_to_first_attempt() {
    let jobs = setting("CLAIMCHECK_BENCH_JOBS").map_or(1000, |jobs| jobs.parse().unwrap());
    for (name, pause) in [("50 a second", 20), ("200 a second", 5)] {
        let delays = measure(jobs, Duration::from_millis(pause)).await;
        eprintln!(
            "| {name} | {jobs} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms |",
            quantile(&delays, 0.5),
            quantile(&delays, 0.95),
            quantile(&delays, 0.99),
            quantile(&delays, 1.0)
        );
    }
}
