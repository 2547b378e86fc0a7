//! Budgets of tokens and of money: what is reserved, spent, given back and refused, for tenants, keys and batches.

use std::time::Duration;

use claimcheck_api::Config;
use claimcheck_common::config::{BatchConfig, Prices};
use claimcheck_common::domain::{JobId, JobKey, TenantId, WorkerId};
use claimcheck_common::policy::Rules;
use claimcheck_common::store::settle::{self, Settlement};
use claimcheck_common::store::{claim, expire};
use claimcheck_tests::{World, eventually, in_world, promises};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::batches::Worker;
use crate::http_face::{Api, MODEL, Session, announce, answer, code, config, with_api};
use crate::http_operators::admin;
use crate::identity_keys::make_key;
use crate::store::completion;

const LIMIT: Duration = Duration::from_secs(30);

/// Ten tokens at most: four bytes of prompt, six to generate.
fn ten() -> Value {
    json!({"prompt": "Once", "max_tokens": 6})
}

async fn submit(session: &Session) -> Response {
    session.post("/v1/jobs").json(&ten()).send().await.unwrap()
}

async fn status(session: &Session) -> StatusCode {
    submit(session).await.status()
}

fn header<'r>(response: &'r Response, name: &str) -> Option<&'r str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn tenant(world: &World, username: &str) -> TenantId {
    let tenant: Uuid = sqlx::query_scalar("SELECT tenant_id FROM users WHERE username = $1")
        .bind(username)
        .fetch_one(&world.pool)
        .await
        .unwrap();
    TenantId::from_uuid(tenant)
}

/// An admin gives the user's tenant these limits.
async fn limit(world: &World, root: &Session, username: &str, limits: Value) {
    let path = format!("/v1/admin/tenants/{}/limits", tenant(world, username).await);
    let response = root.put(&path).json(&limits).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
}

/// What the caller's organization may use, as it sees it.
async fn budget(session: &Session) -> Value {
    let (status, usage) = answer(session.get("/v1/usage")).await;
    assert_eq!(status, StatusCode::OK, "{usage}");
    usage["budget"].clone()
}

fn used(budget: &Value) -> (u64, u64) {
    let number = |name: &str| budget[name].as_u64().unwrap();
    (number("reserved_tokens"), number("spent_tokens"))
}

async fn claimed(world: &World, id: &str) -> JobKey {
    let ids = vec![id.parse::<JobId>().unwrap()];
    let claimed = claim::claim(&world.pool, WorkerId::new(), ids, Duration::from_mins(1))
        .await
        .unwrap();
    claimed[0].key
}

/// Ends a job as a worker would that generated three tokens.
async fn complete(world: &World, id: &str) {
    let key = claimed(world, id).await;
    let ending = Settlement::completed(key, completion("abc"));
    settle::settle_group(&world.pool, vec![ending], "worker:test".to_owned())
        .await
        .unwrap();
}

async fn holds(world: &World) {
    let broken = promises::broken(&world.pool).await;
    assert!(broken.is_empty(), "{broken:?}");
}

fn priced(world: &World) -> Config {
    let mut config = config(world);
    // A token of a prompt is a thousandth, a generated one two thousandths.
    config.api.prices = prices("*=1000:2000");
    config
}

