//! What happens when a receiver does not take a delivery, or a dispatcher does not live to see it. Time is the database's, and moved.

use axum::response::IntoResponse;
use claimcheck_tests::{Receiver, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Dispatching, LIMIT, bring_forward, completed, count, delivery, endpoint, path, verifies};
use crate::http_face::{answer, with_api};
use crate::http_operators::{a_job, complete};

/// Minutes from one try to the next, less a tenth.
const PAUSES: [f64; 9] = [0.075, 4.5, 27.0, 108.0, 270.0, 540.0, 756.0, 1080.0, 1296.0];

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_receiver_is_tried_ten_times_over_three_days_under_one_id_and_then_disabled_with_a_notice() {
    with_api(async |world, api| {
        let (broken, whole) = (Receiver::answering(StatusCode::BAD_GATEWAY).await, Receiver::start().await);
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &broken.url("/"), json!({"events": ["job.completed"]})).await;
        endpoint(&ada, &whole.url("/"), json!({"events": ["webhook_endpoint.disabled"]})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        for (tries, pause) in PAUSES.iter().enumerate() {
            broken.wait_for(tries + 1).await;
            let waiting = delivery(&ada, &made, "waiting").await;
            assert_eq!(waiting["attempts"].as_u64(), Some(tries as u64 + 1));
            let minutes: f64 = sqlx::query_scalar(
                "SELECT extract(epoch FROM next_at - now())::float8 / 60 FROM webhook_deliveries WHERE status = 'waiting'",
            )
            .fetch_one(&world.pool)
            .await
            .unwrap();
            // The test took some seconds by itself.
            assert!(minutes > pause - 0.1 && minutes < pause * 1.3, "after {} tries: {minutes} min", tries + 1);
            if tries + 1 == PAUSES.len() {
                sqlx::query("UPDATE webhook_endpoints SET failing_since = now() - interval '73 hours' WHERE failing_since IS NOT NULL")
                    .execute(&world.pool)
                    .await
                    .unwrap();
            }
            bring_forward(world).await;
        }
        let ended = delivery(&ada, &made, "failed").await;
        assert_eq!((ended["attempts"].as_u64(), ended["log"].as_array().unwrap().len()), (Some(10), 10));
        assert_eq!((ended["error"].as_str(), ended["status_code"].as_u64()), (Some("status"), Some(502)));
        let came = broken.received();
        assert!(came.iter().all(|one| one.header("webhook-id") == came[0].header("webhook-id")));
        assert!(came.iter().all(|one| one.body == came[0].body), "each attempt says the same");
        assert!(came.iter().all(|one| verifies(one, made["secret"].as_str().unwrap())));

        let notice = whole.wait_for(1).await[0].json();
        assert_eq!(notice["data"]["id"], made["id"]);
        assert_eq!(notice["data"]["reason"], "failing");
        let (_, shown) = answer(ada.get(&path(&made, ""))).await;
        assert_eq!((shown["status"].as_str(), shown["disabled_reason"].as_str()), (Some("disabled"), Some("failing")));
        let audited = "SELECT count(*) FROM audit_log WHERE action = 'webhook_endpoint.disabled'";
        assert_eq!(count(world, audited).await, 1);
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_forgets_the_failures_before_it() {
    with_api(async |world, api| {
        let receiver = Receiver::by(|came| {
            let first = came.place == 0;
            let status = if first {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::OK
            };
            Box::pin(async move { (status, "hello\0there").into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        let job = completed(world, &ada).await;
        delivery(&ada, &made, "waiting").await;
        assert!(answer(ada.get(&path(&made, ""))).await.1["failing_since"].is_i64());
        bring_forward(world).await;
        let logged = delivery(&ada, &made, "delivered").await;
        let codes: Vec<_> = logged["log"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["status_code"].clone())
            .collect();
        assert_eq!(codes, [500, 200]);
        assert_eq!(
            logged["log"][0]["answer"], "hello\u{fffd}there",
            "what Postgres cannot hold is replaced"
        );
        // It may have been what was sent to it.
        let erased = ada
            .request(Method::DELETE, &format!("/v1/jobs/{job}"))
            .send()
            .await
            .unwrap();
        assert!(erased.status().is_success());
        let logged = delivery(&ada, &made, "delivered").await;
        assert!(logged["log"][0]["answer"].is_null() && logged["log"][1]["answer"].is_null());
        assert!(answer(ada.get(&path(&made, ""))).await.1["failing_since"].is_null());
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_puts_the_next_try_off() {
    with_api(async |world, api| {
        let receiver = Receiver::by(|_| {
            Box::pin(async { (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")]).into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let waiting = delivery(&ada, &made, "waiting").await;
        let pause = waiting["next_attempt_at"].as_i64().unwrap() - waiting["created_at"].as_i64().unwrap();
        assert!((3595..=3700).contains(&pause), "{pause} s");
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_disables_at_once_and_what_waits_is_given_up_until_it_is_recovered() {
    with_api(async |world, api| {
        let receiver = Receiver::by(|came| {
            let status = if came.place == 0 {
                StatusCode::GONE
            } else {
                StatusCode::OK
            };
            Box::pin(async move { status.into_response() })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        completed(world, &ada).await;
        let dispatching = Dispatching::start(world);
        let gone = delivery(&ada, &made, "failed").await;
        assert_eq!(
            (gone["error"].as_str(), gone["status_code"].as_u64()),
            (Some("gone"), Some(410))
        );
        let (_, shown) = answer(ada.get(&path(&made, ""))).await;
        assert_eq!(shown["disabled_reason"], "gone");
        // Nothing is made while it is disabled.
        completed(world, &ada).await;
        assert_eq!(count(world, "SELECT count(*) FROM webhook_deliveries").await, 1);
        let event = gone["event_id"].as_str().unwrap();
        let resend = path(&made, &format!("/deliveries/{event}/resend"));
        let recover = path(&made, "/recover");
        let since = json!({"since": gone["created_at"].as_i64().unwrap() - 5});
        for request in [ada.post(&resend), ada.post(&recover).json(&since)] {
            assert_eq!(answer(request).await.0, StatusCode::CONFLICT);
        }
        let enabled = answer(
            ada.request(Method::PATCH, &path(&made, ""))
                .json(&json!({"enabled": true})),
        )
        .await
        .1;
        assert_eq!(
            (enabled["status"].as_str(), enabled["disabled_reason"].is_null()),
            (Some("enabled"), true)
        );
        let (status, recovered) = answer(ada.post(&recover).json(&since)).await;
        assert_eq!(status, StatusCode::OK);
        // The one that was given up, the one that was missed, and the notice of the disabling.
        assert_eq!(
            (recovered["count"].as_u64(), recovered["has_more"].as_bool()),
            (Some(3), Some(false))
        );
        let came = receiver.wait_for(4).await;
        assert_eq!(came.iter().filter(|one| one.header("webhook-id") == event).count(), 2);
        eventually("all are delivered", LIMIT, async || {
            let open = "SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'";
            (count(world, open).await == 0).then_some(())
        })
        .await;
        let (_, nothing) = answer(ada.post(&recover).json(&since)).await;
        assert_eq!(nothing["count"], 0, "what was delivered is not sent again");
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_delivery_is_sent_again_on_request_under_its_own_id() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let event = delivery(&ada, &made, "delivered").await["event_id"].clone();
        let resend = path(&made, &format!("/deliveries/{}/resend", event.as_str().unwrap()));
        assert_eq!(answer(ada.post(&resend)).await.0, StatusCode::ACCEPTED);
        let came = receiver.wait_for(2).await;
        assert_eq!(came[0].header("webhook-id"), came[1].header("webhook-id"));
        let logged = eventually("it is delivered again", LIMIT, async || {
            let logged = delivery(&ada, &made, "delivered").await;
            (logged["attempts"] == 2).then_some(logged)
        })
        .await;
        assert_eq!(logged["log"].as_array().unwrap().len(), 2);
        assert_eq!(answer(eve.post(&resend)).await.0, StatusCode::NOT_FOUND);
        let foreign = completed(world, &eve).await;
        let event: uuid::Uuid = sqlx::query_scalar("SELECT id FROM events WHERE job_id = $1")
            .bind(foreign.parse::<claimcheck_common::domain::JobId>().unwrap().uuid())
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let event = claimcheck_common::domain::EventId::from_uuid(event);
        let foreign = path(&made, &format!("/deliveries/{event}/resend"));
        assert_eq!(
            answer(ada.post(&foreign)).await.0,
            StatusCode::NOT_FOUND,
            "somebody else's event"
        );
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dispatcher_that_dies_has_in_hand_is_sent_again_when_its_lease_ends() {
    with_api(async |world, api| {
        let receiver = Receiver::by(|came| {
            Box::pin(async move {
                if came.place == 0 {
                    std::future::pending::<()>().await;
                }
                StatusCode::OK.into_response()
            })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let first = Dispatching::start(world);
        completed(world, &ada).await;
        receiver.wait_for(1).await;
        first.kill();
        let second = Dispatching::start(world);
        assert_eq!(delivery(&ada, &made, "sending").await["attempts"], 1, "the lease holds");
        sqlx::query("UPDATE webhook_deliveries SET next_at = now() WHERE status = 'sending'")
            .execute(&world.pool)
            .await
            .unwrap();
        let came = receiver.wait_for(2).await;
        assert_eq!(came[0].header("webhook-id"), came[1].header("webhook-id"));
        let logged = delivery(&ada, &made, "delivered").await;
        let errors: Vec<Value> = logged["log"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["error"].clone())
            .collect();
        assert_eq!(errors, [json!("interrupted"), Value::Null]);
        second.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_is_told_to_stop_ends_what_it_has_in_hand() {
    with_api(async |world, api| {
        let (open, opened) = tokio::sync::watch::channel(false);
        let receiver = Receiver::by(move |_| {
            let mut opened = opened.clone();
            Box::pin(async move {
                opened.wait_for(|open| *open).await.unwrap();
                StatusCode::OK.into_response()
            })
        })
        .await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        receiver.wait_for(1).await;
        tokio::join!(dispatching.stop(), async {
            open.send_replace(true);
        });
        assert_eq!(delivery(&ada, &made, "delivered").await["attempts"], 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_our_side_is_given_up_after_ten_tries_and_held_against_nobody() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let (made, jobs) = (
            endpoint(&ada, &receiver.url("/"), json!({})).await,
            json!({"id": "jobs"}),
        );
        let mut job = a_job();
        job["webhook"] = receiver.url("/own").into();
        complete(&world.pool, &ada.submit(&job).await).await;
        // As after a change of the key without the old one.
        world
            .execute_as_owner("UPDATE webhook_endpoints SET secret = 'none'")
            .await;
        let dispatching = Dispatching::start(world);
        eventually("both were tried", LIMIT, async || {
            let once = "SELECT count(*) FROM webhook_deliveries WHERE status = 'waiting' AND attempt = 1";
            (count(world, once).await == 2).then_some(())
        })
        .await;
        bring_forward(world).await;
        eventually("the pause grows", LIMIT, async || {
            let later =
                "SELECT count(*) FROM webhook_deliveries WHERE attempt = 2 AND next_at > now() + interval '4 minutes'";
            (count(world, later).await == 2).then_some(())
        })
        .await;
        eventually("both are given up", LIMIT, async || {
            bring_forward(world).await;
            let failed = "SELECT count(*) FROM webhook_deliveries WHERE status = 'failed'";
            (count(world, failed).await == 2).then_some(())
        })
        .await;
        for whose in [&made, &jobs] {
            let ended = delivery(&ada, whose, "failed").await;
            assert_eq!(
                (ended["attempts"].as_u64(), ended["log"].as_array().unwrap().len()),
                (Some(10), 10)
            );
            assert_eq!(ended["error"], "internal");
        }
        let (_, shown) = answer(ada.get(&path(&made, ""))).await;
        assert_eq!(
            (shown["status"].as_str(), shown["failing_since"].is_null()),
            (Some("enabled"), true)
        );
        assert_eq!(receiver.received().len(), 0);
        dispatching.stop().await;
    })
    .await;
}
