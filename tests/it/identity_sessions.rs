//! Sessions: what a sign-in begins, how it is renewed, what ends it, and the keys that sign its tokens.

use std::time::Duration;

use claimcheck_api::auth::Seal;
use claimcheck_api::auth::tokens::new_key;
use claimcheck_common::store::signing_keys;
use claimcheck_tests::{World, eventually};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::http_face::{Api, PASSWORD, Session, answer, code, config, with_api};
use crate::http_operators::admin;
use crate::identity_keys::{keyed, make_key};

const LIMIT: Duration = Duration::from_mins(1);

/// Signs in and answers all that was given.
async fn sign_in(api: &Api, username: &str) -> Value {
    let (status, body) = answer(api.token(username, PASSWORD)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

fn refresh(api: &Api, token: &str) -> RequestBuilder {
    api.post("/v1/auth/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("grant_type=refresh_token&refresh_token={token}"))
}

fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {body}"))
}

async fn jobs_with(api: &Api, token: &str) -> StatusCode {
    api.get("/v1/jobs").bearer_auth(token).send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_buys_the_next_tokens_once() {
    with_api(async |world, api| {
        api.user("ada").await;
        let first = sign_in(api, "ada").await;
        let (status, second) = answer(refresh(api, text(&first, "refresh_token"))).await;
        assert_eq!(status, StatusCode::OK, "{second}");
        for field in ["access_token", "refresh_token"] {
            assert_ne!(first[field], second[field], "{field}");
        }
        for body in [&first, &second] {
            assert_eq!(jobs_with(api, text(body, "access_token")).await, StatusCode::OK);
        }
        let (status, _) = answer(refresh(api, text(&second, "refresh_token"))).await;
        assert_eq!(status, StatusCode::OK);
        let stored: Vec<String> = sqlx::query_scalar("SELECT t::text FROM refresh_tokens t")
            .fetch_all(&world.pool)
            .await
            .unwrap();
        let secret = &text(&second, "refresh_token")[8..30];
        assert!(
            stored.len() >= 3 && !stored.iter().any(|row| row.contains(secret)),
            "{stored:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_comes_back_ends_its_session_and_no_other() {
    with_api(async |world, api| {
        api.user("ada").await;
        let (first, other) = (sign_in(api, "ada").await, sign_in(api, "ada").await);
        let (_, second) = answer(refresh(api, text(&first, "refresh_token"))).await;
        world
            .execute_as_owner("UPDATE refresh_tokens SET used_at = used_at - interval '1 minute'")
            .await;
        let (status, body) = answer(refresh(api, text(&first, "refresh_token"))).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "invalid_grant"));
        for stolen in [&first, &second] {
            let out = jobs_with(api, text(stolen, "access_token")).await;
            assert_eq!(out, StatusCode::UNAUTHORIZED, "its access tokens are out at once");
            let (status, _) = answer(refresh(api, text(stolen, "refresh_token"))).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(jobs_with(api, text(&other, "access_token")).await, StatusCode::OK);
        let (status, _) = answer(refresh(api, text(&other, "refresh_token"))).await;
        assert_eq!(status, StatusCode::OK);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_refreshes_at_the_same_time_one_wins_and_its_session_goes_on() {
    with_api(async |_, api| {
        api.user("ada").await;
        let first = sign_in(api, "ada").await;
        let tries = (0..8).map(|_| answer(refresh(api, text(&first, "refresh_token"))));
        let answers = futures::future::join_all(tries).await;
        let won: Vec<_> = answers.iter().filter(|(status, _)| *status == StatusCode::OK).collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        assert_eq!(jobs_with(api, text(&won[0].1, "access_token")).await, StatusCode::OK);
        let (status, _) = answer(refresh(api, text(&won[0].1, "refresh_token"))).await;
        assert_eq!(status, StatusCode::OK);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_an_end_that_renewing_does_not_put_off() {
    with_api(async |world, api| {
        api.user("ada").await;
        let first = sign_in(api, "ada").await;
        let ends = "SELECT extract(epoch FROM max(expires_at))::text FROM sessions";
        let before: String = sqlx::query_scalar(ends).fetch_one(&world.pool).await.unwrap();
        let (_, second) = answer(refresh(api, text(&first, "refresh_token"))).await;
        let after: String = sqlx::query_scalar(ends).fetch_one(&world.pool).await.unwrap();
        assert_eq!(before, after);
        world.execute_as_owner("UPDATE sessions SET expires_at = now()").await;
        let (status, _) = answer(refresh(api, text(&second, "refresh_token"))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let out = jobs_with(api, text(&second, "access_token")).await;
        assert_eq!(out, StatusCode::UNAUTHORIZED);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_one_session_at_once() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let (here, there) = (sign_in(api, "ada").await, sign_in(api, "ada").await);
        let session = ada.with_token(text(&here, "access_token"));
        let out = session.post("/v1/auth/logout").send().await.unwrap();
        assert_eq!(out.status(), StatusCode::NO_CONTENT);
        assert_eq!(jobs_with(api, &session.token).await, StatusCode::UNAUTHORIZED);
        let (status, _) = answer(refresh(api, text(&here, "refresh_token"))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(jobs_with(api, text(&there, "access_token")).await, StatusCode::OK);
    })
    .await;
}

async fn change_password(session: &Session, current: &str, new: &str) -> reqwest::Response {
    let body = json!({"current_password": current, "new_password": new});
    session.post("/v1/auth/password").json(&body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_password_ends_all_sessions_and_the_old_one_is_no_good() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let (other, key) = (sign_in(api, "ada").await, keyed(&ada, &["jobs:read"]).await);
        let refused = change_password(&ada, "wrong horse", "battery staple").await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let common = change_password(&ada, PASSWORD, "Password1").await;
        assert_eq!(common.status(), StatusCode::BAD_REQUEST);
        let body: Value = common.json().await.unwrap();
        assert_eq!(
            (code(&body), &body["error"]["param"]),
            ("common_password", &json!("new_password"))
        );
        assert_eq!(
            jobs_with(api, &ada.token).await,
            StatusCode::OK,
            "nothing has changed yet"
        );

        let changed = change_password(&ada, PASSWORD, "battery staple").await;
        assert_eq!(changed.status(), StatusCode::NO_CONTENT);
        for token in [&ada.token, text(&other, "access_token")] {
            assert_eq!(jobs_with(api, token).await, StatusCode::UNAUTHORIZED);
        }
        let (status, _) = answer(refresh(api, text(&other, "refresh_token"))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer(api.token("ada", PASSWORD)).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(answer(api.token("ada", "battery staple")).await.0, StatusCode::OK);
        assert_eq!(
            jobs_with(api, &key.token).await,
            StatusCode::OK,
            "keys are ended one by one"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_lists_users_takes_their_access_and_changes_their_role_but_not_the_own() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let ada = api.user("ada").await;
        let key = keyed(&ada, &["jobs:read"]).await;
        let (_, list) = answer(root.get("/v1/admin/users?limit=1")).await;
        assert_eq!(
            (&list["data"][0]["username"], &list["has_more"]),
            (&json!("ada"), &json!(true))
        );
        assert!(!list.to_string().contains("argon2"), "{list}");
        let page = format!("/v1/admin/users?after={}", text(&list, "last_id"));
        let (_, rest) = answer(root.get(&page)).await;
        let own = format!("/v1/admin/users/{}", text(&rest["data"][0], "id"));
        let path = format!("/v1/admin/users/{}", text(&list["data"][0], "id"));
        let change = |path: &str, body: Value| answer(root.request(Method::PATCH, path).json(&body));

        let (status, gone) = change(&path, json!({"is_active": false})).await;
        assert_eq!((status, &gone["is_active"]), (StatusCode::OK, &json!(false)));
        for session in [&ada, &key] {
            assert_eq!(jobs_with(api, &session.token).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(answer(api.token("ada", PASSWORD)).await.0, StatusCode::UNAUTHORIZED);
        change(&path, json!({"is_active": true, "role": "auditor"})).await;
        assert_eq!(
            jobs_with(api, &ada.token).await,
            StatusCode::UNAUTHORIZED,
            "the session stays over"
        );
        assert_eq!(jobs_with(api, &key.token).await, StatusCode::OK, "the key holds again");
        let auditor = ada.with_token(text(&sign_in(api, "ada").await, "access_token"));
        assert_eq!(answer(auditor.get("/v1/admin/users")).await.0, StatusCode::OK);

        let (status, body) = change(&own, json!({"role": "user"})).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "own_account"));
        for bad in [
            json!({"role": "root"}),
            json!({"password_hash": "x"}),
            json!({"tenant_id": "x"}),
        ] {
            assert_eq!(change(&path, bad).await.0, StatusCode::BAD_REQUEST);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_passes_for_another_kind_of_secret() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let given = sign_in(api, "ada").await;
        let key = make_key(&ada, json!({"name": "a", "scopes": ["jobs:read"]})).await;
        let (access, renewal) = (text(&given, "access_token"), text(&given, "refresh_token"));
        assert_eq!(jobs_with(api, renewal).await, StatusCode::UNAUTHORIZED);
        for wrong in [access, text(&key, "key"), &renewal.replace("ccr_", "cck_")] {
            let (status, body) = answer(refresh(api, wrong)).await;
            assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "invalid_grant"));
        }
        for wrong in [access, renewal] {
            let (status, _) = answer(api.get("/v1/jobs").header("x-api-key", wrong)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(
            answer(refresh(api, renewal)).await.0,
            StatusCode::OK,
            "which did it no harm"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_registers_with_more_than_a_name_an_address_and_a_password() {
    with_api(async |_, api| {
        for (field, value) in [
            ("role", json!("admin")),
            ("is_active", json!(true)),
            ("tenant_id", json!("org_x")),
        ] {
            let mut body = json!({"username": "eve", "email": "eve@example.org", "password": PASSWORD});
            body[field] = value;
            let (status, body) = answer(api.post("/v1/auth/register").json(&body)).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::BAD_REQUEST, "unknown_field"),
                "{field}"
            );
        }
        let body = json!({"username": "eve.adams", "email": "eve@example.org", "password": "Eve.Adams"});
        let (status, body) = answer(api.post("/v1/auth/register").json(&body)).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "common_password"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_sign_ins_leaves_everybody_else_served() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        let flood = (0..200).map(|one| {
            let (name, password) = if one % 2 == 0 {
                ("ada", PASSWORD)
            } else {
                ("nobody", "wrong horse")
            };
            async move { api.token(name, password).send().await.unwrap().status() }
        });
        let flood = futures::future::join_all(flood);
        let others = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..20 {
                let began = std::time::Instant::now();
                assert_eq!(api.get("/healthz").send().await.unwrap().status(), StatusCode::OK);
                slowest = slowest.max(began.elapsed());
                assert_eq!(jobs_with(api, &ada.token).await, StatusCode::OK);
            }
            slowest
        };
        let (statuses, slowest) = futures::future::join(flood, others).await;
        println!("the slowest /healthz took {slowest:?}");
        for status in &statuses {
            assert!([200, 401, 503].contains(&status.as_u16()), "{status}");
        }
        let busy = statuses.iter().filter(|status| status.as_u16() == 503).count();
        assert!(busy > 0 && busy < 200, "{busy} of 200 were refused at once");
    })
    .await;
}

async fn published(api: &Api) -> Vec<String> {
    let (_, set) = answer(api.get("/.well-known/jwks.json")).await;
    let keys = set["keys"].as_array().unwrap();
    for key in keys {
        assert_eq!((&key["alg"], &key["crv"]), (&json!("EdDSA"), &json!("Ed25519")));
        assert!(key.get("d").is_none() && key["x"].is_string(), "{key}");
    }
    keys.iter().map(|key| text(key, "kid").to_owned()).collect()
}

async fn publish(world: &World, sign_after: Option<u32>) -> String {
    let (kid, sealed) = new_key(&Seal::new(&config(world).api.jwt_secret).unwrap()).unwrap();
    signing_keys::publish(&world.pool, kid.clone(), sealed, sign_after)
        .await
        .unwrap();
    kid
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_are_rotated_while_the_service_runs_and_are_shared_by_its_processes() {
    with_api(async |world, api| {
        let before = api.user("ada").await;
        let old = published(api).await;
        assert_eq!(old.len(), 1, "the service made its first key itself");
        let new = publish(world, None).await;
        let both = eventually("the new key is published", LIMIT, async || {
            Some(published(api).await).filter(|keys| keys.len() == 2)
        })
        .await;
        assert_eq!(both, [old[0].clone(), new.clone()], "the old one still signs");
        assert!(!signing_keys::retire(&world.pool, old[0].clone()).await.unwrap());

        assert!(signing_keys::sign_with(&world.pool, new.clone()).await.unwrap());
        let other = Api::start(world).await;
        let after = text(&sign_in(&other, "ada").await, "access_token").to_owned();
        assert_eq!(jobs_with(api, &after).await, StatusCode::OK);
        assert_eq!(jobs_with(&other, &before.token).await, StatusCode::OK);

        assert!(signing_keys::retire(&world.pool, old[0].clone()).await.unwrap());
        eventually("the old key is not accepted", LIMIT, async || {
            (jobs_with(api, &before.token).await == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
        assert_eq!(published(api).await, [new]);
        assert_eq!(jobs_with(api, &after).await, StatusCode::OK);
        other.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_signs_already_is_known_to_a_process_at_once_though_it_has_not_looked_yet() {
    with_api(async |world, api| {
        api.user("ada").await;
        publish(world, Some(0)).await;
        let other = Api::start(world).await;
        let token = text(&sign_in(&other, "ada").await, "access_token").to_owned();
        eventually("it looks, before its time", Duration::from_secs(4), async || {
            (jobs_with(api, &token).await == StatusCode::OK).then_some(())
        })
        .await;
        other.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_slipped_into_the_database_is_none_of_ours() {
    with_api(async |world, api| {
        api.user("ada").await;
        let known = published(api).await;
        // Whoever can write the table and lacks the secret: a key of their own, and ours under another name.
        let seal = Seal::new(&"the secret of somebody else, as long as ours".to_owned().into()).unwrap();
        let (kid, sealed) = new_key(&seal).unwrap();
        signing_keys::publish(&world.pool, kid, sealed, Some(0)).await.unwrap();
        world
            .execute_as_owner(
                "INSERT INTO signing_keys (kid, sealed, signs_from) SELECT 'renamed-' || kid, sealed, now() FROM signing_keys",
            )
            .await;
        let other = Api::start(world).await;
        let token = text(&sign_in(&other, "ada").await, "access_token").to_owned();
        assert_eq!(published(&other).await, known);
        assert_eq!(jobs_with(api, &token).await, StatusCode::OK);
        other.stop().await;
    })
    .await;
}