fn prices(text: &str) -> Prices {
    serde_json::from_value(json!(text)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_submits_at_once_let_in_as_many_as_the_budget_is_good_for() {
    with_api(async |world, api| {
        let (ada, eve, root) = (api.user("ada").await, api.user("eve").await, api.user("root").await);
        let root = admin(world, root).await;
        limit(world, &root, "ada", json!({"budget": {"token_budget": 1000}})).await;
        let other = Api::start(world).await;
        let sessions = [ada.clone(), ada.at(&other)];
        let submits = (0..1000).map(|number| submit(&sessions[number % 2]));
        let answers = futures::future::join_all(submits).await;
        let with = |status| answers.iter().filter(|answer| answer.status() == status).count();
        assert_eq!(with(StatusCode::ACCEPTED), 100);
        assert_eq!(with(StatusCode::TOO_MANY_REQUESTS), 900);
        assert_eq!(used(&budget(&ada).await), (1000, 0));
        for (session, obstacle) in [(&ada, json!("budget_exceeded")), (&eve, Value::Null)] {
            let asked = json!({"prompt": "Once", "max_tokens": 6, "dry_run": true});
            let (_, told) = answer(session.post("/v1/jobs").json(&asked)).await;
            assert_eq!(told["obstacle"] == "budget_exceeded", !obstacle.is_null(), "{told}");
        }
        assert_eq!(status(&eve).await, StatusCode::ACCEPTED, "nobody pays for another");
        assert_eq!(budget(&eve).await, Value::Null);
        holds(world).await;
        other.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_does_not_use_is_given_back_with_its_end_and_receipt_usage_and_budget_agree() {
    with_api(async |world, api| {
        let (ada, root) = (api.user("ada").await, api.user("root").await);
        let root = admin(world, root).await;
        limit(world, &root, "ada", json!({"budget": {"token_budget": 20}})).await;
        let (one, two) = (ada.submit(&ten()).await, ada.submit(&ten()).await);
        assert_eq!(status(&ada).await, StatusCode::TOO_MANY_REQUESTS);
        complete(world, &one).await;
        let (_, receipt) = answer(ada.get(&format!("/v1/jobs/{one}/receipt"))).await;
        let spent = receipt["usage"]["total_tokens"].as_u64().unwrap();
        assert!((5..10).contains(&spent), "{receipt}");
        assert_eq!(used(&budget(&ada).await), (10, spent));
        // A job that was stopped before it began has used nothing.
        let cancelled = ada.post(&format!("/v1/jobs/{two}/cancel")).send().await.unwrap();
        assert_eq!(cancelled.status(), StatusCode::OK);
        assert_eq!(used(&budget(&ada).await), (0, spent));
        let (_, usage) = answer(ada.get("/v1/usage")).await;
        assert_eq!(usage["total"]["total_tokens"], spent);
        assert_eq!(status(&ada).await, StatusCode::ACCEPTED);
        holds(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_failed_keeps_its_reservation_until_the_job_ends() {
    with_api(async |world, api| {
        let (ada, root) = (api.user("ada").await, api.user("root").await);
        let root = admin(world, root).await;
        limit(world, &root, "ada", json!({"budget": {"token_budget": 100}})).await;
        let due = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let id = ada
            .submit(&json!({"prompt": "Once", "max_tokens": 6, "n": 2, "deadline_at": due}))
            .await;
        let error = claimcheck_common::domain::JobError::server("broken", "It broke.");
        let failed = Settlement::attempt_failed(claimed(world, &id).await, error);
        settle::settle_group(&world.pool, vec![failed], "worker:test".to_owned())
            .await
            .unwrap();
        assert_eq!(
            used(&budget(&ada).await),
            (16, 0),
            "two choices of six, and the prompt once"
        );
        sqlx::query("UPDATE jobs SET deadline_at = now() - interval '1 second'")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(expire::expire_waiting(&world.pool).await.unwrap(), 1);
        assert_eq!(used(&budget(&ada).await), (0, 0));
        holds(world).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_budget_is_its_own_is_renewed_with_its_period_and_answers_say_what_is_left() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let scopes = ["jobs:read", "jobs:write"];
        let wanted = json!({"name": "ci", "scopes": scopes, "budget": {"token_budget": 25, "budget_duration": 3600}});
        let key = make_key(&ada, wanted).await;
        assert_eq!(key["budget"]["token_budget"], 25);
        let program = ada.with_token(key["key"].as_str().unwrap());
        let first = submit(&program).await;
        assert_eq!(first.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&first, "x-ratelimit-limit-tokens"), Some("25"));
        assert_eq!(header(&first, "x-ratelimit-remaining-tokens"), Some("15"));
        let reset = header(&first, "x-ratelimit-reset-tokens").unwrap();
        assert!(reset.ends_with("ms") && reset.starts_with('3'), "{reset}");
        let first: Value = first.json().await.unwrap();
        complete(world, first["id"].as_str().unwrap()).await;
        assert_eq!(status(&program).await, StatusCode::ACCEPTED);

        let refused = submit(&program).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let wait: u32 = header(&refused, "retry-after").unwrap().parse().unwrap();
        assert!((3500..=3600).contains(&wait), "{wait}");
        let left: u64 = header(&refused, "x-ratelimit-remaining-tokens")
            .unwrap()
            .parse()
            .unwrap();
        assert!(left < 10, "{left}");
        let body: Value = refused.json().await.unwrap();
        assert_eq!(code(&body), "budget_exceeded");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("10 tokens") && message.contains("this API key's"),
            "{message}"
        );

        let person = submit(&ada).await;
        assert_eq!(
            person.status(),
            StatusCode::ACCEPTED,
            "the user's own token is not the key"
        );
        assert_eq!(header(&person, "x-ratelimit-limit-tokens"), None);
        sqlx::query("UPDATE budgets SET period_began_at = period_began_at - interval '1 hour'")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(
            status(&program).await,
            StatusCode::ACCEPTED,
            "what was spent before is forgotten"
        );
        let path = format!("/v1/api_keys/{}", key["id"].as_str().unwrap());
        let (_, shown) = answer(ada.get(&path)).await;
        assert_eq!(used(&shown["budget"]), (20, 0), "and what is reserved is not");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spending_cap_counts_by_the_prices_of_the_submit_and_can_be_raised() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let api = Api::start_with(priced(world)).await;
        let ada = api.user("ada").await;
        let scopes = ["jobs:read", "jobs:write"];
        let key = make_key(
            &ada,
            json!({"name": "ci", "scopes": scopes, "budget": {"max_budget": 0.03}}),
        )
        .await;
        let program = ada.with_token(key["key"].as_str().unwrap());
        // Four and twelve thousandths.
        let id = program.submit(&ten()).await;
        let path = format!("/v1/api_keys/{}", key["id"].as_str().unwrap());
        let shown = async || answer(ada.get(&path)).await.1["budget"].clone();
        assert_eq!(
            (&shown().await["reserved"], &shown().await["spent"]),
            (&json!(0.016), &json!(0.0))
        );
        let refused = submit(&program).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(header(&refused, "retry-after"), None, "it is not renewed");
        assert_eq!(header(&refused, "x-should-retry"), Some("false"));
        let body: Value = refused.json().await.unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("0.016, and 0.014 are left") && message.contains("greater budget"),
            "{message}"
        );

        complete(world, &id).await;
        let (_, receipt) = answer(ada.get(&format!("/v1/jobs/{id}/receipt"))).await;
        let tokens = |name: &str| receipt["usage"][name].as_f64().unwrap();
        let cost = tokens("prompt_tokens") / 1000.0 + tokens("completion_tokens") / 500.0;
        let budget = shown().await;
        assert!(
            (budget["spent"].as_f64().unwrap() - cost).abs() < 1e-9,
            "{budget} is not {cost}"
        );
        assert_eq!(budget["reserved"], 0.0);

        let more = ada.put(&format!("{path}/budget")).json(&json!({"max_budget": 1}));
        assert_eq!(answer(more).await.0, StatusCode::OK);
        assert_eq!(status(&program).await, StatusCode::ACCEPTED);
        let none = ada.put(&format!("{path}/budget")).json(&json!({}));
        assert_eq!(answer(none).await.1["budget"], Value::Null);
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_not_limited_where_nothing_has_a_price_and_budgets_are_their_owners_business() {
    with_api(async |_, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let wanted = json!({"name": "ci", "scopes": ["jobs:read"], "budget": {"max_budget": 5}});
        let (status, body) = answer(ada.post("/v1/api_keys").json(&wanted)).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_value"));
        assert!(
            body["error"]["message"].as_str().unwrap().contains("CLAIMCHECK_PRICES"),
            "{body}"
        );
        let key = make_key(&ada, json!({"name": "ci", "scopes": ["jobs:read"]})).await;
        let path = format!("/v1/api_keys/{}/budget", key["id"].as_str().unwrap());
        let foreign = eve.put(&path).json(&json!({"token_budget": 5}));
        assert_eq!(answer(foreign).await.0, StatusCode::NOT_FOUND);
        let program = ada.with_token(key["key"].as_str().unwrap());
        let own = program.put(&path).json(&json!({}));
        assert_eq!(
            answer(own).await.0,
            StatusCode::FORBIDDEN,
            "a key without the scope raises no budget"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doing_a_job_again_counts_as_the_keys_that_asks_for_it() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let id = ada.submit(&ten()).await;
        complete(world, &id).await;
        let scopes = ["jobs:read", "jobs:write"];
        let key = make_key(
            &ada,
            json!({"name": "ci", "scopes": scopes, "budget": {"token_budget": 25}}),
        )
        .await;
        let program = ada.with_token(key["key"].as_str().unwrap());
        for what in ["retry", "replay"] {
            let (status, body) = answer(program.post(&format!("/v1/jobs/{id}/{what}"))).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        }
        for what in ["retry", "replay"] {
            let (status, body) = answer(program.post(&format!("/v1/jobs/{id}/{what}"))).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::TOO_MANY_REQUESTS, "budget_exceeded")
            );
        }
        let (_, many) = answer(program.post("/v1/jobs/retry").json(&json!({}))).await;
        assert_eq!(
            (&many["count"], &many["stopped_by"]),
            (&json!(0), &json!("budget_exceeded"))
        );
        assert_eq!(
            answer(ada.post(&format!("/v1/jobs/{id}/retry"))).await.0,
            StatusCode::ACCEPTED
        );
        holds(world).await;
    })
    .await;
}

/// A batch of so many lines of a prompt of four tokens and six to generate, from its own requests.
async fn batch(session: &Session, lines: usize) -> String {
    let line = |number| json!({"custom_id": format!("{number}"), "body": ten()});
    let body = json!({"endpoint": "/v1/completions", "completion_window": "24h",
                      "requests": (0..lines).map(line).collect::<Vec<_>>()});
    let (status, batch) = answer(session.post("/v1/batches").json(&body)).await;
    assert_eq!(status, StatusCode::OK, "{batch}");
    batch["id"].as_str().unwrap().to_owned()
}

async fn waiting(world: &World) -> Vec<String> {
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    ids.into_iter().map(|id| JobId::from_uuid(id).to_string()).collect()
}

async fn until_waiting(world: &World, jobs: usize) -> Vec<String> {
    eventually("the lines that have room are jobs", LIMIT, async || {
        let waiting = waiting(world).await;
        assert!(waiting.len() <= jobs, "{} jobs wait", waiting.len());
        (waiting.len() == jobs).then_some(waiting)
    })
    .await
}

async fn all_lines_completed(world: &World, session: &Session, id: &str, lines: u64) {
    let ended = eventually("the batch ends", LIMIT, async || {
        for job in waiting(world).await {
            complete(world, &job).await;
        }
        let (_, batch) = answer(session.get(&format!("/v1/batches/{id}"))).await;
        batch["completed_at"].is_i64().then_some(batch)
    })
    .await;
    assert_eq!(ended["request_counts"]["completed"], lines, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_batch_reserve_before_they_are_jobs_and_wait_for_the_budget_without_failing() {
    with_api(async |world, api| {
        let (ada, root) = (api.user("ada").await, api.user("root").await);
        let root = admin(world, root).await;
        limit(world, &root, "ada", json!({"budget": {"token_budget": 35}})).await;
        let worker = Worker::start(world, 100);
        let id = batch(&ada, 5).await;
        let jobs = until_waiting(world, 3).await;
        assert_eq!(used(&budget(&ada).await), (30, 0));
        complete(world, &jobs[0]).await;
        holds(world).await;
        limit(world, &root, "ada", json!({"budget": {"token_budget": 1000}})).await;
        all_lines_completed(world, &ada, &id, 5).await;
        let (reserved, spent) = used(&budget(&ada).await);
        let (_, usage) = answer(ada.get("/v1/usage")).await;
        assert_eq!((reserved, json!(spent)), (0, usage["total"]["total_tokens"].clone()));
        holds(world).await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_key_made_counts_against_the_keys_cap() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let api = Api::start_with(priced(world)).await;
        let ada = api.user("ada").await;
        let scopes = ["jobs:read", "jobs:write", "batches"];
        let key = make_key(
            &ada,
            json!({"name": "ci", "scopes": scopes, "budget": {"max_budget": 0.033}}),
        )
        .await;
        let program = ada.with_token(key["key"].as_str().unwrap());
        let config = BatchConfig {
            prices: prices("*=1000:2000"),
            ..BatchConfig::default()
        };
        let worker = Worker::start_with(world, config, Rules::open(None).unwrap());
        batch(&program, 5).await;
        until_waiting(world, 2).await;
        let (_, shown) = answer(ada.get(&format!("/v1/api_keys/{}", key["id"].as_str().unwrap()))).await;
        assert_eq!(shown["budget"]["reserved"], 0.032);
        worker.stop().await;
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_beyond_the_quota_of_queued_tokens_wait_and_single_jobs_are_not_counted() {
    with_api(async |world, api| {
        let (ada, root) = (api.user("ada").await, api.user("root").await);
        let root = admin(world, root).await;
        for _ in 0..3 {
            ada.submit(&ten()).await;
        }
        // Two prompts of four tokens, and not a third.
        limit(world, &root, "ada", json!({"max_batch_tokens": 11})).await;
        let worker = Worker::start(world, 100);
        let id = batch(&ada, 7).await;
        until_waiting(world, 5).await;
        assert_eq!(
            status(&ada).await,
            StatusCode::ACCEPTED,
            "a single submit is not a batch's"
        );
        // Less than one line has: they go one by one.
        limit(world, &root, "ada", json!({"max_batch_tokens": 1})).await;
        all_lines_completed(world, &ada, &id, 7).await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_makes_a_job_is_counted_by_the_rates() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let mut limited = config(world);
        "standard".clone_into(&mut limited.limits.plan);
        let api = Api::start_with(limited).await;
        let ada = api.user("ada").await;
        let unknown = JobId::new();
        for (method, path) in [
            (Method::POST, "/v1/jobs".to_owned()),
            (Method::PUT, "/v1/jobs/mine".to_owned()),
            (Method::POST, "/v1/completions".to_owned()),
            (Method::POST, "/v1/responses".to_owned()),
            (Method::POST, "/v1/jobs/retry".to_owned()),
            (Method::POST, format!("/v1/jobs/{unknown}/retry")),
            (Method::POST, format!("/v1/jobs/{unknown}/replay")),
        ] {
            let response = ada.request(method, &path).json(&json!({})).send().await.unwrap();
            assert!(header(&response, "ratelimit").is_some(), "{path} is not counted");
        }
        api.stop().await;
    })
    .await;
}
