//! A batch whose API and worker are killed in the middle ends with every line in its files, once.

use std::collections::BTreeSet;

use claimcheck_tests::{Gate, Installation, Moment, Process, TINY, World, eventually, in_world, promises};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Caller, LIMIT, count, hurry};
use crate::files::form;

const LINES: usize = 3000;
/// More than are fed in one transaction.
const FEW: usize = 700;

fn lines(count: usize) -> String {
    (0..count)
        .map(|number| {
            let body = json!({"model": TINY, "prompt": format!("Story {number}"), "max_tokens": 2, "seed": number});
            json!({"custom_id": format!("line-{number}"), "method": "POST", "url": "/v1/completions", "body": body})
                .to_string()
                + "\n"
        })
        .collect()
}

impl Caller {
    /// Uploads lines and makes a batch of them; answers its id.
    async fn batch(&self, lines: &str) -> String {
        let body = form(&[("purpose", b"batch"), ("file", lines.as_bytes())]);
        let media = "multipart/form-data; boundary=the-boundary";
        let sent = self
            .post("/v1/files")
            .header("content-type", media)
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), StatusCode::OK);
        let file: Value = sent.json().await.unwrap();
        let body = json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
        let sent = self.post("/v1/batches").json(&body).send().await.unwrap();
        assert_eq!(sent.status(), StatusCode::OK);
        let batch: Value = sent.json().await.unwrap();
        batch["id"].as_str().unwrap().to_owned()
    }

    async fn read(&self, path: &str) -> Option<String> {
        let answer = self
            .client
            .get(format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .send()
            .await
            .ok()?;
        (answer.status() == StatusCode::OK).then_some(answer.text().await.ok()?)
    }

    async fn until(&self, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, LIMIT, async || {
            let batch: Value = serde_json::from_str(&self.read(&format!("/v1/batches/{id}")).await?).unwrap();
            holds(&batch).then_some(batch)
        })
        .await
    }

    /// Waits for the batch's end; each of its lines completed and stands in the output once.
    async fn is_complete(&self, world: &World, id: &str, lines: usize) {
        let batch = self
            .until(id, "the batch completes", |batch| batch["completed_at"].is_i64())
            .await;
        assert_eq!(
            batch["request_counts"],
            json!({"total": lines, "completed": lines, "failed": 0})
        );
        assert!(batch["error_file_id"].is_null());
        let output = self
            .read(&format!(
                "/v1/files/{}/content",
                batch["output_file_id"].as_str().unwrap()
            ))
            .await
            .unwrap();
        let names: Vec<_> = output
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["custom_id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let distinct: BTreeSet<_> = names.iter().collect();
        assert_eq!((names.len(), distinct.len()), (lines, lines));
        assert_eq!(
            count(world, "SELECT count(*) FROM jobs").await,
            lines as i64,
            "no line was a job twice"
        );
        assert_eq!(
            count(world, "SELECT count(*) FROM events WHERE type = 'batch.completed'").await,
            1
        );
        assert_eq!(promises::broken(&world.pool).await, [""; 0]);
    }
}

fn completed(batch: &Value) -> u64 {
    batch["request_counts"]["completed"].as_u64().unwrap()
}

async fn restarted(process: &mut Process) {
    process.kill();
    process.start();
    process.answers("/readyz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_survives_kill_9_of_api_and_worker_and_has_every_line_once() {
    in_world(async |world| {
        hurry(world);
        promises::watch(world).await;
        let installation = Installation::of(world);
        let mut api = installation.api().await;
        let more = || [("CLAIMCHECK_BATCH_IN_FLIGHT", "500".to_owned())];
        let mut worker = installation.worker("worker", more()).await;
        let mut second = installation.worker("second", more()).await;
        let caller = Caller::of(&api, "ada").await;
        let id = caller.batch(&lines(LINES)).await;
        caller
            .until(&id, "some lines are done", |batch| completed(batch) > 100)
            .await;
        restarted(&mut worker).await;
        caller
            .until(&id, "more lines are done", |batch| completed(batch) > 600)
            .await;
        api.kill();
        restarted(&mut second).await;
        api.start();
        api.answers("/readyz").await;
        caller
            .until(&id, "most lines are done", |batch| completed(batch) > 1500)
            .await;
        restarted(&mut worker).await;
        restarted(&mut second).await;
        caller.is_complete(world, &id, LINES).await;
    })
    .await;
}

/// The worker is killed where it stands at a gate, and started again.
async fn killed_at(moment: Moment, event: &str, condition: &str) {
    in_world(async |world| {
        hurry(world);
        promises::watch(world).await;
        let installation = Installation::of(world);
        let api = installation.api().await;
        let mut worker = installation.worker("worker", []).await;
        let caller = Caller::of(&api, "ada").await;
        let mut gate = Gate::shut(world, moment, event, condition).await;
        let id = caller.batch(&lines(FEW)).await;
        gate.reached().await;
        worker.kill();
        gate.open_for_the_dead().await;
        worker.start();
        worker.answers("/readyz").await;
        caller.is_complete(world, &id, FEW).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_it_feeds_lines_loses_and_doubles_none() {
    killed_at(Moment::Statement, "INSERT ON batch_items", "NEW.line = 600").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_before_it_hears_that_lines_were_fed_loses_and_doubles_none() {
    killed_at(Moment::Commit, "INSERT ON batch_items", "NEW.line = 600").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_it_counts_lines_counts_each_once() {
    killed_at(Moment::Commit, "UPDATE ON batch_items", "NEW.seq = 100").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_a_batchs_end_ends_it_once() {
    for moment in [Moment::Statement, Moment::Commit] {
        killed_at(moment, "UPDATE ON batches", "NEW.status = 'completed'").await;
    }
}
