//! Registering, signing in, and what a token is good for.

use claimcheck_common::domain::UserId;
use reqwest::StatusCode;
use serde_json::json;

use crate::http_face::{PASSWORD, answer, code, with_api};

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_user_signs_in_and_works_with_the_token() {
    with_api(async |_, api| {
        let ada = api.user("ada").await;
        assert_eq!(answer(ada.get("/v1/jobs")).await.0, StatusCode::OK);
        let response = api.token("ADA", PASSWORD).send().await.unwrap();
        assert_eq!(
            response.status(),
            StatusCode::OK,
            "names are the same whatever their case"
        );
        assert_eq!(response.headers()["cache-control"], "no-store");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_an_unknown_user_and_a_deactivated_one_get_the_same_answer() {
    with_api(async |world, api| {
        api.user("ada").await;
        api.user("bob").await;
        world
            .execute_as_owner("UPDATE users SET is_active = false WHERE username = 'bob'")
            .await;
        let wrong = answer(api.token("ada", "wrong horse")).await;
        assert_eq!(wrong.0, StatusCode::UNAUTHORIZED);
        assert_eq!(code(&wrong.1), "invalid_grant");
        assert_eq!(answer(api.token("nobody", PASSWORD)).await, wrong);
        assert_eq!(answer(api.token("bob", PASSWORD)).await, wrong);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_or_address_is_409_and_says_which() {
    with_api(async |_, api| {
        api.user("ada").await;
        for (username, email, param) in [
            ("Ada", "other@example.org", "username"),
            ("other", "ADA@example.org", "email"),
        ] {
            let body = json!({"username": username, "email": email, "password": PASSWORD});
            let response = api.post("/v1/auth/register").json(&body).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::CONFLICT);
            assert_eq!(response.headers()["x-should-retry"], "false");
            let body: serde_json::Value = response.json().await.unwrap();
            assert_eq!(body["error"]["param"], param);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_user_is_out_at_once_although_the_token_still_runs() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        world.execute_as_owner("UPDATE users SET is_active = false").await;
        let response = ada.get("/v1/jobs").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_401_and_no_password_is_ever_stored_or_shown() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        for token in ["", "x", "a.b.c", &format!("{}x", ada.token), &UserId::new().to_string()] {
            let (status, body) = answer(api.get("/v1/jobs").bearer_auth(token)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{token}");
            assert!(["invalid_token", "missing_token"].contains(&code(&body)));
        }
        let stored: String = sqlx::query_scalar("SELECT users::text FROM users")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert!(stored.contains("$argon2id$") && !stored.contains(PASSWORD), "{stored}");
    })
    .await;
}
