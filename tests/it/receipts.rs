//! What a job cost, on what it ran, whether it comes out the same again: receipts, replays and usage, with a real worker.

use claimcheck_common::domain::JobId;
use claimcheck_tests::{Installation, Process, TINY, World, in_world};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::http_face::{Api, Session, answer, code};
use crate::identity_keys::keyed;

/// Runs a test against an API and a worker with the tiny model.
async fn with_a_worker(test: impl AsyncFnOnce(&World, &Api, &Process)) {
    in_world(async |world| {
        let worker = Installation::of(world).worker("worker", []).await;
        let api = Api::start(world).await;
        test(world, &api, &worker).await;
        api.stop().await;
    })
    .await;
}

fn a_job(number: usize) -> Value {
    json!({"model": TINY, "prompt": format!("Story {number}"), "max_tokens": 4 + number % 7, "n": 1 + number % 2, "seed": number})
}

async fn ended(session: &Session, id: &str) -> Value {
    let (status, job) = answer(session.get(&format!("/v1/jobs/{id}?wait=60"))).await;
    assert_eq!(status, StatusCode::OK, "{job}");
    assert!(job["finished_at"].is_i64(), "{job}");
    job
}

async fn receipt(session: &Session, id: &str) -> Value {
    let (status, receipt) = answer(session.get(&format!("/v1/jobs/{id}/receipt"))).await;
    assert_eq!(status, StatusCode::OK, "{receipt}");
    receipt
}

