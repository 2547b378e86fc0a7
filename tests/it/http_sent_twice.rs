//! Requests that are sent again: with a key, under an id of the caller's own, or by a client library that counts.

use std::collections::BTreeSet;
use std::time::Duration;

use claimcheck_tests::{World, eventually};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::http_face::{Api, MODEL, Session, answer, code, config, with_api};

const LIMIT: Duration = Duration::from_secs(20);
const BODY: &str = r#"{"prompt": "hi", "metadata": {"b": "1", "a": "2"}}"#;

async fn jobs(world: &World) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM jobs")
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

fn keyed(session: &Session, key: &str, body: &str) -> RequestBuilder {
    typed(session.post("/v1/jobs"), body).header("idempotency-key", key)
}

fn counted(session: &Session, retry: u32, body: &str) -> RequestBuilder {
    typed(session.post("/v1/jobs"), body).header("x-stainless-retry-count", retry.to_string())
}

fn typed(request: RequestBuilder, body: &str) -> RequestBuilder {
    request.header("content-type", "application/json").body(body.to_owned())
}

async fn id(request: RequestBuilder) -> String {
    let (status, body) = answer(request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

/// Status, headers of the content, and the body to the byte.
async fn whole(request: RequestBuilder) -> (StatusCode, HeaderMap, String) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let wanted = ["content-type", "location", "retry-after"];
    let headers = response.headers().clone();
    let kept = headers
        .into_iter()
        .filter_map(|(name, value)| Some((name?, value)))
        .filter(|(name, _)| wanted.contains(&name.as_str()))
        .collect();
    (status, kept, response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_has_the_first_answers_status_headers_and_bytes() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let first = whole(keyed(&ada, "k", BODY)).await;
        assert_eq!((first.0, first.1.len()), (StatusCode::ACCEPTED, 3), "{first:?}");
        let id = serde_json::from_str::<Value>(&first.2).unwrap()["id"].clone();
        answer(ada.post(&format!("/v1/jobs/{}/cancel", id.as_str().unwrap()))).await;
        assert_eq!(whole(keyed(&ada, "k", BODY)).await, first, "whatever became of the job");
        let replay = keyed(&ada, "k", BODY).send().await.unwrap();
        assert_eq!(replay.headers()["idempotent-replayed"], "true");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_comes_even_if_the_request_would_be_refused_by_now() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let first = whole(keyed(&ada, "k", BODY)).await;
        let put = whole(typed(ada.put("/v1/jobs/mine"), BODY)).await;
        assert_eq!((first.0, put.0), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
        world.execute_as_owner("DELETE FROM model_aliases").await;
        assert_eq!(
            answer(keyed(&ada, "other", BODY)).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(whole(keyed(&ada, "k", BODY)).await, first);
        assert_eq!(answer(typed(ada.put("/v1/jobs/mine"), BODY)).await.0, StatusCode::OK);
        let (status, other) = answer(keyed(&ada, "k", "{}")).await;
        assert_eq!(
            (status, code(&other)),
            (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_with_one_key_make_one_job() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        // A second API process, so that it is the database that tells.
        let second = Api::start_with(config(world)).await;
        let elsewhere = ada.at(&second);
        let sessions = [&ada, &elsewhere];
        let tries = (0..200).map(|number| whole(keyed(sessions[number % 2], "k", BODY)));
        let mut bodies = BTreeSet::new();
        for (status, _, body) in futures::future::join_all(tries).await {
            match status {
                StatusCode::ACCEPTED => _ = bodies.insert(body),
                StatusCode::CONFLICT => assert!(body.contains("idempotency_key_in_flight"), "{body}"),
                other => panic!("{other}: {body}"),
            }
        }
        assert_eq!((bodies.len(), jobs(world).await), (1, 1));
        second.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_flight_tells_libraries_not_to_retry() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let mut first = world.pool.begin().await.unwrap();
        let sql = "SELECT pg_advisory_xact_lock(hashtextextended('idempotency:' || id || ':k', 0))::text FROM users";
        sqlx::query(sql).execute(&mut *first).await.unwrap();
        let refused = keyed(&ada, "k", BODY).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::CONFLICT);
        assert_eq!(refused.headers()["x-should-retry"], "false");
        assert_eq!(
            refused.headers()["retry-after"],
            "1",
            "for callers who wait for its answer"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_creates_once_and_then_answers_the_job_as_it_is() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let put = |session: &Session, body: &str| typed(session.put("/v1/jobs/order-17"), body);
        let (status, first) = answer(put(&ada, BODY)).await;
        assert_eq!((status, first["model"].as_str()), (StatusCode::ACCEPTED, Some(MODEL)));
        let id = first["id"].as_str().unwrap();
        answer(ada.post(&format!("/v1/jobs/{id}/cancel"))).await;
        let (status, again) = answer(put(&ada, BODY)).await;
        assert_eq!((status, again["id"].as_str()), (StatusCode::OK, Some(id)));
        assert_eq!(again["status"], "cancelled");
        let (status, other) = answer(put(&ada, r#"{"prompt": "other"}"#)).await;
        assert_eq!(
            (status, code(&other)),
            (StatusCode::UNPROCESSABLE_ENTITY, "client_id_reused")
        );
        let (status, of_bob) = answer(put(&bob, BODY)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "ids are each project's own");
        assert_ne!(of_bob["id"], first["id"]);
        for bad in ["two%20words", "%FF", id] {
            let (status, body) = answer(typed(ada.put(&format!("/v1/jobs/{bad}")), BODY)).await;
            assert_eq!(
                (status, &body["error"]["param"]),
                (StatusCode::BAD_REQUEST, &json!("client_id"))
            );
        }
        assert_eq!(jobs(world).await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_puts_at_once_make_one_job() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let tries = (0..50).map(|_| answer(typed(ada.put("/v1/jobs/mine"), BODY)));
        let mut ids = BTreeSet::new();
        for (status, body) in futures::future::join_all(tries).await {
            match status {
                StatusCode::ACCEPTED | StatusCode::OK => _ = ids.insert(body["id"].to_string()),
                StatusCode::CONFLICT => assert_eq!(code(&body), "client_id_in_flight"),
                other => panic!("{other}: {body}"),
            }
        }
        assert_eq!((ids.len(), jobs(world).await), (1, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_librarys_retry_finds_the_job_whose_answer_was_lost() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let first = id(counted(&ada, 0, BODY)).await;
        assert_eq!(id(counted(&ada, 1, BODY)).await, first);
        assert_eq!(id(counted(&ada, 2, BODY)).await, first, "its answer was lost as well");
        assert_eq!(jobs(world).await, 1);
        assert_ne!(
            id(counted(&ada, 1, BODY)).await,
            first,
            "found by a first retry already"
        );
        assert_ne!(id(counted(&bob, 1, BODY)).await, first, "another credential");
        assert_ne!(id(counted(&ada, 1, r#"{"prompt": "other"}"#)).await, first);
        assert_eq!(jobs(world).await, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_stay_jobs_of_their_own_and_so_do_their_retries() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let plain = typed(ada.post("/v1/jobs"), BODY);
        assert_ne!(id(plain.try_clone().unwrap()).await, id(plain).await);
        let first = BTreeSet::from([id(counted(&ada, 0, BODY)).await, id(counted(&ada, 0, BODY)).await]);
        let again = BTreeSet::from([id(counted(&ada, 1, BODY)).await, id(counted(&ada, 1, BODY)).await]);
        assert_eq!((first.len(), &again), (2, &first), "each retry found one of its own");
        assert_eq!(jobs(world).await, 4);
        world
            .execute_as_owner("UPDATE sdk_requests SET created_at = now() - interval '2 minutes'")
            .await;
        assert!(
            !first.contains(&id(counted(&ada, 2, BODY)).await),
            "too late for a retry"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_for_the_request_before_it_that_is_still_at_work() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        // Nothing gets past the insert while this is held.
        let mut in_the_way = PgConnection::connect(world.database.owner_url()).await.unwrap();
        let lock = "BEGIN; LOCK TABLE job_inputs IN ACCESS EXCLUSIVE MODE";
        sqlx::raw_sql(lock).execute(&mut in_the_way).await.unwrap();
        let first = tokio::spawn(counted(&ada, 0, BODY).send());
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'";
        eventually("the first request holds its claim", LIMIT, async || {
            some(world, held).await
        })
        .await;
        // The client gives up, as if its time were over.
        first.abort();
        let retry = tokio::spawn(answer(counted(&ada, 1, BODY)));
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        eventually("its retry waits for it", LIMIT, async || some(world, waits).await).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut in_the_way).await.unwrap();
        assert_eq!(retry.await.unwrap().0, StatusCode::ACCEPTED);
        assert_eq!(jobs(world).await, 1);
    })
    .await;
}

async fn some(world: &World, sql: &'static str) -> Option<()> {
    let count: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap();
    (count > 0).then_some(())
}
