//! How often callers may come: by credential, by address, by plan, with Redis and without.

use std::time::Duration;

use claimcheck_api::Config;
use claimcheck_common::config::{LimitsConfig, Plans};
use claimcheck_tests::{World, eventually, in_world};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, MODEL, PASSWORD, Session, announce, answer, code, config};
use crate::http_operators::admin;

const LIMIT: Duration = Duration::from_secs(30);

fn plans(text: &str) -> Plans {
    serde_json::from_value(json!(text)).unwrap()
}

/// Limits that a test sets, on top of none.
fn limited(world: &World, change: impl FnOnce(&mut LimitsConfig)) -> Config {
    let mut config = config(world);
    "standard".clone_into(&mut config.limits.plan);
    change(&mut config.limits);
    config
}

async fn with_limits(change: impl FnOnce(&mut LimitsConfig), test: impl AsyncFnOnce(&mut World, &Api)) {
    in_world(async |world| {
        announce(world, MODEL).await;
        let api = Api::start_with(limited(world, change)).await;
        test(world, &api).await;
        api.stop().await;
    })
    .await;
}

async fn submit(session: &Session) -> Response {
    let body = json!({"prompt": "Once"});
    session.post("/v1/jobs").json(&body).send().await.unwrap()
}

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    let value = response.headers().get(name);
    value.unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_requests_at_once_exactly_the_limit_passes() {
    with_limits(
        |limits| limits.plans = plans("standard=100/h:100/h"),
        async |world, api| {
            let ada = api.user("ada").await;
            let answers = futures::future::join_all((0..1000).map(|_| submit(&ada))).await;
            let with = |status| answers.iter().filter(|answer| answer.status() == status).count();
            assert_eq!(with(StatusCode::ACCEPTED), 100);
            assert_eq!(with(StatusCode::TOO_MANY_REQUESTS), 900);
            let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs")
                .fetch_one(&world.pool)
                .await
                .unwrap();
            assert_eq!(jobs, 100);
            let eve = api.user("eve").await;
            assert_eq!(
                submit(&eve).await.status(),
                StatusCode::ACCEPTED,
                "nobody stands for another"
            );
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_tells_where_its_caller_stands_and_a_refusal_when_to_come_again() {
    with_limits(
        |limits| limits.plans = plans("standard=2/h:2/h"),
        async |_, api| {
            let ada = api.user("ada").await;
            let first = submit(&ada).await;
            assert_eq!(first.status(), StatusCode::ACCEPTED);
            assert!(header(&first, "ratelimit").starts_with("\"user\";r=1;t=1800, \"address\";r="));
            assert!(header(&first, "ratelimit-policy").starts_with("\"user\";q=2;w=3600, \"address\";q=1000;w=60"));
            assert_eq!(header(&first, "x-ratelimit-limit-requests"), "2");
            assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "1");
            let bad = ada.post("/v1/jobs").json(&json!({})).send().await.unwrap();
            assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
            assert_eq!(
                header(&bad, "x-ratelimit-remaining-requests"),
                "0",
                "a bad request counts as well"
            );
            let refused = submit(&ada).await;
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
            let wait: u32 = header(&refused, "retry-after").parse().unwrap();
            assert!((1700..=1800).contains(&wait), "{wait}");
            let body: Value = refused.json().await.unwrap();
            assert_eq!(code(&body), "rate_limit_exceeded");
            assert_eq!(body["error"]["type"], "rate_limit_error");
            let read = ada.get("/v1/jobs").send().await.unwrap();
            assert_eq!(read.status(), StatusCode::OK, "reading is not limited");
            assert!(!read.headers().contains_key("ratelimit"));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_count_together() {
    with_limits(
        |limits| limits.plans = plans("standard=3/h:3/h"),
        async |world, api| {
            let other = Api::start_with(limited(world, |limits| limits.plans = plans("standard=3/h:3/h"))).await;
            let ada = api.user("ada").await;
            let mut passed = 0;
            for session in [ada.clone(), ada.at(&other)].iter().cycle().take(8) {
                passed += usize::from(submit(session).await.status() == StatusCode::ACCEPTED);
            }
            assert_eq!(passed, 3);
            other.stop().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_jobs_are_counted_by_the_process_and_nobody_signs_in() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let ada = {
            let open = Api::start(world).await;
            let ada = open.user("ada").await;
            open.stop().await;
            ada
        };
        let mut alone = limited(world, |limits| {
            limits.plans = plans("standard=3/h:3/h");
            limits.login_rate = "100/min".parse().unwrap();
        });
        // Nothing listens on the discard port.
        alone.redis.url = "redis://127.0.0.1:9".to_owned();
        let api = Api::start_with(alone).await;
        let ada = ada.at(&api);
        let mut passed = 0;
        for _ in 0..8 {
            let response = submit(&ada).await;
            assert!(response.headers().contains_key("ratelimit"));
            passed += usize::from(response.status() == StatusCode::ACCEPTED);
        }
        assert_eq!(passed, 3);
        let refused = api.token("ada", PASSWORD).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_ins_are_limited_by_account_and_by_address_before_a_password_is_looked_at() {
    with_limits(
        |limits| {
            limits.login_rate = "3/h".parse().unwrap();
            limits.login_address_rate = "20/h".parse().unwrap();
        },
        async |_, api| {
            api.register("ada").await;
            for _ in 0..3 {
                assert_eq!(answer(api.token("ADA", "wrong")).await.0, StatusCode::UNAUTHORIZED);
            }
            let (status, body) = answer(api.token("ada", PASSWORD)).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded")
            );
            // Nobody of that name is there, and that costs and answers the same.
            let mut statuses = Vec::new();
            for guess in 0..20 {
                statuses.push(answer(api.token(&format!("nobody{guess}"), "wrong")).await.0);
            }
            // 20, less the registration and three sign-ins: the refused one did not count.
            assert!(statuses[..16].iter().all(|status| *status == StatusCode::UNAUTHORIZED));
            assert!(
                statuses[16..]
                    .iter()
                    .all(|status| *status == StatusCode::TOO_MANY_REQUESTS)
            );
            assert_eq!(api.register("eve").await.status(), StatusCode::TOO_MANY_REQUESTS);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_a_password_by_a_stolen_token_are_limited_as_sign_ins_are() {
    with_limits(
        |limits| limits.login_rate = "3/h".parse().unwrap(),
        async |_, api| {
            let ada = api.user("ada").await;
            let change = async |current: &str| {
                let body = json!({"current_password": current, "new_password": "battery staple"});
                answer(ada.post("/v1/auth/password").json(&body)).await
            };
            // Her sign-in was the first of three.
            for guess in ["wrong", "wronger"] {
                let (status, body) = change(guess).await;
                assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "wrong_password"));
            }
            let (status, body) = change(PASSWORD).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
                "the right one is not looked at either"
            );
            let (status, _) = answer(api.token("ada", PASSWORD)).await;
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "they count together");
            assert_eq!(answer(ada.get("/v1/jobs")).await.0, StatusCode::OK);
        },
    )
    .await;
}

/// Two sign-ins that say to come for two clients: what the second one is answered.
async fn told_by_a_proxy(trusted: &[&str]) -> StatusCode {
    let mut second = None;
    with_limits(
        |limits| {
            limits.login_address_rate = "1/h".parse().unwrap();
            limits.trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        },
        async |_, api| {
            for client in ["198.51.100.1", "198.51.100.2"] {
                let request = api.token("nobody", "wrong").header("x-forwarded-for", client);
                second = Some(answer(request).await.0);
            }
        },
    )
    .await;
    second.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_believed_from_configured_proxies_only() {
    assert_eq!(told_by_a_proxy(&["127.0.0.0/8"]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(told_by_a_proxy(&[]).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told_by_a_proxy(&["10.0.0.0/8"]).await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_gives_a_tenant_another_plan() {
    with_limits(
        |limits| limits.plans = plans("standard=1/h:1/h,pro=50/h:50/h"),
        async |world, api| {
            let (ada, root) = (api.user("ada").await, api.user("root").await);
            let root = admin(world, root).await;
            assert_eq!(submit(&ada).await.status(), StatusCode::ACCEPTED);
            assert_eq!(submit(&ada).await.status(), StatusCode::TOO_MANY_REQUESTS);
            let tenant: uuid::Uuid = sqlx::query_scalar("SELECT tenant_id FROM users WHERE username = 'ada'")
                .fetch_one(&world.pool)
                .await
                .unwrap();
            let tenant = claimcheck_common::domain::TenantId::from_uuid(tenant);
            let put = |body: Value| {
                root.request(Method::PUT, &format!("/v1/admin/tenants/{tenant}/limits"))
                    .json(&body)
                    .send()
            };
            let unknown = put(json!({"plan": "gold"})).await.unwrap();
            assert_eq!(unknown.status(), StatusCode::BAD_REQUEST);
            assert_eq!(
                put(json!({"plan": "pro"})).await.unwrap().status(),
                StatusCode::NO_CONTENT
            );
            eventually("the new plan holds", LIMIT, async || {
                let response = submit(&ada).await;
                (response.status() == StatusCode::ACCEPTED).then_some(())
            })
            .await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_shrink_while_the_queue_is_old_and_grow_again() {
    with_limits(
        |limits| limits.plans = plans("standard=100/h:100/h"),
        async |world, api| {
            let ada = api.user("ada").await;
            assert_eq!(submit(&ada).await.status(), StatusCode::ACCEPTED);
            eventually("the job is released", LIMIT, async || {
                let done = sqlx::query(
                    "UPDATE jobs SET available_at = now() - interval '1 minute' WHERE id IN (SELECT job_id FROM released)",
                )
                .execute(&world.pool)
                .await
                .unwrap();
                (done.rows_affected() == 1).then_some(())
            })
            .await;
            let quota = async || {
                let response = ada.post("/v1/jobs").json(&json!({})).send().await.unwrap();
                let policy = header(&response, "ratelimit-policy").to_owned();
                let quota = policy.strip_prefix("\"user\";q=").unwrap().split(';').next().unwrap();
                quota.parse::<u32>().unwrap()
            };
            // A wait of a minute and some seconds is twice the bearable one.
            eventually("half of the rate", LIMIT, async || {
                (30..=50).contains(&quota().await).then_some(())
            })
            .await;
            world.execute_as_owner("UPDATE jobs SET available_at = now()").await;
            eventually("all of it again", LIMIT, async || (quota().await == 100).then_some(())).await;
        },
    )
    .await;
}
