//! Submitting, reading, listing and cancelling jobs over HTTP.

use std::collections::BTreeSet;

use claimcheck_common::domain::Choice;
use claimcheck_tests::World;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::http_completions::{choice, claim_all, finish};
use crate::http_face::{CONTEXT, MODEL, Session, announce, answer, code, with_api};
use crate::identity_keys;

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_job_is_answered_after_its_commit_with_its_place() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": "Once upon a time", "seed": 7, "metadata": {"order": "17"}, "stop": "\n"});
        let response = ada.post("/v1/jobs").json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        assert!(response.headers().contains_key("retry-after"));
        let job: Value = response.json().await.unwrap();
        assert_eq!(location, format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
        assert_eq!(
            (job["object"].as_str(), job["status"].as_str()),
            (Some("job"), Some("queued"))
        );
        assert_eq!(
            (job["model"].as_str(), job["class"].as_str()),
            (Some(MODEL), Some("interactive"))
        );
        assert_eq!(job["metadata"], json!({"order": "17"}));
        assert_eq!(job["parameters"]["seed"], 7);
        assert!(job["output"].is_null() && job["error"].is_null() && job["finished_at"].is_null());
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 1);
        let tokens: i32 = sqlx::query_scalar("SELECT prompt_tokens FROM jobs")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(tokens, 16, "counted by the model's tokenizer");
        assert_eq!(
            count(world, "SELECT count(*) FROM audit_log WHERE action = 'job.submitted'").await,
            1
        );
        assert_eq!(answer(ada.get(&location)).await.1["id"], job["id"]);
    })
    .await;
}

