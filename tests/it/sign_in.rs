//! Signing in with others: with a real OpenID Connect provider here, with GitHub's answers in `github`, and with a provider
//! that lies or hangs in `hostile`.

mod browser;
mod github;
mod hostile;

use claimcheck_common::config::{ProviderConfig, ProviderKind, SignInConfig};
use claimcheck_common::store::sign_ins;
use claimcheck_tests::{OpenIdProvider, World};
use reqwest::{Method, StatusCode, header};

use self::browser::{Browser, COOKIE, PUBLIC, parameter, subject, with};
use crate::http_face::{Api, answer, code, config, with_api};

const CALLBACK: &str = "https://api.example.org/v1/auth/company/callback";

/// Runs a test with an API that is a client of a real provider.
async fn with_provider(test: impl AsyncFnOnce(&mut World, &Api, &OpenIdProvider)) {
    with_api(async |world, _| {
        let provider = OpenIdProvider::start(CALLBACK);
        let kind = ProviderKind::OpenId {
            issuer: provider.issuer.clone(),
        };
        let api = start(world, "company", kind).await;
        test(world, &api, &provider).await;
        api.stop().await;
    })
    .await;
}

/// An API that knows one provider.
async fn start(world: &World, name: &str, kind: ProviderKind) -> Api {
    let mut config = config(world);
    config.sign_in = SignInConfig {
        providers: vec![ProviderConfig {
            name: name.to_owned(),
            label: "The Company".to_owned(),
            kind,
            client_id: OpenIdProvider::CLIENT_ID.to_owned(),
            client_secret: OpenIdProvider::CLIENT_SECRET.to_owned().into(),
        }],
        public_url: Some(PUBLIC.parse().unwrap()),
    };
    Api::start_with(config).await
}

async fn count(world: &World, what: &'static str) -> i64 {
    sqlx::query_scalar(what).fetch_one(&world.pool).await.unwrap()
}

