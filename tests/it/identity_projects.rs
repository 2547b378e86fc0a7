//! Projects: what is in one is in no other, members come and go, and services act in the one that they were made for.

use claimcheck_tests::World;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, Session, answer, code, config, with_api};
use crate::http_operators::a_job;
use crate::identity_keys::{keyed, make_key};

const HEADER: &str = "openai-project";

pub(crate) fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {body}"))
}

/// Makes a project and answers its id.
pub(crate) async fn make_project(session: &Session, name: &str) -> String {
    let (status, body) = answer(session.post("/v1/projects").json(&json!({"name": name}))).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    text(&body, "id").to_owned()
}

async fn let_in(admin: &Session, project: &str, user: &str, role: &str) -> (StatusCode, Value) {
    let body = json!({"user": user, "role": role});
    answer(admin.post(&format!("/v1/projects/{project}/members")).json(&body)).await
}

/// Submits a job in a project and answers its id.
async fn submit_in(session: &Session, project: &str) -> String {
    let (status, body) = answer(session.post("/v1/jobs").header(HEADER, project).json(&a_job())).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    text(&body, "id").to_owned()
}

/// The ids of the things that the route lists in a project, or in the default one.
async fn listed(session: &Session, path: &str, project: Option<&str>) -> Vec<String> {
    let request = session.get(path);
    let request = match project {
        Some(project) => request.header(HEADER, project),
        None => request,
    };
    let (status, body) = answer(request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| text(one, "id").to_owned())
        .collect()
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_one_project_is_in_no_other() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let project = make_project(&ada, "nightly").await;
        let (here, there) = (ada.submit(&a_job()).await, submit_in(&ada, &project).await);
        assert_eq!(listed(&ada, "/v1/jobs", None).await, [here.as_str()]);
        assert_eq!(listed(&ada, "/v1/jobs", Some(&project)).await, [there.as_str()]);
        assert_eq!(
            status(ada.get(&format!("/v1/jobs/{there}"))).await,
            StatusCode::NOT_FOUND
        );
        let across = ada.get(&format!("/v1/jobs/{here}")).header(HEADER, &project);
        assert_eq!(status(across).await, StatusCode::NOT_FOUND);

        let batch = json!({"requests": [{"custom_id": "a", "body": {"prompt": "Once"}}]});
        let hook = json!({"url": "https://example.org/"});
        let key = json!({"name": "a", "scopes": ["jobs:read", "jobs:write", "admin"]});
        let mut made = Vec::new();
        for (path, body) in [
            ("/v1/batches", &batch),
            ("/v1/webhook_endpoints", &hook),
            ("/v1/api_keys", &key),
        ] {
            let (status, body) = answer(ada.post(path).header(HEADER, &project).json(body)).await;
            assert!(status.is_success(), "{path}: {body}");
            assert_eq!(listed(&ada, path, None).await, Vec::<String>::new(), "{path}");
            assert_eq!(listed(&ada, path, Some(&project)).await.len(), 1, "{path}");
            let one = ada.get(&format!("{path}/{}", text(&body, "id")));
            assert_eq!(status_of(one).await, StatusCode::NOT_FOUND, "{path}");
            made.push(body);
        }
        assert_eq!(listed(&ada, "/v1/files", None).await, Vec::<String>::new());
        assert_eq!(listed(&ada, "/v1/files", Some(&project)).await.len(), 1);

        // A key acts in its own project, whatever is asked for.
        let key = ada.with_token(text(&made[2], "key"));
        assert!(listed(&key, "/v1/jobs", None).await.contains(&there));
        assert!(listed(&key, "/v1/jobs", Some(&project)).await.contains(&there));
        let home = listed_default(&ada).await;
        let (status, body) = answer(key.get("/v1/jobs").header(HEADER, home)).await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "project_not_found"));
        let own = make_key(&ada, json!({"name": "b", "scopes": ["admin"]})).await;
        let rotate = key
            .post(&format!("/v1/api_keys/{}/rotate", text(&own, "id")))
            .json(&json!({}));
        assert_eq!(
            status_of(rotate).await,
            StatusCode::NOT_FOUND,
            "nor does it reach keys of other projects"
        );
    })
    .await;
}

async fn status_of(request: RequestBuilder) -> StatusCode {
    status(request).await
}

