//! Batches from the upload to their files, over HTTP, with the worker's part of them running beside.

mod forgetting;

use std::time::Duration;

use claimcheck_common::config::BatchConfig;
use claimcheck_common::domain::{JobError, JobId, WorkerId};
use claimcheck_common::files::FileStore;
use claimcheck_common::policy::Rules;
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::{claim, expire};
use claimcheck_tests::{Gate, Moment, World, eventually};
use claimcheck_worker::batches::Batches;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::files::{content, upload};
use crate::http_aliases::{NEXT, lead};
use crate::http_completions::{choice, claim_all, finish};
use crate::http_face::{MODEL, Session, announce, answer, code, with_api};
use crate::http_operators::admin;
use crate::identity_keys::make_key;
use crate::policy::RULES;
use crate::store::completion;

const LIMIT: Duration = Duration::from_secs(30);

/// The worker's part of batches, in this process.
pub(crate) struct Worker {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    /// So many lines of a batch are jobs at the same time.
    pub(crate) fn start(world: &World, in_flight: u32) -> Self {
        Self::start_with(
            world,
            BatchConfig {
                batch_in_flight: in_flight,
                ..BatchConfig::default()
            },
            Rules::open(None).unwrap(),
        )
    }

    pub(crate) fn start_with(world: &World, config: BatchConfig, policy: Rules) -> Self {
        let stop = CancellationToken::new();
        let batches = Batches {
            pool: world.pool.clone(),
            files: FileStore::open(&world.files).unwrap(),
            policy,
            delivery: world.delivery.clone(),
            config,
        };
        let task = tokio::spawn(batches.run(stop.clone()));
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn line(custom_id: &str, prompt: &str) -> String {
    let body = json!({"prompt": prompt, "max_tokens": 4});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}).to_string() + "\n"
}

/// Lines `line-1` …, each with its number as its prompt.
fn lines(count: usize) -> String {
    (1..=count)
        .map(|number| line(&format!("line-{number}"), &number.to_string()))
        .collect()
}

async fn post(session: &Session, path: &str, body: &Value) -> (StatusCode, Value) {
    answer(session.post(path).json(body)).await
}

async fn create(session: &Session, file: &str) -> String {
    let body = json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"});
    let (status, batch) = post(session, "/v1/batches", &body).await;
    assert_eq!(status, StatusCode::OK, "{batch}");
    batch["id"].as_str().unwrap().to_owned()
}

async fn get(session: &Session, id: &str) -> Value {
    let (status, batch) = answer(session.get(&format!("/v1/batches/{id}"))).await;
    assert_eq!(status, StatusCode::OK, "{batch}");
    batch
}

async fn steer(session: &Session, id: &str, what: &str) -> Value {
    // As the official library does: a JSON content type and an empty body.
    let request = session.post(&format!("/v1/batches/{id}/{what}"));
    let (status, batch) = answer(request.header("content-type", "application/json")).await;
    assert_eq!(status, StatusCode::OK, "{batch}");
    batch
}

async fn until(session: &Session, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, LIMIT, async || {
        let batch = get(session, id).await;
        holds(&batch).then_some(batch)
    })
    .await
}

async fn ended(session: &Session, id: &str, status: &str) -> Value {
    let batch = until(session, id, "the batch ends", |batch| {
        ["completed", "failed", "expired", "cancelled"].contains(&batch["status"].as_str().unwrap())
    })
    .await;
    assert_eq!(batch["status"], status, "{batch}");
    assert!(batch[format!("{status}_at")].is_i64(), "{batch}");
    batch
}

fn counts(batch: &Value) -> [u64; 3] {
    ["total", "completed", "failed"].map(|name| batch["request_counts"][name].as_u64().unwrap())
}

/// The lines of a batch's file, if it has one.
async fn file(session: &Session, batch: &Value, name: &str) -> Vec<Value> {
    match batch[name].as_str() {
        None => Vec::new(),
        Some(id) => rows(&content(session, id).await),
    }
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["custom_id"].as_str().unwrap_or("")).collect()
}

