//! Waiting for a job over HTTP: validators, long polls, and what wakes them.

use std::time::{Duration, Instant};

use claimcheck_common::domain::{Choice, Completion, FinishReason, JobId, JobKey, JobStatus, Usage, WorkerId};
use claimcheck_common::store::settle::{Settled, Settlement};
use claimcheck_common::store::{claim, settle};
use claimcheck_tests::World;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::http_face::{Session, answer, with_api};

const LEASE: Duration = Duration::from_mins(1);

async fn claim_it(world: &World, id: &str) -> JobKey {
    let id: JobId = id.parse().unwrap();
    claim::claim(&world.pool, WorkerId::new(), vec![id], LEASE)
        .await
        .unwrap()[0]
        .key
}

async fn finish(world: &World, key: JobKey) {
    let completion = Completion {
        choices: vec![Choice {
            text: " there was".to_owned(),
            index: 0,
            finish_reason: Some(FinishReason::Length),
            logprobs: None,
            tokens: Vec::new(),
        }],
        usage: Usage::new(2, 3),
    };
    let settled = settle::settle_group(
        &world.pool,
        vec![Settlement::completed(key, completion)],
        "test".to_owned(),
    );
    let expected = Settled {
        key,
        status: JobStatus::Completed,
        cancel_latency: None,
    };
    assert_eq!(settled.await.unwrap(), [expected]);
}

async fn etag(session: &Session, id: &str) -> String {
    let response = session.get(&format!("/v1/jobs/{id}")).send().await.unwrap();
    response.headers()["etag"].to_str().unwrap().to_owned()
}

/// A long poll that has begun to wait: the request is sent and not answered.
fn waiting(session: &Session, path: &str, etag: Option<String>) -> tokio::task::JoinHandle<(StatusCode, Value)> {
    let mut request = session.get(path);
    if let Some(etag) = etag {
        request = request.header("if-none-match", etag);
    }
    tokio::spawn(answer(request))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_carries_its_output_as_a_text_completion() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let key = claim_it(world, &id).await;
        assert_eq!(ada.job(&id).await["status"], "in_progress");
        finish(world, key).await;
        let job = ada.job(&id).await;
        assert_eq!(
            (job["status"].as_str(), job["attempt"].as_u64()),
            (Some("completed"), Some(1))
        );
        assert_eq!(job["output"]["object"], "text_completion");
        assert_eq!(
            job["output"]["choices"],
            json!([{"text": " there was", "index": 0, "finish_reason": "length", "logprobs": null}])
        );
        assert_eq!(
            job["usage"],
            json!({"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7})
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_job_is_304_and_a_changed_one_is_not() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let path = format!("/v1/jobs/{id}");
        let known = etag(&ada, &id).await;
        assert!(known.starts_with('"'), "a strong validator: {known}");
        let ask = || ada.get(&path).header("if-none-match", &known).send();
        let unchanged = ask().await.unwrap();
        assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(unchanged.headers()["etag"], known.as_str());
        claim_it(world, &id).await;
        assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_returns_at_the_end_and_not_at_a_change_before() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let began = Instant::now();
        let polls: Vec<_> = (0..50)
            .map(|_| waiting(&ada, &format!("/v1/jobs/{id}?wait=60"), None))
            .collect();
        let key = claim_it(world, &id).await;
        finish(world, key).await;
        for poll in polls {
            assert_eq!(poll.await.unwrap().1["status"], "completed");
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it was woken and did not wait its time out"
        );
        // An ended job is answered at once.
        assert_eq!(
            answer(ada.get(&format!("/v1/jobs/{id}?wait=60"))).await.1["status"],
            "completed"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_with_a_validator_returns_at_the_first_change() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let known = etag(&ada, &id).await;
        let poll = waiting(&ada, &format!("/v1/jobs/{id}?wait=60"), Some(known.clone()));
        claim_it(world, &id).await;
        assert_eq!(poll.await.unwrap().1["status"], "in_progress");
        // What is old news already is told at once.
        let stale = answer(
            ada.get(&format!("/v1/jobs/{id}?wait=60"))
                .header("if-none-match", known),
        )
        .await;
        assert_eq!(stale.1["status"], "in_progress");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_without_news_ends_with_its_time() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let known = etag(&ada, &id).await;
        let path = format!("/v1/jobs/{id}?wait=1");
        let began = Instant::now();
        assert_eq!(answer(ada.get(&path)).await.1["status"], "queued");
        assert!(began.elapsed() >= Duration::from_secs(1));
        let unchanged = ada.get(&path).header("if-none-match", known).send().await.unwrap();
        assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
        for bad in ["61", "-1", "1.5", "x", ""] {
            let (status, body) = answer(ada.get(&format!("/v1/jobs/{id}?wait={bad}"))).await;
            assert_eq!(
                (status, body["error"]["param"].as_str()),
                (StatusCode::BAD_REQUEST, Some("wait")),
                "{bad}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_without_a_notification_costs_a_waiter_time_and_not_the_answer() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let poll = waiting(&ada, &format!("/v1/jobs/{id}?wait=60"), None);
        world
            .execute_as_owner("UPDATE jobs SET status = 'cancelled', finished_at = now()")
            .await;
        let began = Instant::now();
        assert_eq!(poll.await.unwrap().1["status"], "cancelled");
        assert!(began.elapsed() < Duration::from_secs(30));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_process_answers_its_long_polls_first() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "Once"})).await;
        let began = Instant::now();
        let poll = waiting(&ada, &format!("/v1/jobs/{id}?wait=60"), None);
        claimcheck_tests::eventually("the poll is registered", Duration::from_secs(10), async || {
            let metrics = api.get("/metrics").send().await.ok()?.text().await.ok()?;
            let waiting = metrics
                .lines()
                .find_map(|line| line.strip_prefix("claimcheck_http_waiting "))?;
            (waiting != "0").then_some(())
        })
        .await;
        api.begin_stop();
        assert_eq!(poll.await.unwrap().1["status"], "queued");
        assert!(began.elapsed() < Duration::from_secs(30));
    })
    .await;
}
