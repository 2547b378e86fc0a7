//! Webhooks, from the settle to a receiver: nothing is lost, nothing is sent where it may not, and nobody waits for anybody else.

mod endpoints;
mod feed;
mod latency;
mod libraries;
mod limits;
mod retries;
mod safety;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claimcheck_tests::{Received, Receiver, World, eventually};
use claimcheck_worker::webhooks::Dispatch;
use reqwest::StatusCode;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::http_face::{Session, answer, with_api};
use crate::http_operators::{a_job, complete, fail};

const LIMIT: Duration = Duration::from_secs(30);

/// A dispatcher within the test's process.
struct Dispatching {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Dispatching {
    fn start(world: &World) -> Self {
        let vault = world.webhooks.vault().unwrap().unwrap();
        let dispatch = Dispatch::new(world.pool.clone(), world.webhooks.clone(), vault).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(dispatch.run(stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it ends without a panic");
    }

    /// Ends it as a crash would: nothing is recorded.
    fn kill(self) {
        self.task.abort();
    }
}

/// An endpoint at `url`, with more settings in `more`. Answers the whole body, with the secret.
async fn endpoint(session: &Session, url: &str, more: Value) -> Value {
    let mut body = json!({"url": url});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, made) = answer(session.post("/v1/webhook_endpoints").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made
}

fn path(endpoint: &Value, more: &str) -> String {
    format!("/v1/webhook_endpoints/{}{more}", endpoint["id"].as_str().unwrap())
}

/// Submits a job and completes it. Answers its id.
async fn completed(world: &World, session: &Session) -> String {
    let id = session.submit(&a_job()).await;
    complete(&world.pool, &id).await;
    id
}

/// The only delivery of an endpoint, once its status is `status`, with its attempts.
async fn delivery(session: &Session, endpoint: &Value, status: &str) -> Value {
    let list = eventually(&format!("the delivery is {status}"), LIMIT, async || {
        let (_, list) = answer(session.get(&path(endpoint, "/deliveries"))).await;
        (list["data"][0]["status"] == status).then_some(list)
    })
    .await;
    let event = list["data"][0]["event_id"].as_str().unwrap();
    answer(session.get(&path(endpoint, &format!("/deliveries/{event}"))))
        .await
        .1
}

/// Lets the waiting deliveries' time come, by the database's clock.
async fn bring_forward(world: &World) {
    sqlx::query("UPDATE webhook_deliveries SET next_at = now() - interval '1 second' WHERE status = 'waiting'")
        .execute(&world.pool)
        .await
        .unwrap();
}

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

/// Whether the standard's own library takes it with this secret.
fn verifies(came: &Received, secret: &str) -> bool {
    let webhook = Webhook::new(secret).unwrap();
    webhook.verify(&came.body, &came.headers).is_ok()
}

/// Whether one of its asymmetric signatures is by this key.
fn verifies_v1a(came: &Received, public_key: &str) -> bool {
    let key = STANDARD.decode(public_key.strip_prefix("whpk_").unwrap()).unwrap();
    let head = format!("{}.{}.", came.header("webhook-id"), came.header("webhook-timestamp"));
    let message = [head.as_bytes(), &came.body].concat();
    let signatures = came.header("webhook-signature").split(' ');
    signatures
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1a,")?).ok())
        .any(|signature| {
            UnparsedPublicKey::new(&ED25519, &key)
                .verify(&message, &signature)
                .is_ok()
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_s_end_is_told_once_and_the_standard_s_library_verifies_it() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/hook"), json!({})).await;
        let dispatching = Dispatching::start(world);
        let id = completed(world, &ada).await;
        let came = &receiver.wait_for(1).await[0];
        assert!(verifies(came, made["secret"].as_str().unwrap()));
        assert!(verifies_v1a(came, made["public_key"].as_str().unwrap()));
        assert_eq!(came.header("content-type"), "application/json");
        let body = came.json();
        assert_eq!(came.header("webhook-id"), body["id"]);
        assert_eq!(
            (body["type"].as_str(), body["object"].as_str()),
            (Some("job.completed"), Some("event"))
        );
        assert_eq!(
            body["data"],
            json!({"id": id, "object": "job", "status": "completed", "url": format!("/v1/jobs/{id}")})
        );
        let logged = delivery(&ada, &made, "delivered").await;
        assert_eq!(
            (logged["attempts"].as_u64(), logged["job_id"].as_str()),
            (Some(1), Some(id.as_str()))
        );
        assert_eq!(logged["log"][0]["status_code"], 204);
        assert!(logged["log"][0]["latency_ms"].is_u64() && logged["log"][0]["error"].is_null());
        let (_, stats) = answer(ada.get(&path(&made, "/stats"))).await;
        assert_eq!(
            (stats["delivered"].as_u64(), stats["attempts"].as_u64()),
            (Some(1), Some(1))
        );
        dispatching.stop().await;
        assert_eq!(receiver.received().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ending_is_told_to_those_who_want_it_and_a_start_only_on_request() {
    with_api(async |world, api| {
        let (all, some, starts) = (
            Receiver::start().await,
            Receiver::start().await,
            Receiver::start().await,
        );
        let ada = api.user("ada").await;
        endpoint(&ada, &all.url("/"), json!({})).await;
        endpoint(&ada, &some.url("/"), json!({"events": ["job.failed"]})).await;
        let id = completed(world, &ada).await;
        assert_eq!(
            count(world, "SELECT count(*) FROM events WHERE type = 'job.started'").await,
            0
        );
        endpoint(&ada, &starts.url("/"), json!({"events": ["job.started"]})).await;
        let dispatching = Dispatching::start(world);
        let failed = ada.submit(&a_job()).await;
        let key = crate::store::claim_one(&world.pool, failed.parse().unwrap())
            .await
            .unwrap();
        let begun = vec![(key, std::time::Instant::now())];
        // Twice: an attempt's start is told once.
        for _ in 0..2 {
            claimcheck_common::store::lease::mark_started(&world.pool, begun.clone())
                .await
                .unwrap();
        }
        let broken = claimcheck_common::domain::JobError::server("broken", "It broke.");
        let failure = claimcheck_common::store::settle::Settlement::failed(key, broken);
        claimcheck_common::store::settle::settle_group(&world.pool, vec![failure], "worker:test".to_owned())
            .await
            .unwrap();
        let cancelled = ada.submit(&a_job()).await;
        answer(ada.post(&format!("/v1/jobs/{cancelled}/cancel"))).await;
        let kinds = |came: &[Received]| -> Vec<String> {
            let mut kinds: Vec<_> = came
                .iter()
                .map(|one| one.json()["type"].as_str().unwrap().to_owned())
                .collect();
            kinds.sort();
            kinds
        };
        assert_eq!(
            kinds(&all.wait_for(3).await),
            ["job.cancelled", "job.completed", "job.failed"]
        );
        assert_eq!(kinds(&some.wait_for(1).await), ["job.failed"]);
        let started = starts.wait_for(1).await;
        assert_eq!(kinds(&started), ["job.started"]);
        assert_eq!(started[0].json()["data"]["status"], "in_progress");
        dispatching.stop().await;
        assert_eq!(
            (all.received().len(), some.received().len(), starts.received().len()),
            (3, 1, 1)
        );
        assert_ne!(id, failed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_job_s_start_that_is_written_with_its_end_is_told_too() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let receiver = Receiver::start().await;
        endpoint(
            &ada,
            &receiver.url("/"),
            json!({"events": ["job.started", "job.completed"]}),
        )
        .await;
        let id = ada.submit(&a_job()).await;
        let key = crate::store::claim_one(&world.pool, id.parse().unwrap()).await.unwrap();
        let mut ending = claimcheck_common::store::settle::Settlement::completed(key, crate::store::completion("x"));
        ending.started = Some(std::time::Instant::now());
        claimcheck_common::store::settle::settle_group(&world.pool, vec![ending], "worker:test".to_owned())
            .await
            .unwrap();
        let dispatching = Dispatching::start(world);
        let mut kinds: Vec<_> = receiver
            .wait_for(2)
            .await
            .iter()
            .map(|one| one.json()["type"].clone())
            .collect();
        kinds.sort_by_key(ToString::to_string);
        assert_eq!(kinds, ["job.completed", "job.started"]);
        dispatching.stop().await;
        assert_eq!(
            claimcheck_tests::promises::broken(&world.pool).await,
            Vec::<String>::new()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_brings_its_own_url_and_is_told_in_full_if_it_likes() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let dispatching = Dispatching::start(world);
        let mut job = a_job();
        job["webhook"] = receiver.url("/thin").into();
        let first = ada.submit(&job).await;
        complete(&world.pool, &first).await;
        let came = receiver.wait_for(1).await;
        assert_eq!(
            (came[0].path.as_str(), came[0].json()["data"]["job"].is_null()),
            ("/thin", true)
        );
        let (_, secret) = answer(ada.get("/v1/webhook_endpoints/jobs/secret")).await;
        assert!(verifies(&came[0], secret["secret"].as_str().unwrap()));

        job["webhook"] = json!({"url": receiver.url("/full"), "payload": "full", "events": ["job.failed"]});
        let second = ada.submit(&job).await;
        fail(&world.pool, &second).await;
        let came = receiver.wait_for(2).await;
        assert_eq!(came[1].path, "/full");
        assert_eq!(came[1].json()["data"]["job"], ada.job(&second).await);

        // Done again, it is told again, to the same place.
        let (_, again) = answer(ada.post(&format!("/v1/jobs/{second}/retry"))).await;
        fail(&world.pool, again["id"].as_str().unwrap()).await;
        assert_eq!(receiver.wait_for(3).await[2].path, "/full");
        dispatching.stop().await;
        let (_, list) = answer(ada.get("/v1/webhook_endpoints/jobs/deliveries")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), 3, "{list}");
        let (_, own) = answer(ada.get("/v1/webhook_endpoints")).await;
        assert_eq!(
            own["data"],
            json!([]),
            "the signer of jobs' URLs is no endpoint of one's own"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_payload_that_would_be_too_large_leaves_the_job_out() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        endpoint(&ada, &receiver.url("/"), json!({"payload": "full"})).await;
        let dispatching = Dispatching::start(world);
        let id = ada.submit(&a_job()).await;
        let key = crate::store::claim_one(&world.pool, id.parse().unwrap()).await.unwrap();
        crate::store::settle_completed(&world.pool, key, &"x".repeat(20_000)).await;
        let came = &receiver.wait_for(1).await[0];
        assert!(came.body.len() < 20_000);
        let data = &came.json()["data"];
        assert_eq!(
            (data["id"].as_str(), data["omitted"].as_str()),
            (Some(id.as_str()), Some("too_large"))
        );
        assert!(data["job"].is_null());
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_nobody_wants_leaves_no_delivery_and_wakes_nobody() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let receiver = Receiver::start().await;
        endpoint(&eve, &receiver.url("/"), json!({})).await;
        let paused = endpoint(&ada, &receiver.url("/"), json!({})).await;
        answer(
            ada.request(reqwest::Method::PATCH, &path(&paused, ""))
                .json(&json!({"enabled": false})),
        )
        .await;
        completed(world, &ada).await;
        assert_eq!(count(world, "SELECT count(*) FROM events").await, 1);
        assert_eq!(count(world, "SELECT count(*) FROM webhook_deliveries").await, 0);
    })
    .await;
}