/// What a JWS states, if it was signed by one of the keys.
fn verified(signature: &str, keys: &JwkSet) -> Value {
    let kid = jsonwebtoken::decode_header(signature).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(keys.find(&kid).expect("a published key")).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    jsonwebtoken::decode::<Value>(signature, &key, &validation)
        .expect("a good signature")
        .claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_read_once_unless_the_worker_has_another_tokenizer() {
    with_a_worker(async |world, api, _| {
        let ada = api.user("ada").await;
        world
            .execute_as_owner(
                "INSERT INTO pauses (scope, value, created_by) VALUES ('class', 'interactive', gen_random_uuid())",
            )
            .await;
        let says =
            |prompt: &str| json!({"model": TINY, "prompt": prompt, "max_tokens": 40, "seed": 7, "temperature": 1});
        let other = ada.submit(&says("The fox said to the crow")).await;
        let mut same = Vec::new();
        // What is kept of the other's text, in place of one's own.
        for kept in [
            "i.encoded",
            "x.encoded",
            "overlay(x.encoded PLACING '\\xffffffffffffffff' FROM 1)",
            "NULL",
            "'\\x07'",
        ] {
            let id = ada.submit(&says("Once upon a time")).await;
            let sql = format!(
                "UPDATE job_inputs i SET encoded = {kept} FROM job_inputs x
                 WHERE i.job_id = $1 AND x.job_id = $2 AND x.encoded IS NOT NULL"
            );
            let changed = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(id.parse::<JobId>().unwrap().uuid())
                .bind(other.parse::<JobId>().unwrap().uuid())
                .execute(&world.pool);
            assert_eq!(changed.await.unwrap().rows_affected(), 1, "{kept}");
            same.push(id);
        }
        world.execute_as_owner("DELETE FROM pauses").await;
        let mut texts = Vec::new();
        for id in same.iter().chain([&other]) {
            texts.push(ended(&ada, id).await["output"]["choices"][0]["text"].clone());
        }
        let [own, others, foreign, none, cut, other] = <[Value; 6]>::try_from(texts).unwrap();
        assert_ne!(own, other);
        assert_eq!(others, other, "the tokens that were kept are taken");
        assert_eq!(
            [foreign, none, cut],
            [own.clone(), own.clone(), own],
            "else the text is read"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_states_what_a_job_cost_under_a_signature() {
    with_a_worker(async |_, api, worker| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let id = ada.submit(&a_job(3)).await;
        let job = ended(&ada, &id).await;
        let receipt = receipt(&ada, &id).await;
        assert_eq!(receipt["usage"], job["usage"]);
        assert_eq!(receipt["parameters"], job["parameters"]);
        assert_eq!(receipt["model_revision"], job["output"]["system_fingerprint"]);
        assert_eq!((&receipt["attempts"], &receipt["dtype"]), (&json!(1), &json!("f32")));
        assert_eq!(receipt["weights_sha256"].as_str().unwrap().len(), 64);
        assert!(
            receipt["build"]
                .as_str()
                .unwrap()
                .starts_with(env!("CARGO_PKG_VERSION"))
        );
        let seconds = |field: &str| {
            receipt[field]
                .as_f64()
                .unwrap_or_else(|| panic!("{field} in {receipt}"))
        };
        assert!(seconds("prefill_seconds") > 0.0 && seconds("decode_seconds") > 0.0 && seconds("queue_seconds") > 0.0);
        // It was alone: the device was its own from its first token to its last.
        let alone = seconds("prefill_seconds") + seconds("decode_seconds");
        assert!(
            seconds("device_seconds") > 0.0 && seconds("device_seconds") <= alone,
            "{receipt}"
        );
        let stepped = worker.metric("claimcheck_engine_step_duration_seconds_sum").await;
        assert!(
            (seconds("device_seconds") - stepped).abs() < 1e-3,
            "{stepped} in {receipt}"
        );

        let (_, keys) = answer(api.get("/.well-known/receipt-keys.json")).await;
        let signed = verified(
            receipt["signature"].as_str().unwrap(),
            &serde_json::from_value(keys).unwrap(),
        );
        let mut stated = receipt.clone();
        for field in ["object", "signature"] {
            stated.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(signed, stated);

        let (status, body) = answer(bob.get(&format!("/v1/jobs/{id}/receipt"))).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "job_not_found"));
        let due = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let later = ada
            .submit(&json!({"model": TINY, "prompt": "x", "scheduled_at": due}))
            .await;
        let (status, body) = answer(ada.get(&format!("/v1/jobs/{later}/receipt"))).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "job_not_ended"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_agrees_to_the_token_with_the_sum_of_receipts() {
    with_a_worker(async |world, api, worker| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let mut ids = Vec::new();
        for number in 0..24 {
            ids.push(ada.submit(&a_job(number)).await);
        }
        let of_bob = bob.submit(&a_job(99)).await;
        ended(&bob, &of_bob).await;
        let by_key = keyed(&ada, &["jobs:read", "jobs:write"]).await;
        ids.push(by_key.submit(&a_job(24)).await);
        // One that never runs costs no tokens.
        let due = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let unrun = ada
            .submit(&json!({"model": TINY, "prompt": "x", "scheduled_at": due}))
            .await;
        let (status, _) = answer(ada.post(&format!("/v1/jobs/{unrun}/cancel"))).await;
        assert_eq!(status, StatusCode::OK);
        ids.push(unrun);
        let (mut tokens, mut device) = ([0_u64; 3], 0.0);
        for id in &ids {
            ended(&ada, id).await;
            let receipt = receipt(&ada, id).await;
            for (sum, field) in tokens
                .iter_mut()
                .zip(["prompt_tokens", "completion_tokens", "total_tokens"])
            {
                *sum += receipt["usage"][field].as_u64().unwrap();
            }
            device += receipt["device_seconds"].as_f64().unwrap_or(0.0);
        }
        // Jobs that are erased or deleted stay accounted for.
        world
            .execute_as_owner("DELETE FROM jobs WHERE id IN (SELECT id FROM jobs ORDER BY id LIMIT 5)")
            .await;
        let (status, usage) = answer(ada.get("/v1/usage")).await;
        assert_eq!(status, StatusCode::OK, "{usage}");
        let total = &usage["total"];
        assert_eq!(total["jobs"], 26);
        let summed = ["prompt_tokens", "completion_tokens", "total_tokens"].map(|field| total[field].as_u64().unwrap());
        assert_eq!(summed, tokens);
        assert!((total["device_seconds"].as_f64().unwrap() - device).abs() < 1e-6);
        let rows = usage["data"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["model"] == TINY), "{usage}");
        let key = rows
            .iter()
            .find_map(|row| row["api_key_id"].as_str())
            .expect("what the key used");
        let (_, of_key) = answer(ada.get(&format!("/v1/usage?api_key_id={key}"))).await;
        assert_eq!(
            (&of_key["total"]["jobs"], &of_key["data"][0]["api_key_id"]),
            (&json!(1), &json!(key))
        );
        let of_rows: u64 = rows.iter().map(|row| row["total_tokens"].as_u64().unwrap()).sum();
        assert_eq!(of_rows, tokens[2]);
        // All shares together are the device's time: Bob's job had its part of it.
        let stepped = worker.metric("claimcheck_engine_step_duration_seconds_sum").await;
        assert!(device < stepped, "{device} of {stepped}");

        let (_, none) = answer(ada.get("/v1/usage?model=another")).await;
        assert_eq!((&none["total"]["jobs"], &none["data"]), (&json!(0), &json!([])));
        for bad in [
            "from=2026-1-1",
            "from=2026-02-01&to=2026-01-01",
            "from=2026-01-01&to=2026-06-01",
            "api_key_id=x",
            "day=1",
        ] {
            let (status, body) = answer(ada.get(&format!("/v1/usage?{bad}"))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}: {body}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_draws_the_same_tokens_and_names_the_first_that_differs() {
    with_a_worker(async |world, api, _| {
        let ada = api.user("ada").await;
        let id = ada
            .submit(&json!({"model": TINY, "prompt": "Once", "max_tokens": 12, "n": 2, "temperature": 1.0, "seed": 5}))
            .await;
        let path = format!("/v1/jobs/{id}/replay");
        ended(&ada, &id).await;
        let replay = async || {
            let (status, made) = answer(ada.post(&path)).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{made}");
            assert_eq!((&made["replay_of"], &made["matches"]), (&json!(id), &Value::Null));
            let new = made["id"].as_str().unwrap();
            let (status, verdict) = answer(ada.get(&format!("/v1/jobs/{new}/replay?wait=60"))).await;
            assert_eq!(status, StatusCode::OK, "{verdict}");
            assert_eq!(ada.job(new).await["replay_of"], json!(id));
            verdict
        };
        let verdict = replay().await;
        for field in ["matches", "same_weights", "same_dtype", "same_build"] {
            assert_eq!(verdict[field], true, "{field} in {verdict}");
        }
        assert_eq!((&verdict["status"], &verdict["first_difference"]), (&json!("completed"), &Value::Null));
        // As if the first run had drawn another token.
        world
            .execute_as_owner("UPDATE job_outputs SET tokens = jsonb_set(tokens, '{1,3}', '999') WHERE job_id = (SELECT min(id::text)::uuid FROM jobs)")
            .await;
        let verdict = replay().await;
        assert_eq!(verdict["matches"], false);
        let difference = &verdict["first_difference"];
        assert_eq!(
            (&difference["choice"], &difference["position"], &difference["original"]),
            (&json!(1), &json!(3), &json!(999))
        );
        let (status, body) = answer(ada.get(&path)).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "job_not_found"), "it replays none");
        let due = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let unrun = ada.submit(&json!({"model": TINY, "prompt": "x", "scheduled_at": due})).await;
        for (cancelled, expected) in [(false, "job_not_ended"), (true, "job_without_tokens")] {
            if cancelled {
                answer(ada.post(&format!("/v1/jobs/{unrun}/cancel"))).await;
            }
            let (status, body) = answer(ada.post(&format!("/v1/jobs/{unrun}/replay"))).await;
            assert_eq!((status, code(&body)), (StatusCode::CONFLICT, expected));
        }
    })
    .await;
}
