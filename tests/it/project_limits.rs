//! What an organization lets one of its projects use: rates, waiting jobs, budgets, beside those of the whole.

use std::time::Duration;

use claimcheck_tests::{World, eventually, in_world};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, MODEL, Session, announce, answer, code, with_api};
use crate::identity_projects::{make_project, text};

const LIMIT: Duration = Duration::from_secs(30);
const HEADER: &str = "openai-project";

async fn submit(session: &Session, project: &str) -> Response {
    // Ten tokens at most: four bytes of prompt, six to generate.
    let body = json!({"prompt": "Once", "max_tokens": 6});
    let request = session.post("/v1/jobs").header(HEADER, project).json(&body);
    request.send().await.unwrap()
}

async fn limit(session: &Session, project: &str, limits: Value) -> (StatusCode, Value) {
    let path = format!("/v1/projects/{project}/limits");
    answer(session.request(Method::PUT, &path).json(&limits)).await
}

/// A thousand submits to a project at two processes, in which no more may pass than `most`.
async fn a_thousand(world: &World, api: &Api, ada: &Session, project: &str, most: usize) {
    let other = Api::start(world).await;
    let sessions = [ada.clone(), ada.at(&other)];
    let submits = (0..1000).map(|number| submit(&sessions[number % 2], project));
    let answers = futures::future::join_all(submits).await;
    let with = |status| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!(with(StatusCode::ACCEPTED), most);
    assert_eq!(with(StatusCode::TOO_MANY_REQUESTS), 1000 - most);
    other.stop().await;
    let elsewhere = ada.at(api).post("/v1/jobs").json(&json!({"prompt": "Once"}));
    assert_eq!(
        answer(elsewhere).await.0,
        StatusCode::ACCEPTED,
        "other projects are not held back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_submits_at_once_as_many_wait_as_the_project_may_have() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let project = make_project(&ada, "small").await;
        let (status, limits) = limit(&ada, &project, json!({"max_queued": 70})).await;
        assert_eq!(
            (status, &limits["max_queued"]),
            (StatusCode::OK, &json!(70)),
            "{limits}"
        );
        a_thousand(world, api, &ada, &project, 70).await;
        let asked = json!({"prompt": "Once", "dry_run": true});
        let (_, told) = answer(ada.post("/v1/jobs").header(HEADER, &project).json(&asked)).await;
        assert_eq!(told["obstacle"], "quota_exceeded", "{told}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_submits_at_once_as_many_pass_as_the_projects_budget_is_good_for() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let project = make_project(&ada, "small").await;
        let (status, _) = limit(&ada, &project, json!({"budget": {"token_budget": 600}})).await;
        assert_eq!(status, StatusCode::OK);
        a_thousand(world, api, &ada, &project, 60).await;
        let (_, limits) = answer(ada.get(&format!("/v1/projects/{project}/limits"))).await;
        assert_eq!(limits["budget"]["reserved_tokens"], 600, "{limits}");
        let (_, refused) = answer(
            ada.post("/v1/jobs")
                .header(HEADER, &project)
                .json(&json!({"prompt": "Once", "max_tokens": 6})),
        )
        .await;
        assert_eq!(code(&refused), "budget_exceeded");
        assert!(text(&refused["error"], "message").contains("project's"), "{refused}");
        let broken = claimcheck_tests::promises::broken(&world.pool).await;
        assert!(broken.is_empty(), "{broken:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_requests_at_once_as_many_pass_as_the_projects_rate_lets_through() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let first = Api::start(world).await;
        let ada = first.user("ada").await;
        let project = make_project(&ada, "small").await;
        let (status, limits) = limit(&ada, &project, json!({"rate": "50/h"})).await;
        assert_eq!((status, &limits["rate"]), (StatusCode::OK, &json!("50/h")), "{limits}");
        eventually("it is known", LIMIT, async || {
            let response = submit(&ada, &project).await;
            let policy = response.headers().get("ratelimit-policy")?.to_str().unwrap().to_owned();
            policy.contains("\"project\";q=50;w=3600").then_some(())
        })
        .await;
        let answers = futures::future::join_all((0..1000).map(|_| submit(&ada, &project))).await;
        let passed = answers.iter().filter(|answer| answer.status() == StatusCode::ACCEPTED);
        assert_eq!(passed.count(), 49);
        first.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_limits_are_its_organizations_to_set() {
    with_api(async |_, api| {
        let (ada, eve, bob) = (api.user("ada").await, api.user("eve").await, api.user("bob").await);
        let project = make_project(&ada, "shared").await;
        let members = format!("/v1/projects/{project}/members");
        let (status, _) = answer(ada.post(&members).json(&json!({"user": "eve", "role": "admin"}))).await;
        assert_eq!(status, StatusCode::OK);
        let (status, body) = limit(&eve, &project, json!({})).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "organization_only"));
        let (status, body) = limit(&bob, &project, json!({})).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "project_not_found"));
        for bad in [
            json!({"rate": "60"}),
            json!({"rate": "0/min"}),
            json!({"max_queued": -1}),
            json!({"plan": "a"}),
        ] {
            assert_eq!(
                limit(&ada, &project, bad.clone()).await.0,
                StatusCode::BAD_REQUEST,
                "{bad}"
            );
        }
        let all = json!({"rate": "5/s", "max_queued": 1, "budget": {"token_budget": 10, "budget_duration": 60}});
        assert_eq!(limit(&ada, &project, all).await.0, StatusCode::OK);
        let (_, seen) = answer(eve.get(&format!("/v1/projects/{project}/limits"))).await;
        assert_eq!(
            (&seen["rate"], &seen["budget"]["token_budget"]),
            (&json!("5/s"), &json!(10))
        );
        let (_, none) = limit(&ada, &project, json!({})).await;
        let nothing = json!({"object": "project_limits", "rate": null, "max_queued": null, "budget": null});
        assert_eq!(none, nothing);
    })
    .await;
}
