//! Every route of the OpenAPI document, tried with every kind of credential that must not do.
//!
//! Routes that are added later are tried by themselves: what each needs stands in the document (`x-needs`, written by
//! `router.rs`). A route about somebody's things has to be added to [`foreign`].

use std::time::Duration;

use claimcheck_common::domain::IdentityId;
use claimcheck_tests::{World, eventually};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, Session, answer, code, config, with_api};
use crate::http_operators::{a_job, admin};
use crate::identity_keys::{keyed, make_key};

const SCOPES: [&str; 5] = ["jobs:read", "jobs:write", "batches", "webhooks", "admin"];

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    needs: String,
}

impl Operation {
    /// Its path with something in its parameters.
    fn filled(&self, id: &str) -> String {
        let parts = self
            .path
            .split('/')
            .map(|part| if part.starts_with('{') { id } else { part });
        parts.collect::<Vec<_>>().join("/")
    }

    /// The scope that a key must have.
    fn scope(&self) -> Option<&str> {
        match self.needs.as_str() {
            "keys" | "auditor" | "admin" => Some("admin"),
            scope => SCOPES.contains(&scope).then_some(scope),
        }
    }

    fn is_open(&self) -> bool {
        self.needs == "nothing"
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.method, self.path, self.needs)
    }
}

async fn operations(api: &Api) -> Vec<Operation> {
    let (_, document) = answer(api.get("/openapi.json")).await;
    let mut found = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            found.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                needs: operation["x-needs"]
                    .as_str()
                    .expect("each route states its need")
                    .to_owned(),
            });
        }
    }
    assert!(found.len() > 25, "the document lists the routes");
    found
}

/// 401 or 403 with that code, whatever else the request lacks.
async fn refused(operation: &Operation, request: RequestBuilder, status: StatusCode, codes: &[&str], what: &str) {
    let response = request.json(&json!({})).send().await.unwrap();
    assert_eq!(response.status(), status, "{operation} with {what}");
    let challenged = response.headers().contains_key("www-authenticate");
    assert_eq!(
        challenged,
        status == StatusCode::UNAUTHORIZED,
        "{operation} with {what}"
    );
    let body: Value = response.json().await.unwrap();
    assert!(codes.contains(&code(&body)), "{operation} with {what}: {body}");
}

