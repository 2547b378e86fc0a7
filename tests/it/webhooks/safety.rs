//! Where webhooks may not go, and what a receiver may not do to us.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use claimcheck_tests::Receiver;
use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::json;

use super::{Dispatching, completed, delivery, endpoint, path};
use crate::http_face::{Api, answer, code, config, with_api};
use crate::http_operators::a_job;

/// What leads inward, or nowhere that a webhook may go, in all the ways of writing it.
const INWARD: [&str; 32] = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://0/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001::1]/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.0.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://0xa9fea9fe/",
    "https://[fd00::1]/",
    "https://[fe80::1]/",
    "https://[ff02::1]/",
    "https://①②⑦.⓪.⓪.①/",
    "http://example.org/",
    "https://example.org:6379/",
    "https://ada:secret@example.org/",
    "file:///etc/passwd",
    "gopher://example.org/",
    "example.org",
    "",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_url_that_leads_inward_is_taken_for_an_endpoint_or_a_job() {
    with_api(async |world, _| {
        world.webhooks.allow.clear();
        let api = Api::start_with(config(world)).await;
        let ada = api.user("ada").await;
        for url in INWARD {
            let (status, body) = answer(ada.post("/v1/webhook_endpoints").json(&json!({"url": url}))).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::BAD_REQUEST, "invalid_value"),
                "{url}"
            );
            assert_eq!(body["error"]["param"], "url", "{url}");
            let mut job = a_job();
            job["webhook"] = url.into();
            let (status, body) = answer(ada.post("/v1/jobs").json(&job)).await;
            assert_eq!(
                (status, body["error"]["param"].as_str()),
                (StatusCode::BAD_REQUEST, Some("webhook")),
                "{url}"
            );
        }
        let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(jobs, 0);
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_inward_and_a_network_that_was_closed_since_are_not_called() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let literal = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let named = endpoint(&ada, "https://localhost:8443/", json!({})).await;
        world.webhooks.allow.clear();
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        for made in [&literal, &named] {
            let logged = delivery(&ada, made, "waiting").await;
            assert_eq!(logged["error"], "address_not_allowed", "{logged}");
            assert!(logged["status_code"].is_null());
        }
        dispatching.stop().await;
        assert!(receiver.received().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    with_api(async |world, api| {
        let inner = Receiver::start().await;
        let place = inner.url("/admin");
        let receiver = Receiver::by(move |_| {
            let place = place.clone();
            Box::pin(async move { (StatusCode::TEMPORARY_REDIRECT, [("location", place)]).into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let logged = delivery(&ada, &made, "waiting").await;
        assert_eq!(
            (logged["error"].as_str(), logged["status_code"].as_u64()),
            (Some("redirect"), Some(307))
        );
        dispatching.stop().await;
        assert!(inner.received().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_without_end_only_the_beginning_is_read() {
    with_api(async |world, api| {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let receiver = Receiver::by(move |_| {
            let counted = counted.clone();
            // A gigabyte, a chunk at a time.
            let chunk = Bytes::from(vec![b'x'; 1 << 16]);
            let chunks = futures::stream::iter(0..1 << 14).map(move |_| {
                counted.fetch_add(chunk.len(), Ordering::Relaxed);
                Ok::<_, std::io::Error>(chunk.clone())
            });
            Box::pin(async move { Body::from_stream(chunks).into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let logged = delivery(&ada, &made, "delivered").await;
        assert_eq!(logged["log"][0]["answer"].as_str().unwrap().len(), 1024);
        dispatching.stop().await;
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < 64 << 20, "{sent} bytes left the receiver before it was cut off");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_drips_or_never_answers_is_given_up_in_time() {
    with_api(async |world, api| {
        world.webhooks.timeout = Duration::from_millis(300);
        let mute = Receiver::by(|_| Box::pin(std::future::pending())).await;
        let dripping = Receiver::by(|_| {
            let drops = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b".")), ()))
            });
            Box::pin(async move { Body::from_stream(drops).into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let (silent, slow) = (
            endpoint(&ada, &mute.url("/"), json!({})).await,
            endpoint(&ada, &dripping.url("/"), json!({})).await,
        );
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let logged = delivery(&ada, &silent, "waiting").await;
        assert_eq!(
            (logged["error"].as_str(), logged["status_code"].is_null()),
            (Some("timeout"), true)
        );
        let logged = delivery(&ada, &slow, "delivered").await;
        assert_eq!(logged["log"][0]["status_code"], 200, "what its status said holds");
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_port_is_logged_without_a_status() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        // Nothing listens on the discard port.
        let made = endpoint(&ada, "http://127.0.0.1:9/", json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let logged = delivery(&ada, &made, "waiting").await;
        assert_eq!(logged["error"], "connect");
        assert!(
            logged["log"][0]["message"]
                .as_str()
                .unwrap()
                .starts_with("No answer came")
        );
        dispatching.stop().await;
        let (_, shown) = answer(ada.get(&path(&made, ""))).await;
        assert!(shown["failing_since"].is_i64());
    })
    .await;
}
