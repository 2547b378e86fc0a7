//! Doing jobs again, over HTTP: once for each key, and no more than may wait.

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{MODEL, Session, answer, code, with_api};
use crate::http_operators::{a_job, admin, complete, fail};
use crate::store::count;

fn with_key(session: &Session, path: &str, key: &str, body: &Value) -> RequestBuilder {
    session.post(path).header("idempotency-key", key).json(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_a_key_makes_one_job_however_often_it_is_sent() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let (id, other) = (ada.submit(&a_job()).await, ada.submit(&a_job()).await);
        let path = format!("/v1/jobs/{id}/retry");
        let (status, body) = answer(with_key(&ada, &path, "k", &json!({}))).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "job_not_ended"));
        complete(&world.pool, &id).await;
        let first = answer(with_key(&ada, &path, "k", &json!({}))).await;
        assert_eq!(first.0, StatusCode::ACCEPTED, "a refusal binds no key: {}", first.1);
        assert_eq!(first.1["retry_of"].as_str(), Some(id.as_str()));
        let replay = with_key(&ada, &path, "k", &json!({})).send().await.unwrap();
        assert_eq!(replay.headers()["idempotent-replayed"], "true");
        assert_eq!(
            replay.headers()["location"],
            format!("/v1/jobs/{}", first.1["id"].as_str().unwrap())
        );
        assert_eq!((replay.status(), replay.json::<Value>().await.unwrap()), first);
        complete(&world.pool, &other).await;
        let of_another = with_key(&ada, &format!("/v1/jobs/{other}/retry"), "k", &json!({}));
        let (status, body) = answer(of_another).await;
        assert_eq!(
            (status, code(&body)),
            (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
        );
        let sent = (0..30).map(|_| with_key(&ada, &path, "at-once", &json!({})).send());
        let answers = futures::future::join_all(sent).await;
        for answer in answers {
            let status = answer.unwrap().status();
            assert!(
                [StatusCode::ACCEPTED, StatusCode::CONFLICT].contains(&status),
                "{status}"
            );
        }
        assert_eq!(
            count(&world.pool, "SELECT count(*) FROM jobs").await,
            4,
            "two, and one for each key"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_many_jobs_with_a_key_is_done_once_and_answered_alike() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let root = admin(world, api.user("root").await).await;
        for _ in 0..3 {
            let id = ada.submit(&a_job()).await;
            fail(&world.pool, &id).await;
        }
        for (session, path) in [(&ada, "/v1/jobs/retry"), (&root, "/v1/dead_letters/redrive")] {
            let body = json!({"model": MODEL});
            let first = answer(with_key(session, path, "many", &body)).await;
            assert_eq!(
                (first.0, first.1["count"].as_u64()),
                (StatusCode::OK, Some(3)),
                "{}",
                first.1
            );
            assert_eq!(answer(with_key(session, path, "many", &body)).await, first);
            let (status, body) = answer(with_key(session, path, "many", &json!({}))).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
            );
        }
        assert_eq!(count(&world.pool, "SELECT count(*) FROM jobs").await, 9);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doing_again_stops_at_the_quota_and_goes_on_from_there_when_there_is_room() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let root = admin(world, api.user("root").await).await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            let id = ada.submit(&a_job()).await;
            fail(&world.pool, &id).await;
            ids.push(id);
        }
        sqlx::query("INSERT INTO tenant_limits (tenant_id, max_queued) SELECT DISTINCT tenant_id, 2 FROM jobs")
            .execute(&world.pool)
            .await
            .unwrap();
        let (_, chunk) = answer(ada.post("/v1/jobs/retry").json(&json!({"status": "failed"}))).await;
        assert_eq!(
            chunk,
            json!({"object": "bulk", "count": 2, "last_id": ids[1], "has_more": true, "stopped_by": "quota_exceeded"})
        );
        let rest = json!({"status": "failed", "after": ids[1]});
        let (_, chunk) = answer(ada.post("/v1/jobs/retry").json(&rest)).await;
        assert_eq!(
            (chunk["count"].as_u64(), chunk["last_id"].as_str()),
            (Some(0), Some(ids[1].as_str())),
            "it goes on where it was"
        );
        let (status, body) = answer(ada.post(&format!("/v1/jobs/{}/retry", ids[2]))).await;
        assert_eq!((status, code(&body)), (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded"));
        let (_, chunk) = answer(root.post("/v1/dead_letters/redrive").json(&json!({}))).await;
        assert_eq!(
            (chunk["count"].as_u64(), &chunk["stopped_by"]),
            (Some(0), &json!("quota_exceeded"))
        );

        answer(ada.post("/v1/jobs/cancel").json(&json!({"status": "queued"}))).await;
        let (_, chunk) = answer(ada.post("/v1/jobs/retry").json(&rest)).await;
        assert_eq!(
            chunk,
            json!({"object": "bulk", "count": 1, "last_id": ids[2], "has_more": false, "stopped_by": null})
        );
    })
    .await;
}
