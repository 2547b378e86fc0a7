//! What is revoked is out with the next request at every process, although each goes by what it knows of callers
//! (`api/src/auth/known.rs`): with Redis, without it, after it lost what it held, and when nobody told it.

use std::time::Duration;

use claimcheck_common::redis::{Redis, cmd};
use claimcheck_common::store::{accounts, sessions};
use claimcheck_tests::{Wire, World, eventually, in_world};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::http_face::{Api, MODEL, PASSWORD, Session, announce, answer, config, with_api};
use crate::http_operators::admin;
use crate::identity_keys::{keyed, make_key};
use crate::identity_projects::{make_project, make_service, text};

const LIMIT: Duration = Duration::from_secs(10);
const TABLES: [&str; 6] = [
    "users",
    "sessions",
    "api_keys",
    "api_key_secrets",
    "project_members",
    "projects",
];

async fn status(session: &Session, path: &str) -> StatusCode {
    session.get(path).send().await.unwrap().status()
}

async fn jobs(session: &Session) -> StatusCode {
    status(session, "/v1/jobs").await
}

/// Asks until a process goes by what it knows of the caller: from the third time on.
pub(crate) async fn get_known(session: &Session) {
    for _ in 0..4 {
        assert_eq!(jobs(session).await, StatusCode::OK);
    }
}

/// From now on the database tells nobody of changes.
async fn without_notices(world: &World) {
    for table in TABLES {
        let sql = format!("ALTER TABLE {table} DISABLE TRIGGER tell_of_access");
        world.execute_as_owner(&sql).await;
    }
}

/// Ends all sessions behind everybody's back.
async fn end_sessions(world: &World) {
    world
        .execute_as_owner("UPDATE sessions SET ended_at = now(), ended_because = 'test'")
        .await;
}

