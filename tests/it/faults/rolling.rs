//! A new version goes out under load: every process is stopped and started, one after the other, and nobody notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use claimcheck_tests::{Installation, Process, World, eventually, in_world};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Caller, LIMIT, assert_each_settled_once, count, hurry, job};

const CALLERS: usize = 8;
const ROUNDS: usize = 2;
/// Several times the balancer's interval between two looks.
const NOTICE: &str = "1s";
/// Several times that interval, too, and less than the balancer waits for an answer.
const LATE: Duration = Duration::from_secs(1);

/// One caller: submits a job, waits for its result and begins again, until `enough`. Nothing is sent twice: the first
/// request that is not answered as it should be is told of. Answers how many jobs it had.
async fn call(
    client: Client,
    base: String,
    token: String,
    place: usize,
    enough: CancellationToken,
) -> Result<usize, String> {
    let mut jobs = 0;
    while !enough.is_cancelled() {
        let number = place + CALLERS * jobs;
        let body = job(number, 1 + number % 40);
        let submit = client.post(format!("{base}/v1/jobs")).json(&body);
        let mut job = answer(submit.bearer_auth(&token), StatusCode::ACCEPTED).await?;
        jobs += 1;
        while job["finished_at"].is_null() {
            let path = format!("{base}/v1/jobs/{}?wait=20", job["id"].as_str().unwrap_or_default());
            job = answer(client.get(path).bearer_auth(&token), StatusCode::OK).await?;
        }
    }
    Ok(jobs)
}

async fn answer(request: RequestBuilder, wanted: StatusCode) -> Result<Value, String> {
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| format!("{error:?}"))?;
    if status != wanted {
        return Err(format!("{status}: {text}"));
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Some callers keep their connection, the others come anew with each request.
fn callers(address: SocketAddr, token: &str, enough: &CancellationToken) -> JoinSet<Result<usize, String>> {
    let mut calls = JoinSet::new();
    for place in 0..CALLERS {
        let kept = if place % 2 == 0 { usize::MAX } else { 0 };
        let client = Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(kept)
            .build()
            .unwrap();
        let base = format!("http://{address}");
        calls.spawn(call(client, base, token.to_owned(), place, enough.clone()));
    }
    calls
}

async fn restart(process: &mut Process) {
    process.signal("TERM");
    assert!(process.ended().await.success());
    process.start();
    process.answers("/readyz").await;
}

/// Waits until the balancer sends requests to so many APIs.
async fn until_behind(balancer: &Process, apis: f64) {
    eventually(&format!("{apis} APIs behind the balancer"), LIMIT, async || {
        let now = balancer.metric(r#"haproxy_backend_active_servers{proxy="api"}"#).await;
        (now.to_bits() == apis.to_bits()).then_some(())
    })
    .await;
}

/// Waits until the callers have had more results, each of them one more on the average.
async fn more_results(world: &World, calls: &mut JoinSet<Result<usize, String>>) {
    let before = count(world, super::COMPLETED).await;
    let more = eventually("more jobs end", LIMIT, async || {
        let now = count(world, super::COMPLETED).await;
        (now > before + CALLERS as i64).then_some(())
    });
    tokio::select! {
        () = more => {}
        Some(failed) = calls.join_next() => panic!("a caller has failed: {failed:?}"),
    }
}

/// Ends the callers, none of which may have failed. Answers how many jobs they had.
async fn end(mut calls: JoinSet<Result<usize, String>>, enough: &CancellationToken) -> usize {
    enough.cancel();
    let mut jobs = 0;
    while let Some(called) = tokio::time::timeout(LIMIT, calls.join_next())
        .await
        .expect("callers end")
    {
        jobs += called.unwrap().expect("no request fails");
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request_and_costs_no_attempt() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let notice = || [("CLAIMCHECK_STOP_NOTICE", NOTICE.to_owned())];
        let mut apis = [
            installation.api_with("api-1", notice()).await,
            installation.api_with("api-2", notice()).await,
        ];
        let mut workers = [
            installation.worker("worker-1", []).await,
            installation.worker("worker-2", []).await,
        ];
        let token = Caller::of(&apis[0], "ada").await.token;
        let (balancer, address) = installation.balancer([&apis[0], &apis[1]]).await;
        until_behind(&balancer, 2.0).await;
        let enough = CancellationToken::new();
        let mut calls = callers(address, &token, &enough);
        for _ in 0..ROUNDS {
            for process in apis.iter_mut().chain(&mut workers) {
                more_results(world, &mut calls).await;
                restart(process).await;
                until_behind(&balancer, 2.0).await;
            }
        }
        more_results(world, &mut calls).await;
        let jobs = end(calls, &enough).await;
        println!("{jobs} jobs, {} restarts", ROUNDS * (apis.len() + workers.len()));
        assert_each_settled_once(world, jobs).await;
        for ledger in [
            "SELECT max(attempt)::int8 FROM jobs",
            "SELECT 1 + sum(lapses)::int8 FROM jobs",
        ] {
            assert_eq!(count(world, ledger).await, 1, "{ledger}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apis_that_are_late_for_a_moment_stay_behind_the_balancer() {
    in_world(async |world| {
        hurry(world);
        let installation = Installation::of(world);
        let apis = [
            installation.api_with("api-1", []).await,
            installation.api_with("api-2", []).await,
        ];
        let _worker = installation.worker("worker", []).await;
        let token = Caller::of(&apis[0], "ada").await.token;
        let (balancer, address) = installation.balancer([&apis[0], &apis[1]]).await;
        until_behind(&balancer, 2.0).await;
        let enough = CancellationToken::new();
        let mut calls = callers(address, &token, &enough);
        more_results(world, &mut calls).await;
        let frozen = Instant::now();
        for api in &apis {
            api.signal("STOP");
        }
        eventually("some looks of the balancer's go by", LIMIT, async || {
            (frozen.elapsed() > LATE).then_some(())
        })
        .await;
        for api in &apis {
            api.signal("CONT");
        }
        more_results(world, &mut calls).await;
        let jobs = end(calls, &enough).await;
        assert_each_settled_once(world, jobs).await;
    })
    .await;
}