/// The first project of a user.
async fn listed_default(session: &Session) -> String {
    listed(session, "/v1/projects", None).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_act_in_their_projects_until_they_are_let_out() {
    with_api(async |_, api| {
        let (ada, eve, bob) = (api.user("ada").await, api.user("eve").await, api.user("bob").await);
        let (shared, private) = (make_project(&ada, "shared").await, make_project(&ada, "private").await);
        let job = submit_in(&ada, &shared).await;
        let seen = |session: &Session| session.get(&format!("/v1/jobs/{job}")).header(HEADER, &shared);
        assert_eq!(status(seen(&eve)).await, StatusCode::NOT_FOUND);

        let (answered, member) = let_in(&ada, &shared, "EVE@example.org", "member").await;
        assert_eq!(
            (answered, text(&member, "username")),
            (StatusCode::OK, "eve"),
            "{member}"
        );
        assert_eq!(status(seen(&eve)).await, StatusCode::OK);
        let made = make_key_in(&eve, &shared).await;
        let key = eve.with_token(text(&made, "key"));
        assert_eq!(status(key.get(&format!("/v1/jobs/{job}"))).await, StatusCode::OK);
        assert_eq!(
            status(eve.get("/v1/jobs").header(HEADER, &private)).await,
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            status(bob.get("/v1/jobs").header(HEADER, &shared)).await,
            StatusCode::NOT_FOUND
        );
        assert_eq!(listed(&eve, "/v1/projects", None).await.len(), 2);

        // The organization's log and other members' keys are not theirs.
        let (status_, body) = answer(eve.get("/v1/audit").header(HEADER, &shared)).await;
        assert_eq!((status_, code(&body)), (StatusCode::FORBIDDEN, "auditor_only"));
        assert_eq!(listed(&ada, "/v1/api_keys", Some(&shared)).await, Vec::<String>::new());

        let path = format!("/v1/projects/{shared}/members/{}", text(&member, "user_id"));
        assert_eq!(status(ada.request(Method::DELETE, &path)).await, StatusCode::NO_CONTENT);
        assert_eq!(status(seen(&eve)).await, StatusCode::NOT_FOUND);
        assert_eq!(
            status(key.get("/v1/jobs")).await,
            StatusCode::UNAUTHORIZED,
            "the key is out as well"
        );
        assert_eq!(status(ada.request(Method::DELETE, &path)).await, StatusCode::NOT_FOUND);
    })
    .await;
}

async fn make_key_in(session: &Session, project: &str) -> Value {
    let body = json!({"name": "test", "scopes": ["jobs:read"]});
    let (status, made) = answer(session.post("/v1/api_keys").header(HEADER, project).json(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(text(&made, "project_id"), project);
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_of_a_project_let_in_and_members_do_not() {
    with_api(async |world, api| {
        let (ada, eve) = (api.user("ada").await, api.user("eve").await);
        let (bob, _) = (api.user("bob").await, api.user("max").await);
        let project = make_project(&ada, "shared").await;
        let_in(&ada, &project, "eve", "member").await;
        let path = format!("/v1/projects/{project}");
        let name = json!({"name": "mine"});
        let account = json!({"name": "a", "scopes": ["jobs:read"]});
        for request in [
            eve.request(Method::PATCH, &path).json(&name),
            eve.request(Method::DELETE, &path),
            eve.post(&format!("{path}/members")).json(&json!({"user": "max"})),
            eve.request(Method::DELETE, &format!("{path}/members/{}", user_id(world, "ada").await)),
            eve.get(&format!("{path}/service_accounts")),
            eve.post(&format!("{path}/service_accounts")).json(&account),
        ] {
            let (status, body) = answer(request).await;
            assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "project_admin_only"));
        }
        for request in [bob.get(&path), bob.request(Method::PATCH, &path).json(&name), bob.get(&format!("{path}/members"))] {
            let (status, body) = answer(request).await;
            assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "project_not_found"));
        }
        assert_eq!(let_in(&ada, &project, "eve", "admin").await.0, StatusCode::OK);
        assert_eq!(let_in(&eve, &project, "max", "member").await.0, StatusCode::OK);
        for (user, status, word) in [
            ("ada", StatusCode::CONFLICT, "own_user"),
            ("nobody", StatusCode::NOT_FOUND, "user_not_found"),
        ] {
            let (answered, body) = let_in(&eve, &project, user, "member").await;
            assert_eq!((answered, code(&body)), (status, word));
        }
        assert_eq!(let_in(&ada, &project, "max", "owner").await.0, StatusCode::BAD_REQUEST);
        let own = format!("{path}/members/{}", user_id(world, "max").await);
        let max = ada.with_token(text(&answer(api.token("max", crate::http_face::PASSWORD)).await.1, "access_token"));
        assert_eq!(status(max.request(Method::DELETE, &own)).await, StatusCode::NO_CONTENT, "members may leave");
        let logged: Vec<String> = sqlx::query_scalar(
            "SELECT action FROM audit_log WHERE action LIKE 'project.%' AND credential = 'token' AND address IS NOT NULL ORDER BY id",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let joined = "project.member_joined";
        assert_eq!(logged, ["project.created", joined, joined, joined, "project.member_left"]);
    })
    .await;
}

async fn user_id(world: &World, name: &str) -> String {
    let id = sqlx::query_scalar("SELECT id FROM users WHERE username = $1").bind(name);
    claimcheck_common::domain::UserId::from_uuid(id.fetch_one(&world.pool).await.unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_project_is_nobodys_and_the_first_one_stays() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let project = make_project(&ada, "old").await;
        let made = make_key_in(&ada, &project).await;
        let home = format!("/v1/projects/{}", listed_default(&ada).await);
        let path = format!("/v1/projects/{project}");
        let (answered, body) = answer(ada.request(Method::DELETE, &home)).await;
        assert_eq!((answered, code(&body)), (StatusCode::CONFLICT, "default_project"));
        submit_in(&ada, &project).await;
        let (answered, body) = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!((answered, code(&body)), (StatusCode::CONFLICT, "project_busy"));
        world
            .execute_as_owner("UPDATE jobs SET status = 'cancelled', finished_at = now()")
            .await;
        assert_eq!(status(ada.request(Method::DELETE, &path)).await, StatusCode::NO_CONTENT);
        assert_eq!(status(ada.get(&path)).await, StatusCode::NOT_FOUND);
        assert_eq!(
            status(ada.get("/v1/jobs").header(HEADER, &project)).await,
            StatusCode::NOT_FOUND
        );
        let key = ada.with_token(text(&made, "key"));
        assert_eq!(status(key.get("/v1/jobs")).await, StatusCode::UNAUTHORIZED);
        assert_eq!(
            status(ada.get("/v1/jobs").header(HEADER, "proj_x")).await,
            StatusCode::NOT_FOUND
        );
        let twice = ada.get("/v1/jobs").header(HEADER, &project).header(HEADER, &project);
        assert_eq!(status(twice).await, StatusCode::NOT_FOUND);
    })
    .await;
}