/// Media type and body; the wanted status, code and parameter.
type Case = (&'static str, Vec<u8>, u16, &'static str, Option<&'static str>);

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_of_every_kind_is_refused_by_name_and_leaves_nothing_behind() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let post =
            |media: &'static str, body: Vec<u8>| answer(ada.post("/v1/jobs").header("content-type", media).body(body));
        let json = "application/json";
        let huge = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(1 << 21)).into_bytes();
        let cases: [Case; 16] = [
            (json, b"".to_vec(), 400, "invalid_json", None),
            (json, b"{\"prompt\": ".to_vec(), 400, "invalid_json", None),
            (json, b"[\"hi\"]".to_vec(), 400, "invalid_value", None),
            (json, b"{\"prompt\": \"\xff\"}".to_vec(), 400, "invalid_utf8", None),
            (
                json,
                br#"{"prompt": "a\u0000b"}"#.to_vec(),
                400,
                "invalid_value",
                Some("prompt"),
            ),
            (
                json,
                br#"{"prompt": ""}"#.to_vec(),
                400,
                "invalid_value",
                Some("prompt"),
            ),
            (json, br#"{"prompt": 5}"#.to_vec(), 400, "invalid_value", Some("prompt")),
            (
                json,
                br#"{"prompt": [256]}"#.to_vec(),
                400,
                "invalid_value",
                Some("prompt[0]"),
            ),
            (
                json,
                br#"{"prompt": [-1]}"#.to_vec(),
                400,
                "invalid_value",
                Some("prompt[0]"),
            ),
            (
                json,
                br#"{"prompt": "x", "n": 6}"#.to_vec(),
                400,
                "invalid_value",
                Some("n"),
            ),
            (
                json,
                br#"{"prompt": "x", "maxtokens": 6}"#.to_vec(),
                400,
                "unknown_field",
                Some("maxtokens"),
            ),
            (
                json,
                br#"{"prompt": "x", "metadata": {"k": null}}"#.to_vec(),
                400,
                "invalid_value",
                Some("metadata.k"),
            ),
            (
                json,
                br#"{"prompt": "x", "model": "none"}"#.to_vec(),
                404,
                "model_not_found",
                Some("model"),
            ),
            (
                json,
                br#"{"prompt": "x", "max_tokens": 512}"#.to_vec(),
                400,
                "context_length_exceeded",
                Some("max_tokens"),
            ),
            (json, huge, 413, "body_too_large", None),
            (
                "text/plain",
                b"{}".to_vec(),
                415,
                "unsupported_media_type",
                Some("content-type"),
            ),
        ];
        for (media, body, status, wanted, param) in cases {
            let shown = String::from_utf8_lossy(&body).chars().take(60).collect::<String>();
            let (got, answered) = post(media, body).await;
            assert_eq!((got.as_u16(), code(&answered)), (status, wanted), "{shown}: {answered}");
            assert_eq!(answered["error"]["param"].as_str(), param, "{shown}: {answered}");
        }
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 0);
        assert_eq!(count(world, "SELECT count(*) FROM outbox").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_beyond_the_context_is_refused_with_the_counts_and_one_within_it_passes() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let prompt = "x".repeat(CONTEXT as usize - 10);
        ada.submit(&json!({"prompt": prompt, "max_tokens": 10})).await;
        let (status, body) = answer(ada.post("/v1/jobs").json(&json!({"prompt": prompt, "max_tokens": 11}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("512") && message.contains("513") && message.contains("502"),
            "{message}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_may_be_left_out_only_while_there_is_one() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        ada.submit(&json!({"prompt": "hi"})).await;
        announce(world, "owner/other").await;
        let (status, body) = answer(ada.post("/v1/jobs").json(&json!({"prompt": "hi"}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["error"]["param"], "model");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(MODEL) && message.contains("owner/other"), "{message}");
        ada.submit(&json!({"prompt": "hi", "model": "owner/other"})).await;
        let listed = answer(ada.get("/v1/models")).await.1;
        assert_eq!(listed["data"].as_array().unwrap().len(), 2);
        assert_eq!(listed["data"][0]["context_length"], CONTEXT);
        for path in ["/v1/models/owner/other", "/v1/models/owner%2Fother"] {
            assert_eq!(answer(ada.get(path)).await.1["id"], "owner/other", "{path}");
        }
        assert_eq!(answer(ada.get("/v1/models/none")).await.0, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_job_does_not_exist_for_anyone_else() {
    with_api(async |_, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let id = ada.submit(&json!({"prompt": "mine"})).await;
        let unknown = answer(bob.get("/v1/jobs/job_01h455vb4pex5vsknk084sn02q")).await;
        assert_eq!(unknown.0, StatusCode::NOT_FOUND);
        assert_eq!(
            answer(bob.get(&format!("/v1/jobs/{id}"))).await,
            unknown,
            "foreign and absent look alike"
        );
        assert_eq!(answer(bob.post(&format!("/v1/jobs/{id}/cancel"))).await, unknown);
        assert_eq!(answer(bob.get("/v1/jobs")).await.1["data"], json!([]));
        assert_eq!(answer(bob.get("/v1/jobs/17")).await.0, StatusCode::NOT_FOUND);
        assert_eq!(ada.job(&id).await["status"], "queued");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_by_cursor_newest_first_and_keep_to_their_filters() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.push(ada.submit(&json!({"prompt": format!("{number}")})).await);
        }
        ids.reverse();
        let mut seen = Vec::new();
        let mut path = "/v1/jobs?limit=2".to_owned();
        loop {
            let page = answer(ada.get(&path)).await.1;
            assert_eq!(page["object"], "list");
            let of_page: Vec<_> = page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|job| job["id"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(page["first_id"].as_str(), of_page.first().map(String::as_str));
            seen.extend(of_page);
            if page["has_more"] == json!(false) {
                break;
            }
            path = format!("/v1/jobs?limit=2&after={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(seen, ids);
        answer(ada.post(&format!("/v1/jobs/{}/cancel", ids[3]))).await;
        let cancelled = answer(ada.get("/v1/jobs?status=cancelled")).await.1;
        assert_eq!(cancelled["data"].as_array().unwrap().len(), 1);
        assert_eq!(cancelled["first_id"], ids[3].as_str());
        assert_eq!(answer(ada.get("/v1/jobs?model=none")).await.1["data"], json!([]));
        for bad in [
            "limit=0",
            "limit=101",
            "limit=x",
            "after=x",
            "status=done",
            "page=2",
            "limit=1&limit=2",
            "model=%00",
        ] {
            let (status, body) = answer(ada.get(&format!("/v1/jobs?{bad}"))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
            assert!(
                bad.starts_with(body["error"]["param"].as_str().unwrap()),
                "{bad}: {body}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_is_cancelled_at_once_and_again_without_harm() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&json!({"prompt": "hi"})).await;
        let path = format!("/v1/jobs/{id}/cancel");
        // As the OpenAI SDK cancels: a JSON content type and an empty body.
        let (status, job) = answer(ada.post(&path).header("content-type", "application/json")).await;
        assert_eq!((status, job["status"].as_str()), (StatusCode::OK, Some("cancelled")));
        assert!(job["finished_at"].is_i64());
        assert_eq!(answer(ada.post(&path)).await, (StatusCode::OK, job));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_job_waits_for_its_time() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let at = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let id = ada.submit(&json!({"prompt": "later", "scheduled_at": at})).await;
        let job = ada.job(&id).await;
        assert_eq!(
            (job["status"].as_str(), job["available_at"].as_i64()),
            (Some("scheduled"), Some(at))
        );
        assert_eq!(count(world, "SELECT count(*) FROM outbox").await, 0);
    })
    .await;
}

async fn keyed(session: &Session, key: &str, body: &str) -> (StatusCode, bool, Value) {
    let request = session
        .post("/v1/jobs")
        .header("idempotency-key", key)
        .header("content-type", "application/json");
    let response = request.body(body.to_owned()).send().await.unwrap();
    let (status, replayed) = (
        response.status(),
        response.headers().contains_key("idempotent-replayed"),
    );
    (status, replayed, response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_replays_the_first_answer_and_makes_no_second_job() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let body = r#"{"prompt": "hi"}"#;
        let (status, replayed, first) = keyed(&ada, "order-17", body).await;
        assert_eq!((status, replayed), (StatusCode::ACCEPTED, false));
        assert_eq!(
            keyed(&ada, "order-17", body).await,
            (StatusCode::ACCEPTED, true, first.clone())
        );
        let (status, _, other) = keyed(&ada, "order-17", r#"{"prompt":"hi"}"#).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "raw bytes count");
        assert_eq!(code(&other), "idempotency_key_reused");
        let (status, replayed, of_bob) = keyed(&bob, "order-17", body).await;
        assert_eq!(
            (status, replayed),
            (StatusCode::ACCEPTED, false),
            "keys are each user's own"
        );
        assert_ne!(of_bob["id"], first["id"]);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_one_key_make_one_job() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let tries = (0..16).map(|_| keyed(&ada, "k", r#"{"prompt": "hi"}"#));
        let mut ids = BTreeSet::new();
        for (status, _, body) in futures::future::join_all(tries).await {
            match status {
                StatusCode::ACCEPTED => _ = ids.insert(body["id"].to_string()),
                StatusCode::CONFLICT => assert_eq!(code(&body), "idempotency_key_in_flight"),
                other => panic!("{other}: {body}"),
            }
        }
        assert_eq!(ids.len(), 1);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_request_is_in_flight_its_key_is_409() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let mut first = world.pool.begin().await.unwrap();
        let sql = "SELECT pg_advisory_xact_lock(hashtextextended('idempotency:' || id || ':k', 0))::text FROM users
                   WHERE username = $1";
        sqlx::query(sql).bind(&ada.username).execute(&mut *first).await.unwrap();
        let (status, _, body) = keyed(&ada, "k", r#"{"prompt": "hi"}"#).await;
        assert_eq!(
            (status, code(&body)),
            (StatusCode::CONFLICT, "idempotency_key_in_flight")
        );
        first.rollback().await.unwrap();
        assert_eq!(keyed(&ada, "k", r#"{"prompt": "hi"}"#).await.0, StatusCode::ACCEPTED);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_its_outputs_are_too_much_for_one_answer() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let mut wanted = Vec::new();
        for _ in 0..20 {
            wanted.push(ada.submit(&json!({"prompt": "hi"})).await);
        }
        wanted.reverse();
        for key in claim_all(world, 20).await {
            let long = Choice {
                logprobs: None,
                ..choice(0, &"x".repeat(1 << 20), 0.0)
            };
            finish(world, key, vec![long]).await;
        }
        let mut seen = Vec::new();
        let mut path = "/v1/jobs?limit=20".to_owned();
        loop {
            let (status, page) = answer(ada.get(&path)).await;
            assert_eq!(status, StatusCode::OK);
            let ids = page["data"].as_array().unwrap().iter();
            let ids: Vec<_> = ids.map(|job| job["id"].as_str().unwrap().to_owned()).collect();
            assert!((1..=8).contains(&ids.len()), "{} of a MiB each", ids.len());
            seen.extend(ids);
            if page["has_more"] == false {
                break;
            }
            path = format!("/v1/jobs?limit=20&after={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(seen, wanted);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_be_called_what_a_route_is_called() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        for name in ["cancel", "retry", "c%61ncel"] {
            let (status, body) = answer(ada.put(&format!("/v1/jobs/{name}")).json(&json!({"prompt": "hi"}))).await;
            let again = if name.contains('%') {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            assert_eq!(status, again, "{name}: {body}");
        }
        let reader = identity_keys::keyed(&ada, &["jobs:read"]).await;
        let refused = answer(reader.put("/v1/jobs/cancel").json(&json!({"prompt": "hi"}))).await;
        assert_eq!(
            (refused.0, code(&refused.1)),
            (StatusCode::FORBIDDEN, "insufficient_scope")
        );
        let (status, all) = answer(ada.post("/v1/jobs/cancel").json(&json!({}))).await;
        assert_eq!((status, &all["count"]), (StatusCode::OK, &json!(2)));
    })
    .await;
}