pub(crate) async fn with_two(test: impl AsyncFnOnce(&mut World, &Api, &Api)) {
    with_api(async |world, here| {
        let there = Api::start(world).await;
        test(world, here, &there).await;
        there.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_is_known_costs_no_look_into_the_database_and_is_out_when_its_mark_is_gone() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let key = keyed(&ada, &["jobs:read"]).await;
        without_notices(world).await;
        for session in [&ada, &key] {
            get_known(session).await;
        }
        world
            .execute_as_owner("UPDATE users SET is_active = false WHERE username = 'ada'")
            .await;
        for session in [&ada, &key] {
            assert_eq!(
                jobs(session).await,
                StatusCode::OK,
                "nobody has told it, so it has not looked"
            );
        }
        let redis = Redis::new(&world.redis).unwrap();
        let user: uuid::Uuid = sqlx::query_scalar("SELECT id FROM users WHERE username = 'ada'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let mark = redis.key(format_args!("access:{}", user.simple()));
        let gone: u32 = redis.run(cmd("DEL").arg(mark)).await.unwrap();
        assert_eq!(gone, 1);
        for session in [&ada, &key] {
            assert_eq!(jobs(session).await, StatusCode::UNAUTHORIZED);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_at_one_process_is_out_at_once_at_the_other_by_the_mark_alone() {
    with_two(async |world, here, there| {
        let root = admin(world, here.user("root").await).await;
        let ada = here.user("ada").await;
        let made = make_key(&ada, json!({"name": "a", "scopes": ["jobs:read"]})).await;
        let turned = make_key(&ada, json!({"name": "b", "scopes": ["jobs:read"]})).await;
        without_notices(world).await;
        let key_path = |key| format!("/v1/api_keys/{}", text(key, "id"));
        let [revoked, rotated] = [&made, &turned].map(|key| ada.with_token(text(key, "key")).at(there));
        get_known(&revoked).await;
        get_known(&rotated).await;

        let (done, _) = answer(ada.request(Method::DELETE, &key_path(&made))).await;
        assert_eq!(done, StatusCode::OK);
        assert_eq!(jobs(&revoked).await, StatusCode::UNAUTHORIZED, "a revoked key");

        get_known(&rotated).await;
        let rotation = ada.post(&format!("{}/rotate", key_path(&turned))).json(&json!({}));
        assert_eq!(answer(rotation).await.0, StatusCode::OK);
        assert_eq!(jobs(&rotated).await, StatusCode::UNAUTHORIZED, "a rotated key");

        get_known(&ada.at(there)).await;
        let out = ada.post("/v1/auth/logout").send().await.unwrap();
        assert_eq!(out.status(), StatusCode::NO_CONTENT);
        assert_eq!(jobs(&ada.at(there)).await, StatusCode::UNAUTHORIZED, "a logout");

        let again = signed_in(here, &ada).await;
        get_known(&again.at(there)).await;
        let body = json!({"current_password": PASSWORD, "new_password": "another good horse"});
        let changed = again.post("/v1/auth/password").json(&body).send().await.unwrap();
        assert_eq!(changed.status(), StatusCode::NO_CONTENT);
        assert_eq!(
            jobs(&again.at(there)).await,
            StatusCode::UNAUTHORIZED,
            "another password"
        );

        // A role that is given and taken, and the access as a whole.
        let eve = here.user("eve").await;
        let (_, list) = answer(root.get("/v1/admin/users?limit=1")).await;
        let path = format!("/v1/admin/users/{}", text(&list["data"][0], "id"));
        let change = async |body| {
            let (done, changed) = answer(root.request(Method::PATCH, &path).json(&body)).await;
            assert_eq!((done, text(&changed, "username")), (StatusCode::OK, "eve"));
        };
        for (role, sees) in [("auditor", StatusCode::OK), ("user", StatusCode::FORBIDDEN)] {
            get_known(&eve.at(there)).await;
            change(json!({"role": role})).await;
            assert_eq!(status(&eve.at(there), "/v1/admin/workers").await, sees, "{role}");
        }
        get_known(&eve.at(there)).await;
        change(json!({"is_active": false})).await;
        assert_eq!(jobs(&eve.at(there)).await, StatusCode::UNAUTHORIZED, "a deactivation");
    })
    .await;
}

/// The same user in a session of its own.
async fn signed_in(api: &Api, user: &Session) -> Session {
    let (status, body) = answer(api.token(&user.username, PASSWORD)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    user.with_token(text(&body, "access_token"))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_no_longer_act_in_a_project_is_out_at_once_at_the_other_process() {
    with_two(async |world, here, there| {
        let (ada, eve) = (here.user("ada").await, here.user("eve").await);
        let service = make_service(&ada, &["jobs:read"]).await;
        let shared = make_project(&ada, "shared").await;
        without_notices(world).await;
        let members = format!("/v1/projects/{shared}/members");
        let (done, member) = answer(ada.post(&members).json(&json!({"user": "eve"}))).await;
        assert_eq!(done, StatusCode::OK, "{member}");
        let within = async |session: &Session| {
            let request = session.at(there).get("/v1/jobs").header("openai-project", &shared);
            request.send().await.unwrap().status()
        };
        for _ in 0..4 {
            assert_eq!(
                (within(&ada).await, within(&eve).await),
                (StatusCode::OK, StatusCode::OK)
            );
        }
        let path = format!("{members}/{}", text(&member, "user_id"));
        let left = ada.request(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(left.status(), StatusCode::NO_CONTENT);
        assert_eq!(within(&eve).await, StatusCode::NOT_FOUND, "a member who left");
        assert_eq!(within(&ada).await, StatusCode::OK);
        let archived = ada.request(Method::DELETE, &format!("/v1/projects/{shared}"));
        assert_eq!(archived.send().await.unwrap().status(), StatusCode::NO_CONTENT);
        assert_eq!(within(&ada).await, StatusCode::NOT_FOUND, "an archived project");

        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}",
            text(&service, "id"),
            text(&service, "client_secret")
        );
        let asked = here
            .post("/v1/auth/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let (done, body) = answer(asked).await;
        assert_eq!(done, StatusCode::OK, "{body}");
        let program = ada.with_token(text(&body, "access_token")).at(there);
        get_known(&program).await;
        let path = format!(
            "/v1/projects/{}/service_accounts/{}",
            text(&service, "project_id"),
            text(&service, "id")
        );
        let (done, _) = answer(ada.request(Method::DELETE, &path)).await;
        assert_eq!(done, StatusCode::OK);
        assert_eq!(jobs(&program).await, StatusCode::UNAUTHORIZED, "a revoked service");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_the_commit_and_the_mark_revokes_all_the_same() {
    with_two(async |world, here, there| {
        let ada = here.user("ada").await;
        get_known(&ada.at(there)).await;
        let account = accounts::find_by_username(&world.pool, "ada").await.unwrap().unwrap();
        let session: uuid::Uuid = sqlx::query_scalar("SELECT id FROM sessions")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let session = claimcheck_common::domain::SessionId::from_uuid(session);
        // What the process would have told is dropped with it.
        let by = claimcheck_common::store::audit::By::from(account.user_id);
        drop(sessions::end(&world.pool, account.user_id, session, by).await.unwrap());
        eventually("the database tells", LIMIT, async || {
            (jobs(&ada.at(there)).await == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_redis_revokes_for_those_who_have_it() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let there = Api::start(world).await;
        let mut alone = config(world);
        // Nothing listens on the discard port.
        alone.redis.url = "redis://127.0.0.1:9".to_owned();
        let here = Api::start_with(alone).await;
        let ada = there.user("ada").await;
        get_known(&ada).await;
        let out = ada.at(&here).post("/v1/auth/logout").send().await.unwrap();
        assert_eq!(out.status(), StatusCode::NO_CONTENT);
        eventually("the database tells", LIMIT, async || {
            (jobs(&ada).await == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
        here.stop().await;
        there.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_the_database_is_asked_for_every_request() {
    in_world(async |world| {
        announce(world, MODEL).await;
        let wire = Wire::to(&world.redis.url).await;
        let mut by_wire = config(world);
        by_wire.redis.url = wire.by(&world.redis.url);
        let api = Api::start_with(by_wire).await;
        let ada = api.user("ada").await;
        without_notices(world).await;
        get_known(&ada).await;
        end_sessions(world).await;
        assert_eq!(
            jobs(&ada).await,
            StatusCode::OK,
            "nobody has told it, so it has not looked"
        );
        wire.silence();
        assert_eq!(jobs(&ada).await, StatusCode::UNAUTHORIZED);
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_what_it_held_has_everybody_learned_anew() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        without_notices(world).await;
        get_known(&ada).await;
        end_sessions(world).await;
        assert_eq!(
            jobs(&ada).await,
            StatusCode::OK,
            "nobody has told it, so it has not looked"
        );
        let redis = Redis::new(&world.redis).unwrap();
        let marks: Vec<String> = redis.run(cmd("KEYS").arg(redis.key("access:*"))).await.unwrap();
        assert_eq!(marks.len(), 2, "an account's and a project's");
        let _gone: u32 = redis.run(cmd("DEL").arg(marks)).await.unwrap();
        assert_eq!(jobs(&ada).await, StatusCode::UNAUTHORIZED);
    })
    .await;
}
