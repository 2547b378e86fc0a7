//! API keys: made, used, limited, rotated, revoked.

use std::time::Duration;

use claimcheck_tests::eventually;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, MODEL, Session, answer, code, with_api};
use crate::http_operators::{a_job, complete};

/// Makes a key and answers its body.
pub(crate) async fn make_key(session: &Session, body: Value) -> Value {
    let (status, body) = answer(session.post("/v1/api_keys").json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    body
}

/// The session's user, as a program with a key of these scopes.
pub(crate) async fn keyed(session: &Session, scopes: &[&str]) -> Session {
    let made = make_key(session, json!({"name": "test", "scopes": scopes})).await;
    session.with_token(made["key"].as_str().unwrap())
}

async fn jobs_with(api: &Api, key: &str) -> StatusCode {
    api.get("/v1/jobs").bearer_auth(key).send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_taken_in_either_header_and_shown_only_once() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let request = json!({"name": "nightly", "scopes": ["jobs:read"]});
        let response = ada.post("/v1/api_keys").json(&request).send().await.unwrap();
        assert_eq!(response.headers()["cache-control"], "no-store");
        let made: Value = response.json().await.unwrap();
        let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
        assert!(key.starts_with(made["hint"].as_str().unwrap()), "{made}");
        assert_eq!(jobs_with(api, key).await, StatusCode::OK);
        let other_header = api.get("/v1/jobs").header("x-api-key", key);
        assert_eq!(answer(other_header).await.0, StatusCode::OK);
        let both = api.get("/v1/jobs").header("x-api-key", key).bearer_auth(key);
        assert_eq!(answer(both).await.0, StatusCode::UNAUTHORIZED);

        let (_, list) = answer(ada.get("/v1/api_keys")).await;
        let (_, one) = answer(ada.get(&format!("/v1/api_keys/{id}"))).await;
        assert_eq!(list["data"][0]["id"], made["id"]);
        for shown in [list.to_string(), one.to_string()] {
            assert!(!shown.contains(key) && !shown.contains("\"key\""), "{shown}");
        }
        let stored: Vec<String> =
            sqlx::query_scalar("SELECT k::text FROM api_keys k UNION ALL SELECT s::text FROM api_key_secrets s")
                .fetch_all(&world.pool)
                .await
                .unwrap();
        assert_eq!(stored.len(), 2);
        let body = &key[8..key.len() - 7];
        assert!(!stored.iter().any(|row| row.contains(body)), "{stored:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_out_at_once_and_an_expired_one_too() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let made = make_key(&ada, json!({"name": "a", "scopes": ["jobs:read"]})).await;
        let (key, path) = (
            made["key"].as_str().unwrap(),
            format!("/v1/api_keys/{}", made["id"].as_str().unwrap()),
        );
        assert_eq!(jobs_with(api, key).await, StatusCode::OK);
        let (status, ended) = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(jobs_with(api, key).await, StatusCode::UNAUTHORIZED);
        let again = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!(
            again,
            (StatusCode::OK, ended),
            "safe to repeat, and the first end stands"
        );
        let rotate = ada.post(&format!("{path}/rotate")).json(&json!({}));
        assert_eq!(
            answer(rotate).await.0,
            StatusCode::NOT_FOUND,
            "it cannot be brought back"
        );

        let made = make_key(&ada, json!({"name": "b", "scopes": ["jobs:read"]})).await;
        let key = made["key"].as_str().unwrap();
        assert_eq!(jobs_with(api, key).await, StatusCode::OK);
        world
            .execute_as_owner("UPDATE api_keys SET expires_at = now() WHERE name = 'b'")
            .await;
        assert_eq!(jobs_with(api, key).await, StatusCode::UNAUTHORIZED);
        let made = make_key(&ada, json!({"name": "c", "scopes": ["jobs:read"]})).await;
        world.execute_as_owner("UPDATE users SET is_active = false").await;
        let (status, body) = answer(api.get("/v1/jobs").bearer_auth(made["key"].as_str().unwrap())).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "invalid_token"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_keeps_its_id_and_the_old_secret_holds_for_the_overlap() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let made = make_key(&ada, json!({"name": "a", "scopes": ["jobs:read"]})).await;
        let path = format!("/v1/api_keys/{}/rotate", made["id"].as_str().unwrap());
        let (status, rotated) = answer(ada.post(&path).json(&json!({"overlap": 3600}))).await;
        assert_eq!(status, StatusCode::OK, "{rotated}");
        assert_eq!(rotated["id"], made["id"]);
        let [old, new] = [&made, &rotated].map(|body| body["key"].as_str().unwrap());
        assert_ne!(old, new);
        assert_eq!(jobs_with(api, old).await, StatusCode::OK);
        assert_eq!(jobs_with(api, new).await, StatusCode::OK);
        world
            .execute_as_owner("UPDATE api_key_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
            .await;
        assert_eq!(
            jobs_with(api, old).await,
            StatusCode::UNAUTHORIZED,
            "the overlap is over"
        );
        assert_eq!(jobs_with(api, new).await, StatusCode::OK);
        let (_, last) = answer(ada.post(&path).json(&json!({}))).await;
        assert_eq!(
            jobs_with(api, new).await,
            StatusCode::UNAUTHORIZED,
            "no overlap was asked for"
        );
        assert_eq!(jobs_with(api, last["key"].as_str().unwrap()).await, StatusCode::OK);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_uses_the_models_and_tokens_that_it_was_given_and_no_others() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let ended = ada.submit(&a_job()).await;
        complete(&world.pool, &ended).await;
        let limits = json!({"name": "a", "scopes": ["jobs:read", "jobs:write"], "models": ["other"]});
        let other = ada.with_token(make_key(&ada, limits).await["key"].as_str().unwrap());
        let (status, body) = answer(other.post("/v1/jobs").json(&a_job())).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "model_not_allowed"));

        let limits = json!({"name": "b", "scopes": ["jobs:read", "jobs:write"], "models": [MODEL], "max_tokens": 5});
        let few = ada.with_token(make_key(&ada, limits).await["key"].as_str().unwrap());
        for (asked, status) in [
            (json!(5), StatusCode::ACCEPTED),
            (json!(6), StatusCode::FORBIDDEN),
            (json!(null), StatusCode::FORBIDDEN),
        ] {
            let job = json!({"prompt": "Once", "max_tokens": asked});
            assert_eq!(answer(few.post("/v1/jobs").json(&job)).await.0, status, "{asked}");
            let put = few.put("/v1/jobs/mine-1").json(&job);
            assert_eq!(answer(put).await.0.is_success(), status.is_success(), "{asked}");
        }
        let retry = few.post(&format!("/v1/jobs/{ended}/retry"));
        assert_eq!(
            code(&answer(retry).await.1),
            "limited_key",
            "what it may not ask for it may not repeat"
        );
        let bulk = few.post("/v1/jobs/retry").json(&json!({}));
        assert_eq!(code(&answer(bulk).await.1), "limited_key");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_a_key_are_counted_and_written_together() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let made = make_key(&ada, json!({"name": "a", "scopes": ["jobs:read"]})).await;
        for _ in 0..7 {
            assert_eq!(jobs_with(api, made["key"].as_str().unwrap()).await, StatusCode::OK);
        }
        let path = format!("/v1/api_keys/{}", made["id"].as_str().unwrap());
        let shown = eventually("the uses are written", Duration::from_secs(30), async || {
            let (_, shown) = answer(ada.get(&path)).await;
            (shown["usage_count"] != 0).then_some(shown)
        })
        .await;
        assert_eq!(shown["usage_count"], 7);
        assert!(
            shown["last_used_at"].as_i64() >= shown["created_at"].as_i64(),
            "{shown}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_hundred_keys_at_most_and_room_again_when_one_is_revoked() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let first = make_key(&ada, json!({"name": "a", "scopes": ["batches"]})).await;
        world
            .execute_as_owner(
                "INSERT INTO api_keys (id, tenant_id, project_id, user_id, name, hint, scopes)
                 SELECT gen_random_uuid(), tenant_id, project_id, user_id, 'more', '', '{}' FROM api_keys, generate_series(1, 99)",
            )
            .await;
        let one_more = || ada.post("/v1/api_keys").json(&json!({"name": "b", "scopes": ["batches"]}));
        let (status, body) = answer(one_more()).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "too_many_keys"));
        let path = format!("/v1/api_keys/{}", first["id"].as_str().unwrap());
        assert_eq!(answer(ada.request(Method::DELETE, &path)).await.0, StatusCode::OK);
        assert_eq!(answer(one_more()).await.0, StatusCode::CREATED);
    })
    .await;
}
