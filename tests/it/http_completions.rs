//! The OpenAI face without streams: completions that their callers wait for, hang up on and come back to.

use std::time::Duration;

use claimcheck_common::domain::{Choice, Completion, FinishReason, JobError, JobId, JobKey, Logprobs, Usage, WorkerId};
use claimcheck_common::store::attend::cancel_abandoned;
use claimcheck_common::store::settle::Settlement;
use claimcheck_common::store::{claim, settle};
use claimcheck_tests::{World, eventually};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::http_face::{MODEL, Session, answer, code, with_api};

const LIMIT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_mins(1);

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

fn asking(session: &Session, body: &Value) -> JoinHandle<(StatusCode, Value)> {
    tokio::spawn(answer(session.post("/v1/completions").json(body)))
}

/// The SDK's own words in front of a body.
fn sdk(session: &Session, retry: u32, body: &Value) -> JoinHandle<(StatusCode, Value)> {
    let request = session
        .post("/v1/completions")
        .header("x-stainless-retry-count", retry.to_string());
    tokio::spawn(answer(request.json(body)))
}

/// Waits until so many jobs wait, and claims them, the oldest first.
pub(crate) async fn claim_all(world: &World, wanted: usize) -> Vec<JobKey> {
    let ids = eventually("the jobs are submitted", LIMIT, async || {
        let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id")
            .fetch_all(&world.pool)
            .await
            .unwrap();
        (ids.len() == wanted).then_some(ids)
    })
    .await;
    let ids = ids.into_iter().map(JobId::from_uuid).collect();
    let claimed = claim::claim(&world.pool, WorkerId::new(), ids, LEASE).await.unwrap();
    claimed.into_iter().map(|job| job.key).collect()
}

pub(crate) fn choice(index: u32, text: &str, logprob: f32) -> Choice {
    Choice {
        tokens: Vec::new(),
        text: text.to_owned(),
        index,
        finish_reason: Some(FinishReason::Length),
        logprobs: Some(Logprobs {
            tokens: vec![text.to_owned()],
            token_logprobs: vec![logprob],
            top_logprobs: vec![[(text.to_owned(), logprob)].into()],
            text_offset: vec![0],
        }),
    }
}