const USERS: &str = "SELECT count(*) FROM users";
const SESSIONS: &str = "SELECT count(*) FROM sessions";

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_user_gets_an_account_and_comes_back_to_it() {
    with_provider(async |world, api, _| {
        let (_, list) = answer(api.get("/v1/auth/providers")).await;
        assert_eq!(list["data"][0]["start"], "/v1/auth/company/start", "{list}");
        let (status, first) = Browser::new().sign_in(api, "grace").await;
        assert_eq!(status, StatusCode::OK, "{first}");
        let refresh = format!("grant_type=refresh_token&refresh_token={}", first["refresh_token"].as_str().unwrap());
        let request = api.post("/v1/auth/token").header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(answer(request.body(refresh)).await.0, StatusCode::OK);
        let browser = Browser::new();
        let (_, second) = browser.sign_in(api, "grace").await;
        assert_eq!(subject(api, &first).await, subject(api, &second).await);
        assert_eq!(browser.ticket(), None, "the cookie is taken back");
        let (_, other) = Browser::new().sign_in(api, "hopper").await;
        assert_ne!(subject(api, &first).await, subject(api, &other).await);
        assert_eq!(count(world, USERS).await, 2);
        let logged: Vec<(String, Option<String>)> = sqlx::query_as(
            "SELECT action, credential FROM audit_log WHERE actor = 'user:' || (SELECT id FROM users WHERE username = 'grace')
             AND address = '127.0.0.1' AND request_id IS NOT NULL ORDER BY id",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let actions: Vec<&str> = logged.iter().map(|(action, _)| action.as_str()).collect();
        assert_eq!(actions, ["user.registered", "identity.linked", "session.begun", "session.begun"]);
        let by_provider = |(_, credential): &(String, Option<String>)| credential.as_deref() == Some("provider:company");
        assert!(logged[1..].iter().all(by_provider), "{logged:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_given_to_nobody_else() {
    with_provider(async |world, api, _| {
        api.user("grace").await;
        world
            .execute_as_owner("UPDATE users SET email = 'other@example.org' WHERE username = 'grace'")
            .await;
        let (status, body) = Browser::new().sign_in(api, "grace").await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let taken = "SELECT count(*) FROM users WHERE username LIKE 'grace-______' AND NOT has_password";
        assert_eq!(count(world, taken).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_that_address_is_linked_by_its_own_user_and_never_silently() {
    with_provider(async |world, api, _| {
        let ada = api.user("ada").await;
        let (status, body) = Browser::new().sign_in(api, "ada").await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "account_exists"));
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("/v1/auth/company/link"), "{message}");
        assert_eq!(count(world, "SELECT count(*) FROM identities").await, 0);

        let (status, linked) = Browser::new().link(api, &ada.token, "ada").await;
        assert_eq!(status, StatusCode::OK, "{linked}");
        let (status, signed_in) = Browser::new().sign_in(api, "ada").await;
        assert_eq!(status, StatusCode::OK, "{signed_in}");
        assert_eq!(subject(api, &signed_in).await, subject(api, &linked).await);
        assert_eq!(count(world, USERS).await, 1);

        let (_, list) = answer(ada.get("/v1/auth/identities")).await;
        assert_eq!((&list["data"][0]["provider"], &list["data"][0]["email"]), (&"company".into(), &"ada@example.org".into()));
        let path = format!("/v1/auth/identities/{}", list["data"][0]["id"].as_str().unwrap());
        let gone = ada.request(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(gone.status(), StatusCode::NO_CONTENT);
        assert_eq!(Browser::new().sign_in(api, "ada").await.0, StatusCode::CONFLICT);
        let logged = "SELECT count(*) FROM audit_log WHERE action IN ('identity.linked', 'identity.unlinked') AND credential IN \
                      ('token', 'provider:company') AND address IS NOT NULL";
        assert_eq!(count(world, logged).await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_made_for_a_verified_address_of_the_account_and_a_session_that_goes_on() {
    with_provider(async |world, api, _| {
        let ada = api.user("ada").await;
        // Whoever has stolen a token makes no way in of their own.
        let (status, body) = Browser::new().link(api, &ada.token, "eve").await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "email_not_verified"));
        let unverified = api.user("unverified").await;
        let (status, body) = Browser::new().link(api, &unverified.token, "unverified").await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "email_not_verified"));

        let browser = Browser::new();
        let url = browser.ask_to_link(api, &ada.token).await;
        let back = browser.agree(url, "ada").await;
        let out = ada.post("/v1/auth/logout").send().await.unwrap();
        assert_eq!(out.status(), StatusCode::NO_CONTENT);
        let (status, body) = browser.come_back(api, &back).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
        assert_eq!(count(world, "SELECT count(*) FROM identities").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_user_belongs_to_one_account_and_the_last_way_in_stays() {
    with_provider(async |world, api, _| {
        let (_, grace) = Browser::new().sign_in(api, "grace").await;
        let token = grace["access_token"].as_str().unwrap();
        let (_, list) = answer(api.get("/v1/auth/identities").bearer_auth(token)).await;
        let path = format!(
            "{}/v1/auth/identities/{}",
            api.base,
            list["data"][0]["id"].as_str().unwrap()
        );
        let (status, body) = answer(api.client.delete(path).bearer_auth(token)).await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "last_way_in"));
        let password = serde_json::json!({"current_password": "any", "new_password": "correct horse"});
        let (status, body) = answer(api.post("/v1/auth/password").bearer_auth(token).json(&password)).await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "no_password"));

        let ada = api.user("ada").await;
        world
            .execute_as_owner(
                "UPDATE users SET email = 'was@example.org' WHERE username = 'grace';
                 UPDATE users SET email = 'grace@example.org' WHERE username = 'ada'",
            )
            .await;
        let (status, body) = Browser::new().link(api, &ada.token, "grace").await;
        assert_eq!((status, code(&body)), (StatusCode::CONFLICT, "already_linked"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_ends_in_the_browser_that_began_it_and_in_no_other() {
    with_provider(async |world, api, _| {
        let eve = Browser::new();
        let url = eve.start(api, "company").await;
        let back = eve.agree(url, "eve").await;
        // Eve sends the address to somebody: without a cookie, with the cookie of a sign-in of their own, and with both states.
        let (nobody, ada) = (Browser::new(), Browser::new());
        let own = ada.start(api, "company").await;
        let (status, body) = nobody.come_back(api, &back).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_state"));
        let (status, body) = ada.come_back(api, &back).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_state"));
        for state in [None, Some(""), Some("x")] {
            let (status, _) = ada.come_back(api, &with(&back, "state", state)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{state:?}");
        }
        assert_eq!(count(world, SESSIONS).await, 0);
        // A code of Eve's in ada's sign-in: the provider holds it against ada's verifier (RFC 7636).
        let injected = with(&back, "state", Some(&parameter(&own, "state")));
        let (status, body) = ada.come_back(api, &injected).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
        assert_eq!((count(world, SESSIONS).await, count(world, USERS).await), (0, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_and_its_code_are_good_once() {
    with_provider(async |world, api, _| {
        let browser = Browser::new();
        let url = browser.start(api, "company").await;
        let ticket = browser.ticket().unwrap();
        let back = browser.agree(url, "ada").await;
        assert_eq!(browser.come_back(api, &back).await.0, StatusCode::OK);
        // The same address with the same cookie: whoever found both in a log.
        let again = api.get(back.as_str().strip_prefix(PUBLIC).unwrap());
        let (status, body) = answer(again.header("cookie", format!("{COOKIE}={ticket}"))).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_state"));
        let next = browser.start(api, "company").await;
        let replayed = with(&back, "state", Some(&parameter(&next, "state")));
        let (status, body) = browser.come_back(api, &replayed).await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
        assert_eq!(count(world, SESSIONS).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_returns_at_the_same_time_one_signs_in() {
    with_provider(async |world, api, _| {
        let browser = Browser::new();
        let url = browser.start(api, "company").await;
        let back = browser.agree(url, "ada").await;
        let returns = (0..8).map(|_| browser.come_back(api, &back));
        let answers = futures::future::join_all(returns).await;
        let let_in = answers.iter().filter(|(status, _)| *status == StatusCode::OK).count();
        assert_eq!((let_in, count(world, SESSIONS).await), (1, 1), "{answers:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_is_over_after_ten_minutes_and_is_forgotten() {
    with_provider(async |world, api, _| {
        let browser = Browser::new();
        let url = browser.start(api, "company").await;
        let back = browser.agree(url, "ada").await;
        let lifetime = "SELECT extract(epoch FROM expires_at - now())::bigint FROM sign_ins";
        assert!((540..=600).contains(&count(world, lifetime).await));
        world.execute_as_owner("UPDATE sign_ins SET expires_at = now()").await;
        let (status, body) = browser.come_back(api, &back).await;
        assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "invalid_state"));
        assert_eq!(sign_ins::forget(&world.pool).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_sent_back_to_the_configured_address_and_to_no_other() {
    with_provider(async |_, api, provider| {
        let browser = Browser::new();
        for parameter in ["redirect_uri", "return_to", "next", "scope"] {
            let path = format!("/v1/auth/company/start?{parameter}=https://evil.example");
            let (status, body) = answer(api.get(&path)).await;
            assert_eq!((status, code(&body)), (StatusCode::BAD_REQUEST, "unknown_parameter"));
        }
        let forged = Browser::new().start_by_way_of(api, "evil.example").await;
        for url in [forged, browser.start(api, "company").await] {
            assert!(url.as_str().starts_with(&provider.issuer), "{url}");
            assert_eq!(parameter(&url, "redirect_uri"), CALLBACK);
            assert_eq!(parameter(&url, "code_challenge_method"), "S256");
            assert_eq!(parameter(&url, "response_type"), "code");
            let altered = with(&url, "redirect_uri", Some("https://evil.example/"));
            let page = api.client.get(altered).send().await.unwrap();
            assert_eq!(page.status(), StatusCode::BAD_REQUEST, "the provider matches exactly");
        }
        for unknown in ["/v1/auth/other/start", "/v1/auth/other/callback?code=x&state=y"] {
            let (status, body) = answer(api.get(unknown)).await;
            assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "provider_not_found"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_of_a_sign_in_is_this_hosts_and_no_scripts() {
    with_provider(async |_, api, _| {
        let url = format!("{PUBLIC}/v1/auth/company/start").parse().unwrap();
        let response = Browser::new().at(api, &url).await;
        let given = response.headers()[header::SET_COOKIE].to_str().unwrap();
        assert!(given.starts_with(&format!("{COOKIE}=ccs_")), "{given}");
        for part in [
            "; Path=/;",
            "; Max-Age=600;",
            "; HttpOnly;",
            "; SameSite=Lax;",
            "; Secure",
        ] {
            assert!(given.contains(part), "{given}");
        }
        assert!(!given.contains("Domain"));
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_by_an_address_that_the_provider_has_not_verified() {
    with_provider(async |world, api, _| {
        let (status, body) = Browser::new().sign_in(api, "unverified-ada").await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "email_not_verified"));
        assert_eq!(count(world, USERS).await, 0);
        let refused = "SELECT count(*) FROM audit_log WHERE action = 'session.begun' AND outcome = 'refused'
                       AND details->>'because' = 'email_not_verified' AND credential = 'provider:company'";
        assert_eq!(count(world, refused).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_another_issuer_of_none_and_refusals_let_nobody_in() {
    with_provider(async |world, api, _| {
        let browser = Browser::new();
        for (name, value) in [
            ("iss", None),
            ("iss", Some("https://evil.example")),
            ("error", Some("access_denied")),
        ] {
            let url = browser.start(api, "company").await;
            let back = browser.agree(url, "ada").await;
            let (status, body) = browser.come_back(api, &with(&back, name, value)).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::UNAUTHORIZED, "sign_in_refused"),
                "{name} {value:?}"
            );
            assert_eq!(browser.ticket(), None);
        }
        let url = browser.start(api, "company").await;
        let back = browser.agree(url, "ada").await;
        let (status, _) = browser.come_back(api, &with(&back, "code", None)).await;
        assert_eq!((status, count(world, SESSIONS).await), (StatusCode::BAD_REQUEST, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_user_does_not_come_in_by_a_provider() {
    with_provider(async |world, api, _| {
        assert_eq!(Browser::new().sign_in(api, "ada").await.0, StatusCode::OK);
        world.execute_as_owner("UPDATE users SET is_active = false").await;
        let (status, body) = Browser::new().sign_in(api, "ada").await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "sign_in_refused"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beginning_to_sign_in_is_limited_by_address() {
    with_provider(async |world, _, provider| {
        let mut config = config(world);
        config.limits.login_address_rate = "3/min".parse().unwrap();
        config.sign_in = SignInConfig {
            providers: vec![ProviderConfig {
                name: "company".to_owned(),
                label: "The Company".to_owned(),
                kind: ProviderKind::OpenId {
                    issuer: provider.issuer.clone(),
                },
                client_id: "claimcheck".to_owned(),
                client_secret: "secret".to_owned().into(),
            }],
            public_url: Some(PUBLIC.parse().unwrap()),
        };
        let api = Api::start_with(config).await;
        let mut statuses = Vec::new();
        for _ in 0..4 {
            let url = format!("{PUBLIC}/v1/auth/company/start").parse().unwrap();
            statuses.push(Browser::new().at(&api, &url).await.status());
        }
        assert_eq!(
            statuses,
            [
                StatusCode::SEE_OTHER,
                StatusCode::SEE_OTHER,
                StatusCode::SEE_OTHER,
                StatusCode::TOO_MANY_REQUESTS
            ]
        );
        api.stop().await;
    })
    .await;
}