async fn results(session: &Session, id: &str, after: Option<&str>) -> Vec<Value> {
    let query = after.map_or_else(String::new, |after| format!("?after={after}"));
    let response = session
        .get(&format!("/v1/batches/{id}/results{query}"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    rows(&response.text().await.unwrap())
}

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

const WAITING: &str = "SELECT count(*) FROM jobs WHERE status = 'queued' AND available_at <= now()";

/// Takes at most `most` waiting jobs up and ends them as a worker would: `end` says how, by the prompt.
async fn run(world: &World, most: i64, end: impl Fn(&str) -> bool) -> usize {
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT $1")
        .bind(most)
        .fetch_all(&world.pool)
        .await
        .unwrap();
    let ids = ids.into_iter().map(JobId::from_uuid).collect();
    let claimed = claim::claim(&world.pool, WorkerId::new(), ids, Duration::from_mins(1))
        .await
        .unwrap();
    let endings = claimed.iter().map(|job| {
        let claimcheck_common::domain::Prompt::Text(prompt) = &job.prompt else {
            panic!("a text")
        };
        if end(prompt) {
            Settlement::completed(job.key, completion(&format!("done {prompt}")))
        } else {
            Settlement::failed(job.key, JobError::server("broken", "It broke."))
        }
    });
    let settled = settle::settle_group(&world.pool, endings.collect(), "worker:test".to_owned())
        .await
        .unwrap();
    settled.len()
}

/// Runs whatever waits until the batch has ended.
async fn run_all(world: &World, session: &Session, id: &str, end: impl Fn(&str) -> bool) -> Value {
    eventually("the batch is done", LIMIT, async || {
        run(world, 100, &end).await;
        let batch = get(session, id).await;
        ["completed", "failed", "expired", "cancelled"]
            .contains(&batch["status"].as_str().unwrap())
            .then_some(batch)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_file_is_done_once_and_stands_in_the_output_in_its_order() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        // Fewer at a time than there are lines, with blank ones in between and none at the end.
        let text = lines(50).replace(
            "{\"body\":{\"max_tokens\":4,\"prompt\":\"7\"}",
            "\n  \n{\"body\":{\"max_tokens\":4,\"prompt\":\"7\"}",
        );
        let input = upload(&ada, text.trim_end()).await;
        let body = json!({"input_file_id": input, "endpoint": "/v1/completions", "completion_window": "24h",
            "metadata": {"order": "17"}});
        let (status, made) = post(&ada, "/v1/batches", &body).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        assert_eq!(
            (made["object"].as_str(), made["status"].as_str()),
            (Some("batch"), Some("validating"))
        );
        assert_eq!(made["metadata"], json!({"order": "17"}));
        assert_eq!(
            made["expires_at"].as_i64().unwrap() - made["created_at"].as_i64().unwrap(),
            24 * 3600
        );
        assert!(made["output_file_id"].is_null() && made["errors"].is_null() && made["completed_at"].is_null());
        let id = made["id"].as_str().unwrap();
        let worker = Worker::start(world, 8);
        until(&ada, id, "lines are taken up", |batch| batch["status"] == "in_progress").await;
        let mut most = 0;
        let batch = eventually("the batch is done", LIMIT, async || {
            most = most.max(count(world, "SELECT count(*) FROM jobs WHERE finished_at IS NULL").await);
            run(world, 3, |_| true).await;
            let batch = get(&ada, id).await;
            (batch["status"] == "completed").then_some(batch)
        })
        .await;
        assert!((1..=8).contains(&most), "{most} jobs at a time");
        assert_eq!(counts(&batch), [50, 50, 0]);
        assert!(batch["error_file_id"].is_null(), "{batch}");
        let output = file(&ada, &batch, "output_file_id").await;
        let wanted: Vec<_> = (1..=50).map(|number| format!("line-{number}")).collect();
        assert_eq!(names(&output), wanted);
        for (row, number) in output.iter().zip(1..) {
            assert!(
                row["id"].as_str().unwrap().starts_with("batch_req_") && row["error"].is_null(),
                "{row}"
            );
            let response = &row["response"];
            assert_eq!(response["status_code"], 200);
            assert_eq!(response["body"]["object"], "text_completion");
            assert_eq!(response["body"]["choices"][0]["text"], format!("done {number}"));
            let job = ada.job(response["request_id"].as_str().unwrap()).await;
            assert_eq!(
                (job["status"].as_str(), job["class"].as_str()),
                (Some("completed"), Some("batch"))
            );
        }
        let usage = &batch["usage"];
        let total = output
            .iter()
            .map(|row| row["response"]["body"]["usage"]["total_tokens"].as_u64().unwrap())
            .sum::<u64>();
        assert_eq!(usage["total_tokens"].as_u64(), Some(total));
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 50);
        let events: Vec<String> =
            sqlx::query_scalar("SELECT type || ' ' || (data ->> 'id') FROM events WHERE type LIKE 'batch.%'")
                .fetch_all(&world.pool)
                .await
                .unwrap();
        assert_eq!(events, [format!("batch.completed {id}")]);
        let file = answer(ada.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())))
            .await
            .1;
        assert_eq!(
            (file["purpose"].as_str(), file["lines"].as_u64()),
            (Some("batch_output"), Some(50))
        );
        assert_eq!(answer(ada.get("/v1/batches")).await.1["data"], json!([batch]));
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_line_is_reported_with_its_number_and_nothing_runs() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let text = [
            line("a", "fine"),
            "{\"custom_id\": \n".to_owned(),
            line("a", "again"),
            line("c", "x").replace("POST", "GET"),
            line("d", "x").replace("/v1/completions", "/v1/chat/completions"),
            line("e", "x").replace("\"max_tokens\":4", "\"max_tokens\":0"),
            line("f", "fine"),
            line("g", "x").replace("\"max_tokens\":4", "\"class\":\"interactive\""),
        ]
        .concat();
        let id = create(&ada, &upload(&ada, &text).await).await;
        let worker = Worker::start(world, 8);
        let batch = ended(&ada, &id, "failed").await;
        assert_eq!(counts(&batch), [0, 0, 0]);
        let errors: Vec<_> = batch["errors"]["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| {
                (
                    error["line"].as_u64().unwrap(),
                    error["code"].as_str().unwrap(),
                    error["param"].as_str(),
                )
            })
            .collect();
        assert_eq!(
            errors,
            [
                (2, "invalid_json", None),
                (3, "duplicate_custom_id", Some("custom_id")),
                (4, "invalid_method", Some("method")),
                (5, "invalid_url", Some("url")),
                (6, "invalid_value", Some("body.max_tokens")),
                (8, "not_in_a_batch", Some("body.class")),
            ]
        );
        assert_eq!(batch["errors"]["count"], 6);
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 0);
        let (status, body) = post(&ada, &format!("/v1/batches/{id}/retry"), &Value::Null).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "nothing_failed"));
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_results_move_while_it_runs_and_what_depends_on_the_model_is_that_lines_error() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let long = line("long", &"x".repeat(600));
        let unknown = line("unknown", "x").replace("\"max_tokens\":4", "\"model\":\"none\"");
        let id = create(&ada, &upload(&ada, &(long + &lines(6) + &unknown)).await).await;
        let worker = Worker::start(world, 100);
        until(&ada, &id, "two lines are refused", |batch| counts(batch) == [8, 0, 2]).await;
        assert_eq!(run(world, 2, |prompt| prompt != "2").await, 2);
        until(&ada, &id, "two lines are done", |batch| counts(batch) == [8, 1, 3]).await;
        let first = results(&ada, &id, None).await;
        assert_eq!(names(&first), ["long", "unknown", "line-1", "line-2"]);
        assert_eq!(first[0]["response"]["status_code"], 400);
        assert_eq!(first[0]["response"]["body"]["error"]["code"], "context_length_exceeded");
        assert_eq!(first[1]["response"]["body"]["error"]["code"], "model_not_found");
        assert_eq!(first[2]["response"]["body"]["choices"][0]["text"], "done 1");
        assert_eq!(first[3]["response"]["status_code"], 500);
        let last = first[3]["id"].as_str().unwrap().to_owned();
        assert_eq!(results(&ada, &id, Some(&last)).await, [Value::Null; 0]);
        let batch = run_all(world, &ada, &id, |_| true).await;
        assert_eq!(
            (batch["status"].as_str(), counts(&batch)),
            (Some("completed"), [8, 5, 3])
        );
        assert_eq!(names(&results(&ada, &id, Some(&last)).await).len(), 4);
        let (output, errors) = (
            file(&ada, &batch, "output_file_id").await,
            file(&ada, &batch, "error_file_id").await,
        );
        assert_eq!(names(&errors), ["long", "line-2", "unknown"]);
        assert_eq!(names(&output), ["line-1", "line-3", "line-4", "line-5", "line-6"]);
        for path in [format!("/v1/batches/{id}"), format!("/v1/batches/{id}/results")] {
            assert_eq!(answer(bob.get(&path)).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        let (status, body) = answer(ada.get(&format!(
            "/v1/batches/{id}/results?after={}",
            id.replace("batch_", "batch_req_")
        )))
        .await;
        assert_eq!(
            (status, body["error"]["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some("after"))
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lines_prompt_is_held_against_the_content_policy_as_a_submit_is_and_each_hit_is_audited() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        // "poison" in this model's tokens, which are bytes.
        let tokens = line("tokens", "x").replace("\"x\"", "[79,78,72,82,78,77]");
        let text = line("poison", "a cup of Poison, please")
            + &tokens
            + &line("name", "The story of John  Doe")
            + &line("odd", "how oddd")
            + &line("plain", "Once");
        let id = create(&ada, &upload(&ada, &text).await).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), RULES).unwrap();
        let config = BatchConfig {
            batch_in_flight: 100,
            ..BatchConfig::default()
        };
        let worker = Worker::start_with(world, config, Rules::open(Some(file.path().to_owned())).unwrap());
        let batch = run_all(world, &ada, &id, |prompt| {
            assert!(!prompt.contains("Doe"), "{prompt}");
            true
        })
        .await;
        worker.stop().await;
        assert_eq!(counts(&batch), [5, 3, 2], "{batch}");
        let errors = self::file(&ada, &batch, "error_file_id").await;
        assert_eq!(names(&errors), ["poison", "tokens"]);
        for error in &errors {
            assert_eq!(error["response"]["status_code"], 400);
            let said = &error["response"]["body"]["error"];
            assert_eq!(said["code"], "content_policy_violation");
            assert!(said["message"].as_str().unwrap().contains("`abuse`"), "{said}");
        }
        let output = self::file(&ada, &batch, "output_file_id").await;
        assert_eq!(
            output[0]["response"]["body"]["choices"][0]["text"],
            "done The story of [redacted]"
        );
        let (_, log) = answer(ada.get("/v1/audit?action=policy.")).await;
        let rows = log["data"].as_array().unwrap();
        let mut told: Vec<_> = rows
            .iter()
            .map(|row| (row["action"].as_str().unwrap(), row["details"]["line"].as_u64()))
            .collect();
        told.sort_unstable();
        let rejected = "policy.rejected";
        assert_eq!(
            told,
            [
                ("policy.flagged", None),
                ("policy.redacted", None),
                (rejected, Some(1)),
                (rejected, Some(2))
            ]
        );
        let batch: claimcheck_common::domain::BatchId = id.parse().unwrap();
        let subject = batch.uuid().to_string();
        for row in rows.iter().filter(|row| row["action"] == rejected) {
            assert_eq!(row["subject"], json!(subject));
            assert_eq!(row["outcome"], "refused");
        }
        assert!(!log.to_string().to_lowercase().contains("doe"), "no text in the log");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_the_middle_keeps_what_was_done_and_every_line_stands_in_a_file() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let input = upload(&ada, &lines(30)).await;
        let id = create(&ada, &input).await;
        let worker = Worker::start(world, 8);
        until(&ada, &id, "it is in progress", |batch| batch["status"] == "in_progress").await;
        eventually("eight wait", LIMIT, async || {
            (count(world, WAITING).await == 8).then_some(())
        })
        .await;
        assert_eq!(run(world, 5, |_| true).await, 5);
        let (status, body) = answer(ada.request(Method::DELETE, &format!("/v1/files/{input}"))).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "file_in_use"));
        let batch = steer(&ada, &id, "cancel").await;
        assert_eq!(batch["status"], "cancelling");
        assert!(batch["cancelling_at"].is_i64());
        let batch = ended(&ada, &id, "cancelled").await;
        assert_eq!(counts(&batch), [30, 5, 25]);
        let (output, errors) = (
            file(&ada, &batch, "output_file_id").await,
            file(&ada, &batch, "error_file_id").await,
        );
        assert_eq!((output.len(), errors.len()), (5, 25));
        assert!(
            errors
                .iter()
                .all(|row| row["response"].is_null() && row["error"]["code"] == "batch_cancelled"),
            "{errors:?}"
        );
        assert_eq!(names(&errors).last(), Some(&"line-30"));
        assert_eq!(steer(&ada, &id, "cancel").await, batch, "an ended batch stays as it is");
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs WHERE finished_at IS NULL").await,
            0
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_when_the_window_ends_expires_and_what_was_done_is_kept() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = create(&ada, &upload(&ada, &lines(20)).await).await;
        let worker = Worker::start(world, 8);
        eventually("eight wait", LIMIT, async || {
            (count(world, WAITING).await == 8).then_some(())
        })
        .await;
        assert_eq!(run(world, 3, |_| true).await, 3);
        until(&ada, &id, "three are counted", |batch| counts(batch)[1] == 3).await;
        world
            .execute_as_owner(
                "UPDATE batches SET expires_at = now(); UPDATE jobs SET deadline_at = now() WHERE finished_at IS NULL",
            )
            .await;
        let batch = eventually("it has expired", LIMIT, async || {
            expire::expire_waiting(&world.pool).await.unwrap();
            let batch = get(&ada, &id).await;
            batch["expired_at"].is_i64().then_some(batch)
        })
        .await;
        assert_eq!(
            (batch["status"].as_str(), counts(&batch)),
            (Some("expired"), [20, 3, 17])
        );
        let (output, errors) = (
            file(&ada, &batch, "output_file_id").await,
            file(&ada, &batch, "error_file_id").await,
        );
        assert_eq!((output.len(), errors.len()), (3, 17));
        assert!(
            errors.iter().all(|row| row["error"]["code"] == "batch_expired"),
            "{errors:?}"
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_batch_takes_nothing_up_until_it_is_resumed() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = create(&ada, &upload(&ada, &lines(20)).await).await;
        let worker = Worker::start(world, 8);
        eventually("eight wait", LIMIT, async || {
            (count(world, WAITING).await == 8).then_some(())
        })
        .await;
        let paused = steer(&ada, &id, "pause").await;
        assert!(paused["paused_at"].is_i64());
        assert_eq!(steer(&ada, &id, "pause").await["paused_at"], paused["paused_at"]);
        eventually("none waits", LIMIT, async || {
            (count(world, WAITING).await == 0).then_some(())
        })
        .await;
        assert_eq!(run(world, 100, |_| true).await, 0, "not even those that the broker has");
        let (_, waiting) = answer(ada.get("/v1/jobs?status=queued")).await;
        let reasons: Vec<_> = waiting["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| &job["waiting_reason"])
            .collect();
        assert_eq!(
            reasons,
            [&json!("paused"); 8],
            "they wait for their batch, not for another try"
        );
        assert_eq!(count(world, "SELECT count(*) FROM jobs").await, 8);
        assert!(steer(&ada, &id, "resume").await["paused_at"].is_null());
        let batch = run_all(world, &ada, &id, |_| true).await;
        assert_eq!(
            (batch["status"].as_str(), counts(&batch)),
            (Some("completed"), [20, 20, 0])
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_paused_at_once_is_checked_all_the_same_and_expires_with_its_window() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = create(&ada, &upload(&ada, &lines(20)).await).await;
        steer(&ada, &id, "pause").await;
        let worker = Worker::start(world, 8);
        let batch = until(&ada, &id, "its lines are checked", |batch| {
            batch["status"] == "in_progress"
        })
        .await;
        assert!(batch["paused_at"].is_i64(), "{batch}");
        world.execute_as_owner("UPDATE batches SET expires_at = now()").await;
        let batch = ended(&ada, &id, "expired").await;
        assert_eq!(counts(&batch), [20, 0, 20]);
        assert_eq!(file(&ada, &batch, "error_file_id").await.len(), 20);
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs").await,
            0,
            "nothing was taken up"
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retrying_a_batch_does_its_failed_lines_again_and_no_others() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = create(&ada, &upload(&ada, &lines(20)).await).await;
        let worker = Worker::start(world, 4);
        let (status, body) = post(&ada, &format!("/v1/batches/{id}/retry"), &Value::Null).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "batch_not_ended"));
        let batch = run_all(world, &ada, &id, |prompt| prompt.len() == 1).await;
        assert_eq!(counts(&batch), [20, 9, 11]);
        let (status, again) = answer(ada.post(&format!("/v1/batches/{id}/retry"))).await;
        assert_eq!(status, StatusCode::OK, "{again}");
        assert_eq!(
            (again["retry_of"].as_str(), again["request_counts"]["total"].as_u64()),
            (Some(id.as_str()), Some(11))
        );
        let second = again["id"].as_str().unwrap();
        let batch = run_all(world, &ada, second, |prompt| prompt != "20").await;
        assert_eq!(
            (batch["status"].as_str(), counts(&batch)),
            (Some("completed"), [11, 10, 1])
        );
        let output = file(&ada, &batch, "output_file_id").await;
        assert_eq!(
            (
                names(&output)[0],
                output[0]["response"]["body"]["choices"][0]["text"].as_str()
            ),
            ("line-10", Some("done 10"))
        );
        let (_, third) = answer(ada.post(&format!("/v1/batches/{second}/retry"))).await;
        let batch = run_all(world, &ada, third["id"].as_str().unwrap(), |_| true).await;
        assert_eq!(counts(&batch), [1, 1, 0]);
        assert_eq!(names(&file(&ada, &batch, "output_file_id").await), ["line-20"]);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_beyond_the_tenants_limit_wait_and_single_submits_still_have_room() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        world
            .execute_as_owner("INSERT INTO tenant_limits (tenant_id, max_queued) SELECT tenant_id, 8 FROM users")
            .await;
        let id = create(&ada, &upload(&ada, &lines(30)).await).await;
        let worker = Worker::start(world, 100);
        eventually("six wait", LIMIT, async || {
            (count(world, WAITING).await == 6).then_some(())
        })
        .await;
        ada.submit(&json!({"prompt": "mine"})).await;
        let batch = eventually("the batch is done", LIMIT, async || {
            assert!(count(world, WAITING).await <= 8);
            run(world, 3, |_| true).await;
            let batch = get(&ada, &id).await;
            (batch["status"] == "completed").then_some(batch)
        })
        .await;
        assert_eq!(counts(&batch), [30, 30, 0]);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_lines_need_no_file_and_a_request_that_is_sent_twice_is_one_batch() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"requests": [{"custom_id": "a", "body": {"prompt": "1", "seed": 7}}, {"custom_id": "b", "body": {"prompt": "2"}}]});
        let send = async |header: &'static str, value: &'static str| {
            let response = ada.post("/v1/batches").header(header, value).json(&body).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let replayed = response.headers().contains_key("idempotent-replayed");
            (response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned(), replayed)
        };
        let (first, _) = send("idempotency-key", "k").await;
        assert_eq!(send("idempotency-key", "k").await, (first.clone(), true));
        // A library that sends no key counts its retries.
        let (counted, replayed) = send("x-stainless-retry-count", "0").await;
        assert!(!replayed && counted != first);
        assert_eq!(send("x-stainless-retry-count", "1").await, (counted.clone(), true));
        assert_eq!(count(world, "SELECT count(*) FROM batches").await, 2);
        eventually("the files of the repeated ones are gone", LIMIT, async || {
            (count(world, "SELECT count(*) FROM files").await == 2).then_some(())
        })
        .await;
        let worker = Worker::start(world, 8);
        let batch = run_all(world, &ada, &first, |_| true).await;
        assert_eq!((batch["status"].as_str(), counts(&batch)), (Some("completed"), [2, 2, 0]));
        assert_eq!(names(&file(&ada, &batch, "output_file_id").await), ["a", "b"]);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_comes_before_the_first_request_is_done_waits_for_its_batch() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let body = json!({"input_file_id": upload(&ada, &lines(2)).await, "endpoint": "/v1/completions"});
        let mut gate = Gate::shut(world, Moment::Statement, "INSERT ON batches", "true").await;
        let send = |retry: &'static str| {
            let request = ada.post("/v1/batches").header("x-stainless-retry-count", retry);
            tokio::spawn(answer(request.json(&body)))
        };
        let first = send("0");
        gate.reached().await;
        let second = send("1");
        eventually("both wait", LIMIT, async || (gate.waiting().await == 2).then_some(())).await;
        gate.open().await;
        let ((_, first), (_, second)) = (first.await.unwrap(), second.await.unwrap());
        assert_eq!(first["id"], second["id"]);
        assert_eq!(count(world, "SELECT count(*) FROM batches").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_input_fails_the_batch_and_keeps_what_was_done() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let input = upload(&ada, &lines(20)).await;
        let id = create(&ada, &input).await;
        let worker = Worker::start(world, 4);
        eventually("four wait", LIMIT, async || {
            (count(world, WAITING).await == 4).then_some(())
        })
        .await;
        std::fs::remove_file(std::path::Path::new(&world.files.place).join(&input)).unwrap();
        assert_eq!(run(world, 2, |_| true).await, 2);
        let batch = ended(&ada, &id, "failed").await;
        assert_eq!(counts(&batch), [20, 2, 18]);
        assert_eq!(batch["errors"]["data"][0]["code"], "input_file_lost");
        let errors = file(&ada, &batch, "error_file_id").await;
        assert_eq!(
            (file(&ada, &batch, "output_file_id").await.len(), errors.len()),
            (2, 18)
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_lost_before_its_lines_were_checked_fails_the_batch() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let input = upload(&ada, &lines(20)).await;
        let id = create(&ada, &input).await;
        std::fs::remove_file(std::path::Path::new(&world.files.place).join(&input)).unwrap();
        let worker = Worker::start(world, 4);
        let batch = ended(&ada, &id, "failed").await;
        assert_eq!(counts(&batch), [0, 0, 0]);
        let errors = &batch["errors"];
        assert_eq!(
            (errors["data"][0]["code"].as_str(), errors["count"].as_u64()),
            (Some("input_file_lost"), Some(1))
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_for_a_batch_is_refused_by_name() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let input = upload(&ada, &lines(2)).await;
        let long = upload(&ada, &"{}\n".repeat(50_001)).await;
        let base = json!({"input_file_id": input, "endpoint": "/v1/completions", "completion_window": "24h"});
        for (field, value, wanted) in [
            ("input_file_id", json!("file-none"), "file_not_found"),
            (
                "input_file_id",
                json!("file-01h455vb4pex5vsknk084sn02q"),
                "file_not_found",
            ),
            ("input_file_id", json!(long), "too_many_lines"),
            ("endpoint", json!("/v1/embeddings"), "invalid_value"),
            ("completion_window", json!("8d"), "invalid_value"),
            ("metadata", json!({"k": 1}), "invalid_value"),
            ("window", json!("24h"), "unknown_field"),
        ] {
            let mut body = base.clone();
            body[field] = value;
            let (status, answered) = post(&ada, "/v1/batches", &body).await;
            assert_eq!(
                (status, code(&answered)),
                (StatusCode::BAD_REQUEST, wanted),
                "{body}: {answered}"
            );
            assert!(
                answered["error"]["param"].as_str().unwrap().starts_with(field),
                "{answered}"
            );
        }
        let (status, answered) = post(&bob, "/v1/batches", &base).await;
        assert_eq!((status, code(&answered)), (StatusCode::BAD_REQUEST, "file_not_found"));
        assert_eq!(
            answer(bob.get("/v1/batches/batch_01h455vb4pex5vsknk084sn02q")).await.0,
            StatusCode::NOT_FOUND
        );
        assert_eq!(count(world, "SELECT count(*) FROM batches").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_guess_about_a_window_counts_the_batches_that_were_accepted_before() {
    with_api(async |world, api| {
        let (ada, bob) = (api.user("ada").await, api.user("bob").await);
        let (of_ada, of_bob) = (upload(&ada, &lines(100)).await, upload(&bob, &lines(40)).await);
        let (first, second) = tokio::join!(create(&ada, &of_ada), create(&ada, &of_ada));
        let mut ahead = Vec::new();
        for id in [first, second] {
            ahead.push(get(&ada, &id).await["feasibility"]["lines_ahead"].as_u64().unwrap());
        }
        ahead.sort_unstable();
        assert_eq!(ahead, [0, 100], "two at once are not both the first");
        // Nothing ran lately: nothing is promised.
        let batch = get(&bob, &create(&bob, &of_bob).await).await;
        assert_eq!(batch["feasibility"]["lines_ahead"], 40, "tenants take turns");
        assert_eq!(batch["feasibility"]["window"], "unknown");
        // A job took an hour, and there is one slot for it.
        world
            .execute_as_owner(
                "INSERT INTO jobs (id, tenant_id, project_id, user_id, model, model_revision, class, status, prompt_tokens,
                                   created_at, started_at, finished_at)
                 SELECT gen_random_uuid(), tenant_id, project_id, id, 'm', 'r', 'batch', 'completed', 1, now(),
                     now() - interval '61 minutes', now() - interval '1 minute' FROM users WHERE username = 'bob'",
            )
            .await;
        // 40 lines of bob's, 40 that wait, and as many of ada's between them.
        let body = |window: &str| json!({"input_file_id": of_bob, "endpoint": "/v1/completions", "completion_window": window});
        let ask = async |window: &str| {
            let mut body = body(window);
            body["dry_run"] = json!(true);
            post(&bob, "/v1/batches", &body).await.1
        };
        let (status, refused) = post(&bob, "/v1/batches", &body("24h")).await;
        assert_eq!((status, code(&refused)), (StatusCode::BAD_REQUEST, "window_infeasible"));
        assert_eq!(refused["error"]["param"], "completion_window");
        assert!(refused["error"]["message"].as_str().unwrap().contains("160h"), "{refused}");
        let asked = ask("24h").await;
        assert_eq!(
            (asked["feasible"].as_bool(), asked["obstacle"].as_str(), asked["lines"].as_u64()),
            (Some(false), Some("window_infeasible"), Some(40)),
            "{asked}"
        );
        assert_eq!(asked["feasibility"]["earliest_window"], "160h");
        assert_eq!(ask("160h").await["feasible"], true, "and asking takes nobody's place");
        // What is said of a window holds for one of two who ask at once.
        let request = body("160h");
        let (one, other) = tokio::join!(post(&bob, "/v1/batches", &request), post(&bob, "/v1/batches", &request));
        let mut statuses = [one.0, other.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [StatusCode::OK, StatusCode::BAD_REQUEST], "{one:?} {other:?}");
        let asked = ask("7d").await;
        assert_eq!((&asked["feasible"], &asked["feasibility"]["earliest_window"]), (&json!(false), &Value::Null));
        assert_eq!(count(world, "SELECT count(*) FROM batches").await, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_limited_makes_batches_and_its_limits_hold_for_every_line() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let limits = json!({"name": "few", "scopes": ["batches"], "models": [MODEL], "max_tokens": 4});
        let made = make_key(&ada, limits).await;
        let few = ada.with_token(made["key"].as_str().unwrap());
        announce(world, "other").await;
        let of = |model: &str, tokens: u32| json!({"model": model, "prompt": "Once", "max_tokens": tokens});
        let requests = json!([
            {"custom_id": "good", "body": of(MODEL, 4)},
            {"custom_id": "long", "body": of(MODEL, 5)},
            {"custom_id": "other", "body": of("other", 4)},
        ]);
        let (status, batch) = post(&few, "/v1/batches", &json!({"requests": requests})).await;
        assert_eq!(status, StatusCode::OK, "{batch}");
        let worker = Worker::start(world, 8);
        let batch = run_all(world, &few, batch["id"].as_str().unwrap(), |_| true).await;
        worker.stop().await;
        assert_eq!(names(&file(&ada, &batch, "output_file_id").await), ["good"]);
        let errors = file(&ada, &batch, "error_file_id").await;
        let said: Vec<_> = errors
            .iter()
            .map(|line| line["response"]["body"]["error"]["code"].as_str().unwrap())
            .collect();
        assert_eq!(said, ["max_tokens_not_allowed", "model_not_allowed"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_names_its_model_by_an_alias() {
    with_api(async |world, api| {
        announce(world, NEXT).await;
        let root = admin(world, api.user("root").await).await;
        lead(&root, "prod", NEXT).await;
        let ada = api.user("ada").await;
        let worker = Worker::start(world, 10);
        let body = json!({"prompt": "by its other name", "max_tokens": 4, "model": "prod"});
        let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}).to_string();
        let id = create(&ada, &upload(&ada, &line).await).await;
        let key = claim_all(world, 1).await[0];
        let job = ada.job(&key.id.to_string()).await;
        assert_eq!((&job["model"], &job["requested_model"]), (&json!(NEXT), &json!("prod")));
        finish(world, key, vec![choice(0, " it goes on", -1.0)]).await;
        let batch = ended(&ada, &id, "completed").await;
        let output = file(&ada, &batch, "output_file_id").await;
        assert_eq!(output[0]["response"]["body"]["model"], NEXT, "{output:?}");
        worker.stop().await;
    })
    .await;
}