/// Makes a service account in the user's first project.
pub(crate) async fn make_service(session: &Session, scopes: &[&str]) -> Value {
    let path = format!("/v1/projects/{}/service_accounts", listed_default(session).await);
    let (status, body) = answer(session.post(&path).json(&json!({"name": "nightly", "scopes": scopes}))).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    body
}

/// Asks for a token by the form, with further pairs.
async fn token_of(api: &Api, id: &str, secret: &str, more: &[(&str, &str)]) -> (StatusCode, Value) {
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", id),
        ("client_secret", secret),
    ];
    answer(api.post("/v1/auth/token").form(&[&form, more].concat())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_tokens_by_its_secret_in_either_way_and_keeps_to_its_scopes() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let made = make_service(&ada, &["jobs:read", "jobs:write"]).await;
        let (id, secret) = (text(&made, "id"), text(&made, "client_secret"));
        let (status_, by_form) = token_of(api, id, secret, &[]).await;
        assert_eq!(status_, StatusCode::OK, "{by_form}");
        let basic = api.post("/v1/auth/token").basic_auth(id, Some(secret));
        let (_, by_basic) = answer(basic.form(&[("grant_type", "client_credentials"), ("scope", "jobs:read")])).await;
        assert_eq!(
            (&by_form["scope"], &by_basic["scope"]),
            (&json!("jobs:read jobs:write"), &json!("jobs:read"))
        );
        assert_eq!(
            by_form.get("refresh_token"),
            None,
            "it has its secret (RFC 6749, 4.4.3)"
        );

        let service = ada.with_token(text(&by_form, "access_token"));
        let job = service.submit(&a_job()).await;
        assert_eq!(ada.job(&job).await["id"], job.as_str(), "it works in its project");
        let reader = ada.with_token(text(&by_basic, "access_token"));
        let (status_, body) = answer(reader.post("/v1/jobs").json(&a_job())).await;
        assert_eq!((status_, code(&body)), (StatusCode::FORBIDDEN, "insufficient_scope"));
        for request in [
            service.get("/v1/projects"),
            service.post("/v1/auth/logout"),
            service.get("/v1/auth/identities"),
        ] {
            let (status, body) = answer(request).await;
            assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "user_only"));
        }
        let actor = "SELECT count(*) FROM audit_log WHERE action = 'job.submitted' AND credential = 'service'";
        assert_eq!(
            sqlx::query_scalar::<_, i64>(actor)
                .fetch_one(&world.pool)
                .await
                .unwrap(),
            1
        );
        let stored: Vec<String> = sqlx::query_scalar(
            "SELECT s::text FROM service_account_secrets s UNION ALL SELECT a::text FROM service_accounts a",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        assert!(
            stored.len() == 2 && !stored.iter().any(|row| row.contains(&secret[10..])),
            "{stored:?}"
        );
        let path = format!("/v1/projects/{}/service_accounts", text(&made, "project_id"));
        let (_, list) = answer(ada.get(&path)).await;
        assert!(
            list["data"][0].get("client_secret").is_none() && list["data"][0]["last_used_at"].is_i64(),
            "{list}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_its_secret_gets_nothing_and_no_person_passes_for_one() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let (one, other) = (
            make_service(&ada, &["jobs:read"]).await,
            make_service(&ada, &["jobs:read"]).await,
        );
        let (id, secret) = (text(&one, "id"), text(&one, "client_secret"));
        let key = keyed(&ada, &["jobs:read"]).await;
        for (id, secret) in [
            (id, "x"),
            (id, text(&other, "client_secret")),
            (text(&other, "id"), secret),
            ("ada", crate::http_face::PASSWORD),
            (id, &key.token),
            ("", secret),
            (id, ""),
        ] {
            let (status, body) = token_of(api, id, secret, &[]).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::UNAUTHORIZED, "invalid_client"),
                "{id} {secret}"
            );
        }
        let response = api
            .post("/v1/auth/token")
            .form(&[("grant_type", "client_credentials")])
            .send()
            .await
            .unwrap();
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Basic"),
            "RFC 6749, 5.2"
        );
        let both = api.post("/v1/auth/token").basic_auth(id, Some(secret));
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
        ];
        assert_eq!(status(both.form(&form)).await, StatusCode::BAD_REQUEST);
        let (status_, body) = token_of(api, id, secret, &[("scope", "jobs:read admin")]).await;
        assert_eq!((status_, code(&body)), (StatusCode::BAD_REQUEST, "invalid_scope"));
        // Nor is a service anybody who signs in with a password.
        let (status_, body) = answer(api.token(id, secret)).await;
        assert_eq!((status_, code(&body)), (StatusCode::UNAUTHORIZED, "invalid_grant"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_secret_is_rotated_with_an_overlap_and_revoked_at_once() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let made = make_service(&ada, &["jobs:read", "admin"]).await;
        let (id, old) = (text(&made, "id"), text(&made, "client_secret"));
        let path = format!("/v1/projects/{}/service_accounts/{id}", text(&made, "project_id"));
        let (_, token) = token_of(api, id, old, &[]).await;
        let service = ada.with_token(text(&token, "access_token"));
        let key = keyed(&service, &["jobs:read"]).await;
        let more = json!({"name": "more", "scopes": ["jobs:read", "jobs:write"]});
        let (status_, body) = answer(service.post("/v1/api_keys").json(&more)).await;
        assert_eq!(
            (status_, code(&body)),
            (StatusCode::FORBIDDEN, "insufficient_scope"),
            "it gives what it has"
        );
        // A rotated key is a key handed out: a token that was narrowed gets none that is wider.
        let reader = make_key(&service, json!({"name": "reader", "scopes": ["jobs:read"]})).await;
        let rotate = format!("/v1/api_keys/{}/rotate", text(&reader, "id"));
        let (_, token) = token_of(api, id, old, &[("scope", "admin")]).await;
        let narrow = ada.with_token(text(&token, "access_token"));
        let (status_, body) = answer(narrow.post(&rotate).json(&json!({}))).await;
        assert_eq!((status_, code(&body)), (StatusCode::FORBIDDEN, "insufficient_scope"));
        assert_eq!(status(service.post(&rotate).json(&json!({}))).await, StatusCode::OK);

        let (_, rotated) = answer(ada.post(&format!("{path}/rotate")).json(&json!({"overlap": 3600}))).await;
        let new = text(&rotated, "client_secret");
        for secret in [old, new] {
            assert_eq!(token_of(api, id, secret, &[]).await.0, StatusCode::OK);
        }
        world
            .execute_as_owner("UPDATE service_account_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
            .await;
        assert_eq!(token_of(api, id, old, &[]).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(token_of(api, id, new, &[]).await.0, StatusCode::OK);

        assert_eq!(status(service.get("/v1/jobs")).await, StatusCode::OK);
        let (_, ended) = answer(ada.request(Method::DELETE, &path)).await;
        assert!(ended["revoked_at"].is_i64(), "{ended}");
        for session in [&service, &key] {
            assert_eq!(status(session.get("/v1/jobs")).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(token_of(api, id, new, &[]).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(
            answer(ada.request(Method::DELETE, &path)).await.1["revoked_at"],
            ended["revoked_at"]
        );
        let gone = ada.post(&format!("{path}/rotate")).json(&json!({}));
        assert_eq!(status(gone).await, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_a_services_secret_are_limited_like_sign_ins() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let made = make_service(&ada, &["jobs:read"]).await;
        let mut config = config(world);
        config.limits.login_rate = "3/min".parse().unwrap();
        let limited = Api::start_with(config).await;
        for _ in 0..3 {
            let (status, _) = token_of(&limited, text(&made, "id"), "x", &[]).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
        let (status, _) = token_of(&limited, text(&made, "id"), text(&made, "client_secret"), &[]).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        limited.stop().await;
    })
    .await;
}
