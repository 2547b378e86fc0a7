//! One receiver's slowness is its own business; limits hold over any number of dispatchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::response::IntoResponse;
use claimcheck_tests::{Receiver, eventually};
use reqwest::StatusCode;
use serde_json::json;
use tokio::sync::watch;

use super::{Dispatching, LIMIT, completed, count, endpoint};
use crate::http_face::with_api;

/// A receiver that holds every request until it is opened, and how many it has held at once.
async fn held() -> (Receiver, watch::Sender<bool>, Arc<AtomicUsize>) {
    let (open, opened) = watch::channel(false);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let receiver = Receiver::by(move |_| {
        let (mut opened, now, most) = (opened.clone(), now.clone(), most.clone());
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            opened.wait_for(|open| *open).await.unwrap();
            now.fetch_sub(1, Ordering::SeqCst);
            StatusCode::OK.into_response()
        })
    })
    .await;
    (receiver, open, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    with_api(async |world, api| {
        let (hanging, open, most) = held().await;
        let quick = Receiver::start().await;
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        endpoint(&ada, &hanging.url("/"), json!({"concurrency": 2})).await;
        endpoint(&ada, &quick.url("/ada"), json!({})).await;
        endpoint(&eve, &quick.url("/eve"), json!({})).await;
        // So few that the hanging one could hold them all.
        world.webhooks.in_flight = 4;
        let dispatching = Dispatching::start(world);
        for _ in 0..8 {
            completed(world, &ada).await;
            completed(world, &eve).await;
        }
        quick.wait_for(16).await;
        assert_eq!(hanging.received().len(), 2, "its limit");
        open.send_replace(true);
        hanging.wait_for(8).await;
        dispatching.stop().await;
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert_eq!(
            count(
                world,
                "SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'"
            )
            .await,
            0
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_dispatchers_send_each_delivery_once_and_keep_an_endpoint_s_limit_together() {
    with_api(async |world, api| {
        let (receiver, open, most) = held().await;
        let ada = api.user("ada").await;
        endpoint(&ada, &receiver.url("/"), json!({"concurrency": 3})).await;
        for _ in 0..24 {
            completed(world, &ada).await;
        }
        let dispatching: Vec<_> = (0..3).map(|_| Dispatching::start(world)).collect();
        receiver.wait_for(3).await;
        open.send_replace(true);
        receiver.wait_for(24).await;
        eventually("all are delivered", LIMIT, async || {
            let open = "SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'";
            (count(world, open).await == 0).then_some(())
        })
        .await;
        for one in dispatching {
            one.stop().await;
        }
        let mut ids: Vec<_> = receiver
            .received()
            .iter()
            .map(|one| one.header("webhook-id").to_owned())
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!((ids.len(), receiver.received().len()), (24, 24));
        assert!(
            most.load(Ordering::SeqCst) <= 3,
            "{} at once",
            most.load(Ordering::SeqCst)
        );
        assert_eq!(
            count(world, "SELECT max(attempt)::int8 FROM webhook_deliveries").await,
            1
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_s_rate_limit_spreads_its_deliveries() {
    with_api(async |world, api| {
        let (limited, free) = (Receiver::start().await, Receiver::start().await);
        let ada = api.user("ada").await;
        endpoint(&ada, &limited.url("/"), json!({"rate_limit": 4})).await;
        endpoint(&ada, &free.url("/"), json!({})).await;
        for _ in 0..12 {
            completed(world, &ada).await;
        }
        let dispatching = Dispatching::start(world);
        free.wait_for(12).await;
        let came = limited.wait_for(12).await;
        dispatching.stop().await;
        // A second's worth at once, then four a second: the last one comes two seconds after the first.
        let took = came[11].at - came[0].at;
        assert!(took >= Duration::from_millis(1700), "{took}");
        for (early, late) in came.iter().zip(came.iter().skip(9)) {
            assert!(
                late.at - early.at >= Duration::from_millis(900),
                "ten within {}",
                late.at - early.at
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_gets_one_at_a_time() {
    with_api(async |world, api| {
        let (receiver, open, most) = held().await;
        let ada = api.user("ada").await;
        endpoint(&ada, &receiver.url("/"), json!({})).await;
        sqlx::query("UPDATE webhook_endpoints SET failing_since = now()")
            .execute(&world.pool)
            .await
            .unwrap();
        for _ in 0..5 {
            completed(world, &ada).await;
        }
        let dispatching = Dispatching::start(world);
        receiver.wait_for(1).await;
        assert_eq!(most.load(Ordering::SeqCst), 1);
        open.send_replace(true);
        receiver.wait_for(5).await;
        dispatching.stop().await;
    })
    .await;
}
