//! Setting endpoints up over HTTP: who may, what is refused, and secrets that change without a gap.

use claimcheck_tests::Receiver;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Dispatching, completed, count, delivery, endpoint, path, verifies, verifies_v1a};
use crate::http_face::{Api, answer, code, config, with_api};
use crate::http_operators::a_job;

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_made_shown_changed_and_deleted_by_its_project_alone() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let settings = json!({"description": "ours", "events": ["job.completed", "job.completed"], "payload": "full",
            "rate_limit": 5, "concurrency": 2, "headers": {"X-Tenant": "7"}});
        let made = endpoint(&ada, &receiver.url("/"), settings).await;
        assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
        assert_eq!(
            (&made["events"], &made["headers"]),
            (&json!(["job.completed"]), &json!(["x-tenant"]))
        );
        let here = path(&made, "");
        let (_, shown) = answer(ada.get(&here)).await;
        assert!(shown.get("secret").is_none(), "{shown}");
        assert_eq!((&shown["rate_limit"], &shown["concurrency"]), (&json!(5), &json!(2)));
        let change = json!({"rate_limit": null, "events": [], "payload": "thin", "headers": {}, "enabled": false});
        let (status, changed) = answer(ada.request(Method::PATCH, &here).json(&change)).await;
        assert_eq!(status, StatusCode::OK, "{changed}");
        assert!(changed["rate_limit"].is_null() && changed["headers"] == json!([]));
        assert_eq!(
            (changed["description"].as_str(), changed["disabled_reason"].as_str()),
            (Some("ours"), Some("requested"))
        );
        assert_eq!(
            answer(ada.get("/v1/webhook_endpoints")).await.1["data"][0]["id"],
            made["id"]
        );

        assert_eq!(answer(eve.get("/v1/webhook_endpoints")).await.1["data"], json!([]));
        let foreign = [
            eve.get(&here),
            eve.request(Method::PATCH, &here).json(&json!({})),
            eve.request(Method::DELETE, &here),
            eve.get(&path(&made, "/secret")),
            eve.post(&path(&made, "/secret/rotate")).json(&json!({})),
            eve.post(&path(&made, "/example")).json(&json!({})),
            eve.get(&path(&made, "/deliveries")),
            eve.post(&path(&made, "/recover")).json(&json!({"since": 0})),
            eve.get(&path(&made, "/stats")),
        ];
        for request in foreign {
            let (status, body) = answer(request).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::NOT_FOUND, "webhook_endpoint_not_found")
            );
        }
        let deleted = ada.request(Method::DELETE, &here).send().await.unwrap();
        assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer(ada.get(&here)).await.0, StatusCode::NOT_FOUND);
        assert_eq!(
            count(world, "SELECT count(*) FROM webhook_endpoints WHERE secret <> ''").await,
            0
        );
        assert_eq!(
            count(
                world,
                "SELECT count(*) FROM audit_log WHERE action LIKE 'webhook_endpoint.%'"
            )
            .await,
            3
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_refused_by_name() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let url = "https://example.org/hook";
        for (body, param) in [
            (json!({}), "url"),
            (json!({"url": 5}), "url"),
            (
                json!({"url": format!("https://example.org/{}", "x".repeat(2048))}),
                "url",
            ),
            (json!({"url": url, "events": ["job.done"]}), "events"),
            (json!({"url": url, "events": "job.completed"}), "events"),
            (json!({"url": url, "payload": "fat"}), "payload"),
            (json!({"url": url, "rate_limit": 0}), "rate_limit"),
            (json!({"url": url, "concurrency": 101}), "concurrency"),
            (json!({"url": url, "headers": {"Host": "inner"}}), "headers"),
            (json!({"url": url, "headers": {"webhook-id": "1"}}), "headers"),
            (json!({"url": url, "headers": {"x": "a\nb"}}), "headers"),
            (json!({"url": url, "secret": "whsec_x"}), "secret"),
        ] {
            let (status, answered) = answer(ada.post("/v1/webhook_endpoints").json(&body)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answered}");
            let named = answered["error"]["param"].as_str().unwrap();
            assert!(named.starts_with(param), "{body}: {answered}");
        }
        let made = endpoint(&ada, url, json!({})).await;
        for (more, body) in [
            ("/secret/rotate", json!({"overlap": 604_801})),
            ("/secret/rotate", json!({"overlap": -1})),
            ("/example", json!({"type": "job.done"})),
            ("/recover", json!({})),
            ("/recover", json!({"since": 10, "until": 5})),
            ("/recover", json!({"since": 10, "after": "job_1"})),
        ] {
            let (status, answered) = answer(ada.post(&path(&made, more)).json(&body)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{more} {body}: {answered}");
        }
        for (method, more) in [(Method::PATCH, ""), (Method::DELETE, ""), (Method::POST, "/example")] {
            let request = ada
                .request(method, &format!("/v1/webhook_endpoints/jobs{more}"))
                .json(&json!({}));
            let (status, answered) = answer(request).await;
            assert_eq!(
                (status, answered["error"]["param"].as_str()),
                (StatusCode::BAD_REQUEST, Some("endpoint_id"))
            );
        }
        assert_eq!(
            count(world, "SELECT count(*) FROM webhook_endpoints WHERE url IS NOT NULL").await,
            1
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_secrets_sign_until_the_overlap_is_over() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let rotate = path(&made, "/secret/rotate");
        let (status, rotated) = answer(ada.post(&rotate).json(&json!({"overlap": 3600}))).await;
        assert_eq!(status, StatusCode::OK, "{rotated}");
        assert_eq!(rotated["old_secret"], made["secret"]);
        assert_ne!(rotated["secret"], made["secret"]);
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let during = &receiver.wait_for(1).await[0];
        for which in [&made, &rotated] {
            assert!(verifies(during, which["secret"].as_str().unwrap()));
            assert!(verifies_v1a(during, which["public_key"].as_str().unwrap()));
        }
        sqlx::query("UPDATE webhook_endpoints SET old_secret_until = now()")
            .execute(&world.pool)
            .await
            .unwrap();
        completed(world, &ada).await;
        let after = &receiver.wait_for(2).await[1];
        assert!(verifies(after, rotated["secret"].as_str().unwrap()));
        assert!(!verifies(after, made["secret"].as_str().unwrap()));
        assert!(!verifies_v1a(after, made["public_key"].as_str().unwrap()));
        dispatching.stop().await;
        let (_, shown) = answer(ada.get(&path(&made, "/secret"))).await;
        assert!(shown["old_secret"].is_null() && shown["secret"] == rotated["secret"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_secret_that_does_not_open_keeps_nothing_from_being_sent() {
    with_api(async |world, api| {
        let receiver = Receiver::start().await;
        let ada = api.user("ada").await;
        let made = endpoint(&ada, &receiver.url("/"), json!({})).await;
        let rotate = ada.post(&path(&made, "/secret/rotate"));
        let (_, rotated) = answer(rotate.json(&json!({"overlap": 3600}))).await;
        world
            .execute_as_owner("UPDATE webhook_endpoints SET old_secret = 'none'")
            .await;
        let dispatching = Dispatching::start(world);
        completed(world, &ada).await;
        let came = &receiver.wait_for(1).await[0];
        assert!(verifies(came, rotated["secret"].as_str().unwrap()));
        delivery(&ada, &made, "delivered").await;
        dispatching.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_example_goes_to_one_endpoint_alone_and_carries_its_headers() {
    with_api(async |world, api| {
        let (one, other) = (Receiver::start().await, Receiver::start().await);
        let ada = api.user("ada").await;
        let more = json!({"events": ["job.failed"], "headers": {"Authorization": "Bearer open sesame"}});
        let made = endpoint(&ada, &one.url("/"), more).await;
        endpoint(&ada, &other.url("/"), json!({})).await;
        let dispatching = Dispatching::start(world);
        let (status, sent) = answer(ada.post(&path(&made, "/example")).json(&json!({"type": "job.expired"}))).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{sent}");
        let came = &one.wait_for(1).await[0];
        assert_eq!(came.header("webhook-id"), sent["event_id"]);
        assert_eq!(came.header("authorization"), "Bearer open sesame");
        assert!(verifies(came, made["secret"].as_str().unwrap()));
        let body = came.json();
        assert_eq!(
            (body["type"].as_str(), body["data"]["example"].as_bool()),
            (Some("job.expired"), Some(true))
        );
        delivery(&ada, &made, "delivered").await;
        dispatching.stop().await;
        assert!(other.received().is_empty());
        assert_eq!(
            answer(ada.get("/v1/events")).await.1["data"],
            json!([]),
            "the feed has no examples"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_secrets_nor_headers_stand_readable_in_the_database() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let more = json!({"headers": {"Authorization": "Bearer open sesame"}});
        let made = endpoint(&ada, "https://example.org/", more).await;
        let rows: String = sqlx::query_scalar("SELECT string_agg(to_jsonb(p)::text, '') FROM webhook_endpoints p")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let sealed: Vec<u8> = sqlx::query_scalar("SELECT secret || headers FROM webhook_endpoints")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let plain = made["secret"].as_str().unwrap().strip_prefix("whsec_").unwrap();
        assert!(!rows.contains(plain) && !rows.contains("sesame"));
        assert!(!sealed.windows(6).any(|part| part == b"sesame"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_there_are_no_webhooks_and_everything_else_works() {
    with_api(async |world, _| {
        world.webhooks.key = None;
        let api = Api::start_with(config(world)).await;
        let ada = api.user("ada").await;
        let (status, body) = answer(
            ada.post("/v1/webhook_endpoints")
                .json(&json!({"url": "https://example.org/"})),
        )
        .await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains("CLAIMCHECK_WEBHOOK_KEY")
        );
        let mut job = a_job();
        job["webhook"] = "https://example.org/".into();
        assert_eq!(
            answer(ada.post("/v1/jobs").json(&job)).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        completed(world, &ada).await;
        assert_eq!(answer(ada.get("/v1/events")).await.0, StatusCode::OK);
        api.stop().await;
    })
    .await;
}