/// A token that was good and whose time is over.
async fn expired_token(world: &World, name: &str) -> String {
    let mut config = config(world);
    config.api.token_ttl = Duration::from_secs(1);
    let brief = Api::start_with(config).await;
    let session = brief.user(name).await;
    eventually("the token expires", Duration::from_secs(30), async || {
        let (status, body) = answer(session.get("/v1/jobs")).await;
        (status == StatusCode::UNAUTHORIZED).then(|| {
            let message = body["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains("expired"), "{message}");
        })
    })
    .await;
    brief.stop().await;
    session.token
}

/// The same kind of installation with secrets of its own: its credentials are good there and not here.
async fn foreign_token(world: &World, name: &str) -> String {
    let mut config = config(world);
    config.api.jwt_secret = "another secret of at least thirty-two bytes".to_owned().into();
    let other = Api::start_with(config).await;
    let session = other.user(name).await;
    assert_eq!(answer(session.get("/v1/jobs")).await.0, StatusCode::OK);
    other.stop().await;
    session.token
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_lets_in_a_stranger_or_an_expired_foreign_or_revoked_credential() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let revoked = make_key(&root, json!({"name": "revoked", "scopes": SCOPES})).await;
        let path = format!("/v1/api_keys/{}", revoked["id"].as_str().unwrap());
        assert_eq!(answer(root.request(Method::DELETE, &path)).await.0, StatusCode::OK);
        let lapsed = keyed(&root, &SCOPES).await;
        world
            .execute_as_owner("UPDATE api_keys SET expires_at = now() WHERE name = 'test'")
            .await;
        let inactive = keyed(&api.user("gone").await, &SCOPES).await;
        let left = api.user("left").await;
        world
            .execute_as_owner("UPDATE users SET is_active = false WHERE username IN ('gone', 'left')")
            .await;
        let bad = [
            ("a word", "x".to_owned()),
            ("an expired token", expired_token(world, "late").await),
            ("another installation's token", foreign_token(world, "other").await),
            ("a revoked key", revoked["key"].as_str().unwrap().to_owned()),
            ("an expired key", lapsed.token),
            ("a mistyped key", format!("{}0", revoked["key"].as_str().unwrap())),
            ("a deactivated user's key", inactive.token),
            ("a deactivated user's token", left.token),
        ];
        for operation in operations(api).await {
            let request = || root.anonymous(operation.method.clone(), &operation.filled("x"));
            if operation.is_open() {
                let status = request().send().await.unwrap().status();
                assert!(status != StatusCode::FORBIDDEN, "{operation} is open");
                continue;
            }
            let unauthorized = StatusCode::UNAUTHORIZED;
            refused(&operation, request(), unauthorized, &["missing_token"], "nothing").await;
            for (what, credential) in &bad {
                let shown = request().bearer_auth(credential);
                refused(&operation, shown, unauthorized, &["invalid_token"], what).await;
                if credential.starts_with("cck_") {
                    let shown = request().header("x-api-key", credential);
                    refused(&operation, shown, unauthorized, &["invalid_token"], what).await;
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_lets_in_a_key_without_its_scope_or_a_user_without_its_role() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        let powerful = keyed(&root, &SCOPES).await;
        let plain = keyed(&ada, &SCOPES).await;
        let forbidden = StatusCode::FORBIDDEN;
        for operation in operations(api).await {
            let (method, path) = (&operation.method, operation.filled("x"));
            if let Some(scope) = operation.scope() {
                let others: Vec<&str> = SCOPES.into_iter().filter(|other| *other != scope).collect();
                let key = keyed(&root, &others).await;
                let codes = ["insufficient_scope"];
                refused(
                    &operation,
                    key.request(method.clone(), &path),
                    forbidden,
                    &codes,
                    "every other scope",
                )
                .await;
            }
            match operation.needs.as_str() {
                "user" => {
                    let request = powerful.request(method.clone(), &path);
                    refused(&operation, request, forbidden, &["user_only"], "a key").await;
                }
                "auditor" | "admin" => {
                    for (session, what) in [(&ada, "a user's token"), (&plain, "a user's key")] {
                        let request = session.request(method.clone(), &path);
                        let codes = ["admin_only", "auditor_only"];
                        refused(&operation, request, forbidden, &codes, what).await;
                    }
                }
                _ => {}
            }
        }
        world
            .execute_as_owner("UPDATE users SET role = 'auditor' WHERE username = 'ada'")
            .await;
        for operation in operations(api).await.iter().filter(|one| one.needs == "admin") {
            let request = ada.request(operation.method.clone(), &operation.filled("x"));
            refused(operation, request, forbidden, &["admin_only"], "an auditor's token").await;
        }
        // The role was set behind the API's back, which hears of it moments later.
        eventually("auditors may look", Duration::from_secs(20), async || {
            let (status, _) = answer(ada.get("/v1/admin/workers")).await;
            (status == StatusCode::OK).then_some(())
        })
        .await;
    })
    .await;
}

/// For a route about somebody's things: the id of the victim's, and a body that is good. `None` for routes about nobody's.
fn foreign<'a>(operation: &Operation, victims: &'a Victims) -> Option<(&'a str, Value)> {
    match operation.path.as_str() {
        // Its id is the caller's own name for a job.
        "/v1/jobs/{id}" if operation.method == Method::PUT => None,
        "/v1/jobs/{id}"
        | "/v1/jobs/{id}/cancel"
        | "/v1/jobs/{id}/queue"
        | "/v1/jobs/{id}/retry"
        | "/v1/jobs/{id}/receipt"
        | "/v1/jobs/{id}/replay"
        | "/v1/jobs/{id}/events" => Some((&victims.job, json!(null))),
        "/v1/responses/{id}" | "/v1/responses/{id}/cancel" => Some((&victims.response, json!(null))),
        "/v1/api_keys/{id}" | "/v1/api_keys/{id}/rotate" | "/v1/api_keys/{id}/budget" => {
            Some((&victims.key, json!({})))
        }
        "/v1/webhook_endpoints/{endpoint_id}/recover" => Some((&victims.endpoint, json!({"since": 0}))),
        hook if hook.starts_with("/v1/webhook_endpoints/{endpoint_id}") => Some((&victims.endpoint, json!({}))),
        batch if batch.starts_with("/v1/batches/{id}") => Some((&victims.batch, json!(null))),
        file if file.starts_with("/v1/files/{id}") => Some((&victims.file, json!(null))),
        "/v1/projects/{id}/members" => Some((&victims.project, json!({"user": "eve"}))),
        "/v1/projects/{id}/service_accounts" => Some((&victims.project, json!({"name": "a", "scopes": ["batches"]}))),
        "/v1/projects/{id}" => Some((&victims.project, json!({"name": "a"}))),
        project if project.starts_with("/v1/projects/{id}/") => Some((&victims.project, json!({}))),
        "/v1/auth/identities/{id}" => Some((&victims.identity, json!(null))),
        // Nobody's: whom the installation knows.
        provider if provider.starts_with("/v1/auth/{provider}/") => None,
        // Shared by all.
        "/v1/models/{name}" => None,
        // For admins, who may touch anybody's.
        admin if admin.starts_with("/v1/admin/") => None,
        _ => panic!("say in `foreign` what is somebody else's at {operation}"),
    }
}

struct Victims {
    job: String,
    response: String,
    key: String,
    endpoint: String,
    batch: String,
    file: String,
    identity: String,
    project: String,
}

/// Everything that the route answers to `session`, without what differs from one request to the next.
async fn outcome(session: &Session, operation: &Operation, id: &str, body: &Value) -> (StatusCode, Value) {
    let mut request = session.request(operation.method.clone(), &operation.filled(id));
    if !body.is_null() && operation.method != Method::GET && operation.method != Method::DELETE {
        request = request.json(body);
    }
    answer(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_others_is_404_on_every_route_and_answered_like_what_does_not_exist() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let identity = IdentityId::new();
        let linked = format!(
            "INSERT INTO identities (id, user_id, issuer, subject, email)
             SELECT '{}', id, 'https://id.example.org', 'ada', email FROM users WHERE username = 'ada'",
            identity.uuid()
        );
        world.execute_as_owner(&linked).await;
        let job = ada.submit(&a_job()).await;
        let hook = json!({"url": "https://example.org/"});
        let batch = json!({"requests": [{"custom_id": "a", "body": {"prompt": "Once"}}]});
        let (status, batch) = answer(ada.post("/v1/batches").json(&batch)).await;
        assert_eq!(status, StatusCode::OK, "{batch}");
        let victims = Victims {
            identity: identity.to_string(),
            project: answer(ada.get("/v1/projects")).await.1["data"][0]["id"]
                .as_str()
                .unwrap()
                .to_owned(),
            batch: batch["id"].as_str().unwrap().to_owned(),
            file: batch["input_file_id"].as_str().unwrap().to_owned(),
            endpoint: answer(ada.post("/v1/webhook_endpoints").json(&hook)).await.1["id"]
                .as_str()
                .unwrap()
                .to_owned(),
            response: job.replacen("job_", "resp_", 1),
            job,
            key: make_key(&ada, json!({"name": "a", "scopes": ["batches"]})).await["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        };
        let key_of_eve = keyed(&eve, &SCOPES).await;
        let mut tried = 0;
        for operation in operations(api).await.iter().filter(|one| one.path.contains('{')) {
            let Some((id, body)) = foreign(operation, &victims) else {
                continue;
            };
            let (prefix, digits) = id.split_at(id.len() - 26);
            let nowhere = format!(
                "{prefix}{}",
                digits.chars().rev().collect::<String>().replace(|c| c > '7', "7")
            );
            for session in [&eve, &key_of_eve] {
                // Keys do not come so far.
                if operation.needs == "user" && session.token == key_of_eve.token {
                    continue;
                }
                let theirs = outcome(session, operation, id, &body).await;
                assert_eq!(theirs.0, StatusCode::NOT_FOUND, "{operation}: {}", theirs.1);
                assert_eq!(
                    theirs,
                    outcome(session, operation, &nowhere, &body).await,
                    "{operation}"
                );
            }
            tried += 1;
        }
        assert!(tried >= 7, "{tried} routes were tried");
        assert_eq!(
            ada.job(&victims.job).await["status"],
            "queued",
            "and nothing happened to it"
        );
        let (_, list) = answer(eve.get("/v1/api_keys")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), 1, "lists hold the own alone");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_does_not_read_is_answered_in_the_envelope_on_every_route() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let all = operations(api).await;
        for operation in all.iter().filter(|operation| operation.path.contains('{')) {
            let (status, body) = outcome(&root, operation, "%FF", &json!({})).await;
            assert!(status.is_client_error(), "{operation}: {status} {body}");
            assert!(!code(&body).is_empty(), "{operation}");
        }
    })
    .await;
}

/// An id that reads, of something that does not exist.
fn made_up(path: &str) -> String {
    let id = IdentityId::new().to_string();
    let letters = id.rsplit('_').next().unwrap();
    let kinds = [
        ("/v1/jobs", "job_"),
        ("/v1/batches", "batch_"),
        ("/v1/files", "file-"),
        ("/v1/api_keys", "key_"),
        ("/v1/projects", "proj_"),
        ("/v1/responses", "resp_"),
        ("/v1/admin/users", "user_"),
    ];
    match kinds.iter().find(|(start, _)| path.starts_with(start)) {
        Some((_, kind)) => format!("{kind}{letters}"),
        None => id,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_says_so_refuses_a_parameter_that_it_does_not_know() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let (_, document) = answer(api.get("/openapi.json")).await;
        let mut tried = 0;
        for operation in operations(api).await {
            let said = &document["paths"][&operation.path][operation.method.as_str().to_lowercase()];
            let said = said["responses"]["400"]["description"].as_str().unwrap_or_default();
            // Of two ids in a path the second is of another kind.
            if !said.contains("A parameter is unknown") || operation.path.starts_with("/v1/projects/{id}/") {
                continue;
            }
            let path = format!("{}?colour=red", operation.filled(&made_up(&operation.path)));
            let (status, body) = answer(root.request(operation.method.clone(), &path)).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::BAD_REQUEST, "unknown_parameter"),
                "{operation}"
            );
            tried += 1;
        }
        assert!(tried > 40, "{tried}");
    })
    .await;
}
