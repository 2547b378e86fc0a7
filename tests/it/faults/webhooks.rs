//! Dispatchers killed in the middle of a delivery, and receivers that see each webhook all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::IntoResponse;
use claimcheck_tests::{Installation, Receiver, Stack, in_world_on};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Caller, hurry, job};

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_killed_in_the_middle_of_a_delivery_loses_nothing_and_the_id_stays() {
    let stack = Stack::up().await;
    in_world_on(stack.servers(), async |world| {
        hurry(world);
        // A lease of 7 s.
        world.webhooks.timeout = Duration::from_secs(1);
        // It hangs for as long as the first dispatcher lives. Hanging any longer would cost a delivery its second try, and the
        // third comes after minutes.
        let hanging = Arc::new(AtomicBool::new(true));
        let receiver = Receiver::by({
            let hanging = Arc::clone(&hanging);
            move |_| {
                let hangs = hanging.load(Ordering::SeqCst);
                Box::pin(async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    StatusCode::OK.into_response()
                })
            }
        })
        .await;
        let installation = Installation::of(world);
        let api = installation.api().await;
        let _worker = installation.generator("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        let made = caller
            .post("/v1/webhook_endpoints")
            .json(&json!({"url": receiver.url("/"), "concurrency": 2}))
            .send()
            .await
            .unwrap();
        assert_eq!(made.status(), StatusCode::CREATED);
        let mut first = installation.dispatcher("first").await;
        let ids = [
            caller.submit("a", &job(0, 4)).await,
            caller.submit("b", &job(1, 4)).await,
            caller.submit("c", &job(2, 4)).await,
        ];
        receiver.wait_for(1).await;
        first.kill();
        let cut_off = receiver.received();
        hanging.store(false, Ordering::SeqCst);
        let _second = installation.dispatcher("second").await;
        let told = async || -> Vec<(String, Value)> {
            let seen = receiver.received();
            let told = seen.iter().skip(cut_off.len());
            told.map(|one| (one.header("webhook-id").to_owned(), one.json()["data"]["id"].clone()))
                .collect()
        };
        claimcheck_tests::eventually("each job was told", super::LIMIT, async || {
            let told = told().await;
            ids.iter()
                .all(|id| told.iter().any(|(_, job)| job == id.as_str()))
                .then_some(())
        })
        .await;
        let again = told().await;
        for one in &cut_off {
            let cut_off = one.header("webhook-id");
            assert!(
                again.iter().any(|(id, _)| id == cut_off),
                "{cut_off} came again under its id"
            );
        }
        super::until_count(
            world,
            3,
            "SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'",
        )
        .await;
        let interrupted = "SELECT count(*) FROM webhook_attempts WHERE error = 'interrupted'";
        assert!(super::count(world, interrupted).await >= 1);
    })
    .await;
}
