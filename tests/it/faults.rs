//! No accepted job is lost and none settles twice: the real binaries, killed, frozen and cut off in the middle of work.

mod batches;
mod batching;
mod chaos;
mod cli_batch;
mod delivery;
mod fence;
mod frozen;
mod full_disk;
mod models;
mod operators;
mod outages;
mod rolling;
mod streams;
mod webhooks;
mod windows;
mod wires;

use std::time::Duration;

use claimcheck_tests::{Installation, Process, TINY, Wire, World, eventually};
use reqwest::StatusCode;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(2);

/// Times that let a test see leases lapse and messages sent again.
fn hurry(world: &mut World) {
    world.delivery.lease = Duration::from_secs(3);
    world.delivery.heartbeat = Duration::from_millis(500);
    world.delivery.maintenance_interval = Duration::from_millis(250);
    world.delivery.reemit_after = Duration::from_secs(3);
    // A lease of 9 s.
    world.webhooks.timeout = Duration::from_secs(2);
}

/// What the processes go by to reach the servers.
struct Wires {
    database: Wire,
    broker: Wire,
}

/// An installation whose processes reach Postgres and RabbitMQ by wires; the test itself goes straight to them.
async fn wired(world: &mut World) -> (Installation, Wires) {
    let wires = Wires {
        database: Wire::to(&world.database.url).await,
        broker: Wire::to(&world.broker.url).await,
    };
    let straight = (world.database.url.clone(), world.broker.url.clone());
    world.database.url = wires.database.by(&straight.0);
    world.broker.url = wires.broker.by(&straight.1);
    let installation = Installation::of(world);
    (world.database.url, world.broker.url) = straight;
    (installation, wires)
}

/// A user of the API who does not give up: what failed without an answer, with 503, or is still at work is sent again.
#[derive(Clone)]
struct Caller {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Caller {
    async fn of(api: &Process, name: &str) -> Self {
        let mut caller = Self {
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(15))
                .build()
                .unwrap(),
            base: api.url(""),
            token: String::new(),
        };
        let password = "correct horse";
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": password});
        let registered = caller.post("/v1/auth/register").json(&body).send().await.unwrap();
        assert_eq!(registered.status(), StatusCode::CREATED);
        let form = format!(
            "grant_type=password&username={name}&password={}",
            password.replace(' ', "+")
        );
        let answer = caller
            .post("/v1/auth/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await
            .unwrap();
        let body: Value = answer.json().await.unwrap();
        body["access_token"].as_str().unwrap().clone_into(&mut caller.token);
        caller
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}{path}", self.base))
            .bearer_auth(&self.token)
    }

    /// Submits until it is accepted, always under the same key. Answers the job's id.
    async fn submit(&self, key: &str, job: &Value) -> String {
        eventually(&format!("{key} is accepted"), LIMIT, async || {
            let sent = self
                .post("/v1/jobs")
                .header("idempotency-key", key)
                .json(job)
                .send()
                .await;
            let answer = sent.ok()?;
            let status = answer.status();
            let body = answer.text().await.ok()?;
            if status == StatusCode::SERVICE_UNAVAILABLE {
                return None;
            }
            let body: Value = serde_json::from_str(&body).unwrap();
            // The database has not noticed yet that whoever began this is cut off.
            if body["error"]["code"] == "idempotency_key_in_flight" {
                return None;
            }
            assert_eq!(status, StatusCode::ACCEPTED, "{body}");
            Some(body["id"].as_str().unwrap().to_owned())
        })
        .await
    }

    async fn job(&self, id: &str) -> Value {
        let answer = self
            .client
            .get(format!("{}/v1/jobs/{id}", self.base))
            .bearer_auth(&self.token);
        answer.send().await.unwrap().json().await.unwrap()
    }
}

/// Tokens of a job that still runs long after it was seen running: nearly all that the model can hold.
const LONG: usize = 4000;

/// A job with a little text.
fn job(number: usize, max_tokens: usize) -> Value {
    json!({"model": TINY, "prompt": format!("Story {number}: once upon a time"), "max_tokens": max_tokens, "seed": number})
}

/// The one number that a query answers.
async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap()
}

/// Waits until a query counts `wanted`; a database that is away counts nothing.
async fn until_count(world: &World, wanted: usize, sql: &'static str) {
    eventually(&format!("{wanted} of `{sql}`"), LIMIT, async || {
        let now: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.ok()?;
        (now == wanted as i64).then_some(())
    })
    .await;
}

const RUNNING: &str = "SELECT count(*) FROM jobs WHERE status = 'in_progress'";
const COMPLETED: &str = "SELECT count(*) FROM jobs WHERE status = 'completed'";
const ATTEMPTS: &str = "SELECT attempt::int8 FROM jobs";
/// What a claim does to a job's row, as the condition of a gate.
const CLAIMS: &str = "OLD.status = 'queued' AND NEW.status = 'in_progress'";

/// Every job completed, and it was written down exactly once: one output, one event, one audit row each.
async fn assert_each_settled_once(world: &World, jobs: usize) {
    let wanted = jobs as i64;
    assert_eq!(count(world, "SELECT count(*) FROM jobs").await, wanted, "jobs");
    assert_eq!(count(world, COMPLETED).await, wanted, "completed");
    assert_eq!(
        count(world, "SELECT count(*) FROM job_outputs").await,
        wanted,
        "outputs"
    );
    for ledger in [
        "SELECT count(*) FROM events WHERE type <> 'job.cancelled' AND job_id IS NOT NULL",
        "SELECT count(DISTINCT job_id) FROM events WHERE type = 'job.completed'",
        "SELECT count(*) FROM audit_log WHERE action IN ('job.completed', 'job.failed', 'job.cancelled', 'job.expired')",
        "SELECT count(DISTINCT subject) FROM audit_log WHERE action = 'job.completed'",
    ] {
        assert_eq!(count(world, ledger).await, wanted, "{ledger}");
    }
}
