//! GitHub, as its documentation says that it answers: errors with status 200, forms unless JSON is asked for, no call without
//! a `User-Agent`, addresses at a place of their own.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use claimcheck_common::config::ProviderKind;
use claimcheck_tests::OpenIdProvider;
use reqwest::StatusCode;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::browser::{Browser, PUBLIC, parameter, subject, with};
use super::{count, start};
use crate::http_face::{Api, code, with_api};

const CODE: &str = "0123456789abcdef0123";
const TOKEN: &str = "gho_16C7e42F292c6912E7710c838347Ae178B4a";

struct Said {
    id: u64,
    login: &'static str,
    emails: Value,
    challenge: String,
    is_code_used: bool,
}

type Shared = Arc<Mutex<Said>>;

struct GitHub {
    url: Url,
    said: Shared,
    _serving: AbortOnDropHandle<()>,
}

impl GitHub {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let said = Arc::new(Mutex::new(Said {
            id: 583_231,
            login: "octocat",
            emails: json!([
                {"email": "spam@example.org", "primary": false, "verified": true, "visibility": null},
                {"email": "octocat@example.org", "primary": true, "verified": true, "visibility": "public"},
                {"email": "ada@example.org", "primary": false, "verified": false, "visibility": null},
            ]),
            challenge: String::new(),
            is_code_used: false,
        }));
        let router = Router::new()
            .route("/login/oauth/access_token", post(access_token))
            .route("/api/user", get(user))
            .route("/api/user/emails", get(emails))
            .with_state(said.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            said,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    async fn api(&self, world: &claimcheck_tests::World) -> Api {
        let kind = ProviderKind::GitHub {
            url: self.url.clone(),
            api_url: self.url.join("api").unwrap(),
        };
        start(world, "github", kind).await
    }

    fn set(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// GitHub's page, where the user agrees.
    fn agree(&self, url: &Url) -> Url {
        assert_eq!(url.path(), "/login/oauth/authorize");
        assert_eq!(parameter(url, "scope"), "user:email");
        assert_eq!(parameter(url, "code_challenge_method"), "S256");
        self.set(|said| (said.challenge, said.is_code_used) = (parameter(url, "code_challenge"), false));
        let back: Url = parameter(url, "redirect_uri").parse().unwrap();
        assert_eq!(back.as_str(), format!("{PUBLIC}/v1/auth/github/callback"));
        with(
            &with(&back, "code", Some(CODE)),
            "state",
            Some(&parameter(url, "state")),
        )
    }

    async fn sign_in(&self, api: &Api) -> (StatusCode, Value) {
        let browser = Browser::new();
        let url = browser.start(api, "github").await;
        browser.come_back(api, &self.agree(&url)).await
    }
}

async fn access_token(
    State(said): State<Shared>,
    headers: HeaderMap,
    Form(form): Form<Vec<(String, String)>>,
) -> Response {
    let given = |name: &str| {
        form.iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    };
    let error = |word: &str| Json(json!({"error": word, "error_description": "…", "error_uri": "…"})).into_response();
    if headers["accept"] != "application/json" {
        return format!("access_token={TOKEN}&scope=user%3Aemail&token_type=bearer").into_response();
    }
    if (given("client_id"), given("client_secret")) != (OpenIdProvider::CLIENT_ID, OpenIdProvider::CLIENT_SECRET) {
        return error("incorrect_client_credentials");
    }
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, given("code_verifier").as_bytes()));
    if given("code") != CODE || challenge != said.challenge || std::mem::replace(&mut said.is_code_used, true) {
        return error("bad_verification_code");
    }
    Json(json!({"access_token": TOKEN, "scope": "user:email", "token_type": "bearer"})).into_response()
}

fn is_let_in(headers: &HeaderMap) -> bool {
    headers.contains_key("user-agent") && headers["authorization"] == format!("Bearer {TOKEN}")
}

async fn user(State(said): State<Shared>, headers: HeaderMap) -> Response {
    if !is_let_in(&headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    // The address in the profile is whatever its user has written there.
    Json(json!({"login": said.login, "id": said.id, "type": "User", "email": "root@example.org", "name": null}))
        .into_response()
}

async fn emails(State(said): State<Shared>, headers: HeaderMap) -> Response {
    if !is_let_in(&headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    Json(said.lock().unwrap_or_else(PoisonError::into_inner).emails.clone()).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_github_is_known_by_number_and_main_address() {
    with_api(async |world, _| {
        let github = GitHub::start().await;
        let api = github.api(world).await;
        let (status, first) = github.sign_in(&api).await;
        assert_eq!(status, StatusCode::OK, "{first}");
        let known = "SELECT count(*) FROM users WHERE username = 'octocat' AND email = 'octocat@example.org'";
        assert_eq!(count(world, known).await, 1);
        github.set(|said| said.login = "renamed");
        let (_, again) = github.sign_in(&api).await;
        assert_eq!(subject(&api, &first).await, subject(&api, &again).await);
        // Somebody else took the name that is free now.
        github.set(|said| {
            (said.id, said.login) = (99, "octocat");
            said.emails = json!([{"email": "new@example.org", "primary": true, "verified": true, "visibility": null}]);
        });
        let (_, other) = github.sign_in(&api).await;
        assert_ne!(subject(&api, &first).await, subject(&api, &other).await);
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_github_has_not_verified_count_for_nothing() {
    with_api(async |world, _| {
        let github = GitHub::start().await;
        let api = github.api(world).await;
        github.set(|said| {
            said.emails =
                json!([{"email": "ada@example.org", "primary": true, "verified": false, "visibility": "public"}]);
        });
        let (status, body) = github.sign_in(&api).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "email_not_verified"));
        assert_eq!(count(world, "SELECT count(*) FROM users").await, 0);
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_githubs_is_good_once_and_in_its_own_sign_in() {
    with_api(async |world, _| {
        let github = GitHub::start().await;
        let api = github.api(world).await;
        let (ada, eve) = (Browser::new(), Browser::new());
        let (of_ada, of_eve) = (ada.start(&api, "github").await, eve.start(&api, "github").await);
        let back = github.agree(&of_eve);
        let injected = with(&back, "state", Some(&parameter(&of_ada, "state")));
        let (status, body) = ada.come_back(&api, &injected).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
        assert_eq!(eve.come_back(&api, &back).await.0, StatusCode::OK);
        let next = eve.start(&api, "github").await;
        github.set(|said| said.challenge = parameter(&next, "code_challenge"));
        let replayed = with(&back, "state", Some(&parameter(&next, "state")));
        let (status, body) = eve.come_back(&api, &replayed).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
        api.stop().await;
    })
    .await;
}