pub(crate) async fn finish(world: &World, key: JobKey, choices: Vec<Choice>) {
    let usage = Usage::new(2, choices.len() as u32);
    let ending = Settlement::completed(key, Completion { choices, usage });
    let settled = settle::settle_group(&world.pool, vec![ending], "test".to_owned())
        .await
        .unwrap();
    assert_eq!(settled.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_waits_for_its_completion_and_gets_openais_shape() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"model": MODEL, "prompt": "hi", "user": "u", "echo": true, "suffix": null});
        let asked = asking(&ada, &body);
        let key = claim_all(world, 1).await[0];
        let mut plain = choice(0, " there", -1.0);
        plain.logprobs = None;
        finish(world, key, vec![plain]).await;
        let (status, completion) = asked.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{completion}");
        let id = key.id.to_string().replacen("job_", "cmpl-", 1);
        let created = completion["created"].as_i64().unwrap();
        let usage = json!({"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3});
        let choices = json!([{"text": "hi there", "index": 0, "finish_reason": "length", "logprobs": null}]);
        let wanted = json!({"id": id, "object": "text_completion", "created": created, "model": MODEL,
            "choices": choices, "usage": usage, "system_fingerprint": "r1"});
        assert_eq!(completion, wanted);
        let job = ada.job(&key.id.to_string()).await;
        assert_eq!(job["class"], "interactive");
        assert_eq!(
            (&job["parameters"]["max_tokens"], &job["parameters"]["temperature"]),
            (&json!(16), &json!(1.0))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_prompts_have_their_choices_in_order_and_the_best_of_each() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let asked = asking(&ada, &json!({"prompt": ["a", [98, 99]], "n": 2, "best_of": 3}));
        let refused = asking(&ada, &json!({"prompt": ["a", [98, 999]]}));
        let (status, body) = refused.await.unwrap();
        assert_eq!(
            (status, &body["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("prompt[1][1]"))
        );
        let keys = claim_all(world, 2).await;
        for (number, key) in keys.iter().enumerate() {
            let one = |index, logprob| choice(index, &format!("{number}{index}"), logprob);
            finish(world, *key, vec![one(0, -3.0), one(1, -1.0), one(2, -2.0)]).await;
        }
        let (_, completion) = asked.await.unwrap();
        let texts: Vec<_> = completion["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| {
                assert!(choice["logprobs"].is_null(), "nobody asked to see them");
                (
                    choice["index"].as_u64().unwrap(),
                    choice["text"].as_str().unwrap()[1..].to_owned(),
                )
            })
            .collect();
        let of_prompt = |choice: &Value| choice["text"].as_str().unwrap()[..1].to_owned();
        assert_eq!(
            texts,
            [
                (0, "1".to_owned()),
                (1, "2".to_owned()),
                (2, "1".to_owned()),
                (3, "2".to_owned())
            ]
        );
        let prompts: Vec<_> = completion["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(of_prompt)
            .collect();
        assert!(prompts[0] == prompts[1] && prompts[2] == prompts[3] && prompts[0] != prompts[2]);
        assert_eq!(completion["usage"]["completion_tokens"], 6, "all that were made");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_or_was_cancelled_is_an_error_that_says_why() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": "hi"});
        for (error, status) in [
            (
                JobError::server("broken", "It broke."),
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
            (
                JobError::invalid("prompt_too_long", "It is too long."),
                StatusCode::BAD_REQUEST,
            ),
        ] {
            let asked = asking(&ada, &body);
            let key = claim_all(world, 1).await[0];
            let message = error.message.clone();
            settle::settle_group(&world.pool, vec![Settlement::failed(key, error)], "test".to_owned())
                .await
                .unwrap();
            let (answered, told) = asked.await.unwrap();
            assert_eq!((answered, code(&told)), (status, "job_failed"));
            assert_eq!(told["error"]["message"], message);
        }
        let asked = asking(&ada, &body);
        let id = eventually("it waits", LIMIT, async || {
            let list = answer(ada.get("/v1/jobs?status=queued")).await.1;
            list["data"][0]["id"].as_str().map(ToOwned::to_owned)
        })
        .await;
        answer(ada.post(&format!("/v1/jobs/{id}/cancel"))).await;
        let (status, told) = asked.await.unwrap();
        assert_eq!((status, code(&told)), (StatusCode::CONFLICT, "job_cancelled"));
    })
    .await;
}

const ATTENDED: &str = "SELECT count(*) FROM attended_jobs WHERE attended_until > now()";
const LAPSE: &str = "UPDATE attended_jobs SET attended_until = now() - interval '1 second'";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_caller_hung_up_is_cancelled_when_its_time_is_over() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let (leaves, stays) = (
            asking(&ada, &json!({"prompt": "bye"})),
            asking(&ada, &json!({"prompt": "hi"})),
        );
        claim_all(world, 2).await;
        assert_eq!(count(world, ATTENDED).await, 2);
        leaves.abort();
        let shortened = "SELECT count(*) FROM attended_jobs WHERE attended_until < now() + interval '12 seconds'";
        eventually("the process says that nobody waits", LIMIT, async || {
            (count(world, shortened).await == 1).then_some(())
        })
        .await;
        assert_eq!(cancel_abandoned(&world.pool).await.unwrap().cancelled, 0, "not yet");
        world
            .execute_as_owner(&format!("{LAPSE} WHERE attended_until < now() + interval '12 seconds'"))
            .await;
        assert_eq!(cancel_abandoned(&world.pool).await.unwrap().cancelled, 1);
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs WHERE status = 'cancelling'").await,
            1
        );
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs WHERE status = 'in_progress'").await,
            1
        );
        assert!(!stays.is_finished());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_takes_up_the_job_that_its_caller_hung_up_on() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": ["hi", "ho"]});
        let first = sdk(&ada, 0, &body);
        let keys = claim_all(world, 2).await;
        first.abort();
        // Long after a retry of a submit would have been forgotten.
        world
            .execute_as_owner("UPDATE sdk_requests SET created_at = now() - interval '5 minutes'")
            .await;
        let retry = sdk(&ada, 1, &body);
        eventually("the retry attends both jobs", LIMIT, async || {
            let sql = "SELECT count(*) FROM sdk_requests s JOIN attended_jobs a USING (job_id)
                       WHERE s.retry = 1 AND a.attended_until > now() + interval '16 seconds'";
            (count(world, sql).await == 2).then_some(())
        })
        .await;
        for key in keys {
            finish(world, key, vec![choice(0, "!", -1.0)]).await;
        }
        assert_eq!(retry.await.unwrap().0, StatusCode::OK);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 2);
        eventually("nobody is attended any more", LIMIT, async || {
            (count(world, "SELECT count(*) FROM attended_jobs").await == 0).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_comes_too_late_gets_a_job_of_its_own() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": "hi"});
        let first = sdk(&ada, 0, &body);
        claim_all(world, 1).await;
        first.abort();
        world.execute_as_owner(LAPSE).await;
        eventually("the first job is told to stop", LIMIT, async || {
            world.execute_as_owner(LAPSE).await;
            (cancel_abandoned(&world.pool).await.unwrap().cancelled == 1).then_some(())
        })
        .await;
        let retry = sdk(&ada, 1, &body);
        let key = claim_all(world, 1).await[0];
        finish(world, key, vec![choice(0, "!", -1.0)]).await;
        assert_eq!(retry.await.unwrap().0, StatusCode::OK);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_answers_the_same_completion_again_and_belongs_to_its_route() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": ["hi", "ho"]});
        let keyed = |path: &str| tokio::spawn(answer(ada.post(path).header("idempotency-key", "k").json(&body)));
        let first = keyed("/v1/completions");
        for key in claim_all(world, 2).await {
            finish(world, key, vec![choice(0, "!", -1.0)]).await;
        }
        let first = first.await.unwrap();
        assert_eq!(first.0, StatusCode::OK);
        assert_eq!(keyed("/v1/completions").await.unwrap(), first);
        let job = answer(
            ada.post("/v1/jobs")
                .header("idempotency-key", "k")
                .json(&json!({"prompt": "hi"})),
        )
        .await;
        assert_eq!(code(&job.1), "idempotency_key_reused");
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_process_sends_its_callers_to_another_which_goes_on_waiting() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let second = crate::http_face::Api::start(world).await;
        let body = json!({"prompt": "hi"});
        let first = sdk(&ada.at(&second), 0, &body);
        let key = claim_all(world, 1).await[0];
        second.begin_stop();
        let (status, told) = first.await.unwrap();
        assert_eq!((status, code(&told)), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
        let retry = sdk(&ada, 1, &body);
        finish(world, key, vec![choice(0, "!", -1.0)]).await;
        assert_eq!(retry.await.unwrap().0, StatusCode::OK);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 1);
        second.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_tokens_and_stores_nothing() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let dry = |path: &str, prompt: Value| {
            let request = ada.post(path).header("idempotency-key", "k");
            answer(request.json(&json!({"prompt": prompt, "max_tokens": 10, "n": 2, "dry_run": true})))
        };
        let (status, body) = dry("/v1/jobs", json!("four")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let wanted = json!({"object": "dry_run", "model": MODEL, "jobs": 1, "prompt_tokens": 4,
            "max_completion_tokens": 20, "max_total_tokens": 24, "feasible": true, "obstacle": null,
            "quota": {"max_queued": null, "waiting": 0}});
        assert_eq!(body, wanted);
        let (_, body) = dry("/v1/completions", json!(["a", "bc"])).await;
        assert_eq!((&body["jobs"], &body["max_total_tokens"]), (&json!(2), &json!(43)));
        let put = ada.put("/v1/jobs/mine").json(&json!({"prompt": "a", "dry_run": true}));
        assert_eq!(answer(put).await.1["object"], "dry_run");
        let long = "x".repeat(510);
        assert_eq!(code(&dry("/v1/jobs", json!(long)).await.1), "context_length_exceeded");
        for table in ["jobs", "idempotency_keys", "client_jobs", "outbox"] {
            let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let rows: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap();
            assert_eq!(rows, 0, "{table}");
        }
        world
            .execute_as_owner("INSERT INTO tenant_limits (tenant_id, max_queued) SELECT tenant_id, 1 FROM users")
            .await;
        let (_, body) = dry("/v1/completions", json!(["a", "bc"])).await;
        assert_eq!(
            (&body["feasible"], &body["obstacle"]),
            (&json!(false), &json!("quota_exceeded"))
        );
        world
            .execute_as_owner("DELETE FROM tenant_limits; DELETE FROM workers")
            .await;
        assert_eq!(dry("/v1/jobs", json!("a")).await.1["obstacle"], "worker_unhealthy");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_tokenized_by_the_models_own_tokenizer() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let body = json!({"prompt": "hé", "return_token_strs": true});
        let (status, body) = answer(ada.post("/v1/tokenize").json(&body)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body["token_strs"], json!(["h", "bytes:\\xc3", "bytes:\\xa9"]));
        assert_eq!(
            (&body["count"], &body["max_model_len"], &body["model"]),
            (&json!(3), &json!(512), &json!(MODEL))
        );
        let ids = body["tokens"].clone();
        let submitted = answer(ada.post("/v1/jobs").json(&json!({"prompt": ids, "dry_run": true}))).await;
        assert_eq!(submitted.1["prompt_tokens"], 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_may_prefer_to_wait_for_the_end() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let preferring = |wait: &str| {
            let request = ada
                .post("/v1/jobs")
                .header("prefer", format!("respond-async, wait={wait}"));
            request.json(&json!({"prompt": "hi"})).send()
        };
        let soon = preferring("0").await.unwrap();
        assert_eq!(
            (soon.status(), &soon.headers()["preference-applied"]),
            (StatusCode::ACCEPTED, &"wait=0".parse().unwrap())
        );
        assert!(soon.headers().contains_key("location"));
        let waiting = tokio::spawn(preferring("20"));
        for key in claim_all(world, 2).await {
            finish(world, key, vec![choice(0, "!", -1.0)]).await;
        }
        let ended = waiting.await.unwrap().unwrap();
        assert_eq!(ended.status(), StatusCode::OK);
        assert_eq!(ended.json::<Value>().await.unwrap()["status"], "completed");
    })
    .await;
}
