//! Whatever is made under an idempotency key is made once, and what is shown once is kept for no repetition.

use claimcheck_tests::World;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::files::content;
use crate::http_face::{Session, answer, code, with_api};
use crate::store::count;

const TEXT: &str = "{\"a\": 1}\n";
const KEPT_A_DAY: &str = "SELECT count(*) FROM idempotency_keys
    WHERE expires_at > now() + interval '23 hours 59 minutes' AND expires_at <= now() + interval '24 hours'";

/// A route that makes something.
struct Route {
    path: String,
    /// What makes one of this name.
    body: fn(&str) -> Value,
    /// The field that is shown once.
    secret: Option<&'static str>,
    /// How many there are.
    made: &'static str,
}

async fn routes(session: &Session) -> [Route; 4] {
    let (_, projects) = answer(session.get("/v1/projects")).await;
    let project = projects["data"][0]["id"].as_str().unwrap();
    [
        Route {
            path: "/v1/projects".to_owned(),
            body: |name| json!({"name": name}),
            secret: None,
            made: "SELECT count(*) FROM projects WHERE name = 'once'",
        },
        Route {
            path: "/v1/api_keys".to_owned(),
            body: |name| json!({"name": name, "scopes": ["jobs:read"], "budget": {"token_budget": 1000}}),
            secret: Some("key"),
            made: "SELECT count(*) FROM api_keys",
        },
        Route {
            path: "/v1/webhook_endpoints".to_owned(),
            body: |name| json!({"url": "https://example.org/", "description": name}),
            secret: Some("secret"),
            made: "SELECT count(*) FROM webhook_endpoints",
        },
        Route {
            path: format!("/v1/projects/{project}/service_accounts"),
            body: |name| json!({"name": name, "scopes": ["jobs:read"]}),
            secret: Some("client_secret"),
            made: "SELECT count(*) FROM service_accounts",
        },
    ]
}

fn with_key(session: &Session, path: &str, key: &str, body: &Value) -> RequestBuilder {
    session.post(path).header("idempotency-key", key).json(body)
}

/// Everything that is kept for repetitions.
async fn kept(world: &World) -> String {
    let rows: Vec<String> = sqlx::query_scalar("SELECT k::text FROM idempotency_keys k")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    rows.join("\n")
}

async fn is_reused(request: RequestBuilder, what: &str) {
    let (status, body) = answer(request).await;
    let wanted = (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused");
    assert_eq!((status, code(&body)), wanted, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_under_a_key_is_made_once_and_its_secret_is_shown_once_and_kept_nowhere() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let routes = routes(&ada).await;
        for (place, route) in routes.iter().enumerate() {
            let (path, body) = (&route.path, (route.body)("once"));
            let sent = with_key(&ada, path, path, &body).send().await.unwrap();
            assert_eq!(sent.status(), StatusCode::CREATED, "{path}");
            assert!(!sent.headers().contains_key("idempotent-replayed"), "{path}");
            let media = sent.headers()["content-type"].clone();
            let mut first: Value = sent.json().await.unwrap();
            if let Some(field) = route.secret {
                let secret = first.as_object_mut().unwrap().remove(field).unwrap();
                assert!(!kept(world).await.contains(secret.as_str().unwrap()), "{path}");
            }

            let again = with_key(&ada, path, path, &body).send().await.unwrap();
            assert_eq!(again.status(), StatusCode::CREATED, "{path}");
            assert_eq!(again.headers()["idempotent-replayed"], "true", "{path}");
            assert_eq!(again.headers()["content-type"], media, "{path}");
            assert_eq!(again.json::<Value>().await.unwrap(), first, "{path}");

            is_reused(with_key(&ada, path, path, &(route.body)("another")), path).await;
            assert_eq!(count(&world.pool, KEPT_A_DAY).await, place as i64 + 1, "{path}");
            let next = &routes[(place + 1) % routes.len()];
            is_reused(with_key(&ada, &next.path, path, &(next.body)("once")), &next.path).await;
            assert_eq!(count(&world.pool, route.made).await, 1, "{path}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_are_sent_at_once_under_a_key_one_makes_something() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        for route in routes(&ada).await {
            let (path, body) = (&route.path, (route.body)("once"));
            let sent = (0..20).map(|_| answer(with_key(&ada, path, path, &body)));
            let answers = futures::future::join_all(sent).await;
            let is_made = |(status, _): &(StatusCode, Value)| *status == StatusCode::CREATED;
            assert!(answers.iter().any(is_made), "{path}");
            for (status, body) in answers.into_iter().filter(|answer| !is_made(answer)) {
                let wanted = (StatusCode::CONFLICT, "idempotency_key_in_flight");
                assert_eq!((status, code(&body)), wanted, "{path}");
            }
            assert_eq!(count(&world.pool, route.made).await, 1, "{path}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_binds_no_key() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        world
            .execute_as_owner(
                "INSERT INTO projects (id, organization_id, name)
                 SELECT gen_random_uuid(), organization_id, 'more' FROM projects, generate_series(1, 99)",
            )
            .await;
        let make = || with_key(&ada, "/v1/projects", "k", &json!({"name": "once"}));
        let (status, body) = answer(make()).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "too_many_projects"));
        world
            .execute_as_owner("UPDATE projects SET archived_at = now() WHERE name = 'more'")
            .await;
        assert_eq!(answer(make()).await.0, StatusCode::CREATED);
    })
    .await;
}

/// A form of a file; its boundary is another each time.
fn form(name: &str, text: &str) -> Form {
    let file = Part::text(text.to_owned()).file_name(name.to_owned());
    Form::new().text("purpose", "batch").part("file", file)
}

fn upload(session: &Session, key: &str, form: Form) -> RequestBuilder {
    session.post("/v1/files").header("idempotency-key", key).multipart(form)
}

/// Rows and objects.
async fn files(world: &World) -> (i64, usize) {
    let objects = std::fs::read_dir(&world.files.place).unwrap().count();
    (count(&world.pool, "SELECT count(*) FROM files").await, objects)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_uploaded_again_under_its_key_is_one_file() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let first = answer(upload(&ada, "k", form("in.jsonl", TEXT))).await;
        assert_eq!(first.0, StatusCode::OK, "{}", first.1);
        let again = upload(&ada, "k", form("in.jsonl", TEXT)).send().await.unwrap();
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!((again.status(), again.json::<Value>().await.unwrap()), first);
        let expiring = form("in.jsonl", TEXT)
            .text("expires_after[anchor]", "created_at")
            .text("expires_after[seconds]", "3600");
        for (what, form) in [
            ("another name", form("out.jsonl", TEXT)),
            ("another text", form("in.jsonl", "{\"a\": 2}\n")),
            ("an expiry", expiring),
        ] {
            is_reused(upload(&ada, "k", form), what).await;
        }
        assert_eq!(files(world).await, (1, 1), "the others are removed");
        assert_eq!(content(&ada, first.1["id"].as_str().unwrap()).await, TEXT);

        let sent = (0..10).map(|_| answer(upload(&ada, "at-once", form("in.jsonl", TEXT))));
        for (status, body) in futures::future::join_all(sent).await {
            let in_flight = status == StatusCode::CONFLICT && code(&body) == "idempotency_key_in_flight";
            assert!(status == StatusCode::OK || in_flight, "{status}: {body}");
        }
        assert_eq!(files(world).await, (2, 2), "one for each key");
    })
    .await;
}
