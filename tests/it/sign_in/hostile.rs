//! A provider that is what it claims to be in all but one thing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use claimcheck_common::config::ProviderKind;
use claimcheck_tests::OpenIdProvider;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::StatusCode;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::browser::{Browser, PUBLIC, parameter, with};
use super::start;
use crate::http_face::{Api, code, with_api};

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Nothing,
    OtherNonce,
    NoNonce,
    OtherAudience,
    MoreAudiences,
    OtherIssuer,
    Expired,
    NoExpiry,
    Unsigned,
    SignedWithOurSecret,
    SignedWithThePublicKey,
    OtherKey,
    KeyOfItsOwn,
    Altered,
    NoIdToken,
    OtherAccessToken,
    OtherSubject,
    Unverified,
    VerifiedInWords,
    Redirect,
}

/// Where it hangs, or answers without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Metadata,
    Keys,
    Token,
    UserInfo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Hangs,
    IsEndless,
    IsNonsense,
}

struct Key {
    kid: &'static str,
    pkcs8: Vec<u8>,
    public: Vec<u8>,
}

impl Key {
    fn new() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self {
            kid: "one",
            public: pair.public_key().as_ref().to_vec(),
            pkcs8: pkcs8.as_ref().to_vec(),
        }
    }

    fn jwk(&self) -> Value {
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": part(&self.public[1..33]), "y": part(&self.public[33..])})
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_ec_der(&self.pkcs8)).unwrap()
    }
}

struct Said {
    issuer: String,
    key: Key,
    lie: Lie,
    fault: (Place, Fault),
    methods: Value,
    nonce: String,
    challenge: String,
    trapped: bool,
}

type Shared = Arc<Mutex<Said>>;

struct Provider {
    said: Shared,
    _serving: AbortOnDropHandle<()>,
}

impl Provider {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let said = Arc::new(Mutex::new(Said {
            issuer: format!("http://{}", listener.local_addr().unwrap()),
            key: Key::new(),
            lie: Lie::Nothing,
            fault: (Place::Nowhere, Fault::Hangs),
            methods: json!(["S256"]),
            nonce: String::new(),
            challenge: String::new(),
            trapped: false,
        }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route("/me", get(user_info))
            .route("/trap", get(trap).post(trap))
            .with_state(said.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            said,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn api(&self, world: &claimcheck_tests::World) -> Api {
        let issuer = locked(&self.said, |said| said.issuer.clone());
        start(world, "company", ProviderKind::OpenId { issuer }).await
    }

    /// Takes in whoever is sent, and sends them back.
    fn agree(&self, url: &Url) -> Url {
        self.set(|said| {
            said.nonce = parameter(url, "nonce");
            said.challenge = parameter(url, "code_challenge");
        });
        let back: Url = parameter(url, "redirect_uri").parse().unwrap();
        with(
            &with(&back, "code", Some("a-code")),
            "state",
            Some(&parameter(url, "state")),
        )
    }

    async fn sign_in(&self, api: &Api) -> (StatusCode, Value) {
        let browser = Browser::new();
        let url = browser.start(api, "company").await;
        browser.come_back(api, &self.agree(&url)).await
    }
}

fn locked<T>(said: &Shared, read: impl FnOnce(&Said) -> T) -> T {
    read(&said.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What goes out of order at this place, if it is this one's turn.
async fn faulty(said: &Shared, place: Place) -> Option<Response> {
    let (at, fault) = locked(said, |said| said.fault);
    if at != place {
        return None;
    }
    Some(match fault {
        Fault::Hangs => std::future::pending().await,
        Fault::IsNonsense => "<html>".into_response(),
        Fault::IsEndless => {
            // A gigabyte, if anybody wanted it.
            let pieces = std::iter::repeat_n(Bytes::from(vec![b' '; 1 << 20]), 1 << 10).map(Ok::<_, std::io::Error>);
            let body = Body::from_stream(futures::stream::iter(pieces));
            ([("content-type", "application/json")], body).into_response()
        }
    })
}

async fn metadata(State(said): State<Shared>) -> Response {
    if let Some(fault) = faulty(&said, Place::Metadata).await {
        return fault;
    }
    let (issuer, methods) = locked(&said, |said| (said.issuer.clone(), said.methods.clone()));
    Json(json!({
        "issuer": issuer, "authorization_endpoint": format!("{issuer}/auth"), "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"), "userinfo_endpoint": format!("{issuer}/me"), "response_types_supported": ["code"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["none", "HS256", "ES256"],
        "code_challenge_methods_supported": methods,
    }))
    .into_response()
}

async fn keys(State(said): State<Shared>) -> Response {
    if let Some(fault) = faulty(&said, Place::Keys).await {
        return fault;
    }
    Json(json!({"keys": [locked(&said, |said| said.key.jwk())]})).into_response()
}

async fn trap(State(said): State<Shared>) -> StatusCode {
    said.lock().unwrap_or_else(PoisonError::into_inner).trapped = true;
    StatusCode::OK
}

async fn token(State(said): State<Shared>, headers: HeaderMap, Form(form): Form<Vec<(String, String)>>) -> Response {
    if let Some(fault) = faulty(&said, Place::Token).await {
        return fault;
    }
    let given = |name: &str| {
        form.iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    };
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, given("code_verifier").as_bytes()));
    let secret: String = url::form_urlencoded::byte_serialize(OpenIdProvider::CLIENT_SECRET.as_bytes()).collect();
    let login = BASE64_STANDARD.encode(format!("{}:{secret}", OpenIdProvider::CLIENT_ID));
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let known = headers["authorization"] == format!("Basic {login}");
    if challenge != said.challenge || given("code") != "a-code" || !known {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"}))).into_response();
    }
    if said.lie == Lie::Redirect {
        return Redirect::temporary("/trap").into_response();
    }
    let mut answer = json!({"access_token": "an-access-token", "token_type": "Bearer", "expires_in": 60});
    if said.lie != Lie::NoIdToken {
        answer["id_token"] = id_token(&said).into();
    }
    Json(answer).into_response()
}

async fn user_info(State(said): State<Shared>) -> Response {
    if let Some(fault) = faulty(&said, Place::UserInfo).await {
        return fault;
    }
    let lie = locked(&said, |said| said.lie);
    let verified = match lie {
        Lie::Unverified => json!(false),
        Lie::VerifiedInWords => json!("true"),
        _ => json!(true),
    };
    let subject = if lie == Lie::OtherSubject { "root" } else { "ada" };
    Json(json!({"sub": subject, "email": "ada@example.org", "email_verified": verified})).into_response()
}

fn id_token(said: &Said) -> String {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let hash = |token: &str| BASE64_URL_SAFE_NO_PAD.encode(&digest(&SHA256, token.as_bytes()).as_ref()[..16]);
    let mut claims = json!({
        "iss": said.issuer, "sub": "ada", "aud": OpenIdProvider::CLIENT_ID, "iat": now, "exp": now + 60, "nonce": said.nonce,
        "at_hash": hash("an-access-token"),
    });
    let remove = |claims: &mut Value, name: &str| claims.as_object_mut().unwrap().remove(name);
    match said.lie {
        Lie::OtherNonce => claims["nonce"] = "another".into(),
        Lie::NoNonce => drop(remove(&mut claims, "nonce")),
        Lie::OtherAudience => claims["aud"] = "another".into(),
        Lie::MoreAudiences => claims["aud"] = json!([OpenIdProvider::CLIENT_ID, "another"]),
        Lie::OtherIssuer => claims["iss"] = "https://evil.example".into(),
        Lie::Expired => claims["exp"] = (now - 1).into(),
        Lie::NoExpiry => drop(remove(&mut claims, "exp")),
        Lie::OtherAccessToken => claims["at_hash"] = hash("another").into(),
        _ => {}
    }
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(said.key.kid.to_owned());
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let by_secret = |secret: &[u8]| {
        let header = Header::new(Algorithm::HS256);
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    match said.lie {
        Lie::Unsigned => format!("{}.{}.", part(&json!({"alg": "none"})), part(&claims)),
        Lie::SignedWithOurSecret => by_secret(OpenIdProvider::CLIENT_SECRET.as_bytes()),
        Lie::SignedWithThePublicKey => by_secret(&said.key.public),
        Lie::OtherKey => Key::new().sign(&header, &claims),
        Lie::KeyOfItsOwn => {
            let own = Key::new();
            header.jwk = serde_json::from_value(own.jwk()).unwrap();
            header.jku = Some("https://evil.example/jwks".to_owned());
            own.sign(&header, &claims)
        }
        Lie::Altered => {
            let signed = said.key.sign(&header, &claims);
            let parts: Vec<&str> = signed.split('.').collect();
            claims["sub"] = "root".into();
            format!("{}.{}.{}", parts[0], part(&claims), parts[2])
        }
        _ => said.key.sign(&header, &claims),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_token_that_does_not_hold_lets_nobody_in() {
    with_api(async |world, _| {
        let provider = Provider::start().await;
        let api = provider.api(world).await;
        for lie in [
            Lie::OtherNonce,
            Lie::NoNonce,
            Lie::OtherAudience,
            Lie::MoreAudiences,
            Lie::OtherIssuer,
            Lie::Expired,
            Lie::Unsigned,
            Lie::SignedWithOurSecret,
            Lie::SignedWithThePublicKey,
            Lie::OtherKey,
            Lie::KeyOfItsOwn,
            Lie::Altered,
            Lie::NoIdToken,
            Lie::OtherAccessToken,
            Lie::OtherSubject,
        ] {
            provider.set(|said| said.lie = lie);
            let (status, body) = provider.sign_in(&api).await;
            assert_eq!(
                (status, code(&body)),
                (StatusCode::UNAUTHORIZED, "sign_in_refused"),
                "{lie:?}"
            );
        }
        for (lie, status, word) in [
            (Lie::Unverified, StatusCode::FORBIDDEN, "email_not_verified"),
            (Lie::VerifiedInWords, StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            (Lie::NoExpiry, StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            (Lie::Redirect, StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        ] {
            provider.set(|said| said.lie = lie);
            let (answered, body) = provider.sign_in(&api).await;
            assert_eq!((answered, code(&body)), (status, word), "{lie:?}");
        }
        assert!(!locked(&provider.said, |said| said.trapped), "no redirect is followed");
        let sessions: i64 = sqlx::query_scalar("SELECT count(*) FROM sessions")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(sessions, 0);
        // The truth does, or nothing of this would mean anything.
        provider.set(|said| said.lie = Lie::Nothing);
        let (status, body) = provider.sign_in(&api).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_changes_its_keys_is_believed_again() {
    with_api(async |world, _| {
        let provider = Provider::start().await;
        let api = provider.api(world).await;
        assert_eq!(provider.sign_in(&api).await.0, StatusCode::OK);
        provider.set(|said| {
            said.key = Key {
                kid: "two",
                ..Key::new()
            }
        });
        // The keys have just been read; a little later an unknown one is reason to read them anew.
        claimcheck_tests::eventually("the new keys are known", Duration::from_secs(30), async || {
            (provider.sign_in(&api).await.0 == StatusCode::OK).then_some(())
        })
        .await;
        api.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_pkce_is_not_used() {
    with_api(async |world, _| {
        for (methods, status) in [
            (json!(["plain"]), StatusCode::SERVICE_UNAVAILABLE),
            (json!([]), StatusCode::SERVICE_UNAVAILABLE),
            (json!(["plain", "S256"]), StatusCode::SEE_OTHER),
        ] {
            let provider = Provider::start().await;
            provider.set(|said| said.methods = methods);
            let api = provider.api(world).await;
            let url = format!("{PUBLIC}/v1/auth/company/start").parse().unwrap();
            assert_eq!(Browser::new().at(&api, &url).await.status(), status);
            api.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_hangs_answers_without_end_or_nonsense_harms_nobody_else() {
    with_api(async |world, _| {
        let places = [Place::Metadata, Place::Keys, Place::Token, Place::UserInfo];
        let faults = [Fault::Hangs, Fault::IsEndless, Fault::IsNonsense];
        let all = places.into_iter().flat_map(|place| faults.map(|fault| (place, fault)));
        let world = &*world;
        let tries = all.map(|fault| async move {
            let provider = Provider::start().await;
            provider.set(|said| said.fault = fault);
            let api = provider.api(world).await;
            let began = Instant::now();
            let (status, body) = match fault.0 {
                Place::Metadata | Place::Keys => {
                    let url = format!("{PUBLIC}/v1/auth/company/start").parse().unwrap();
                    let response = Browser::new().at(&api, &url).await;
                    (response.status(), response.json().await.unwrap())
                }
                _ => provider.sign_in(&api).await,
            };
            assert_eq!(
                (status, code(&body)),
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
                "{fault:?}"
            );
            assert!(
                began.elapsed() < Duration::from_secs(25),
                "{fault:?} took {:?}",
                began.elapsed()
            );
            let health = api.get("/healthz").send().await.unwrap();
            assert_eq!(health.status(), StatusCode::OK);
            api.user(&format!("user-{fault:?}").replace(['(', ')', ' ', ','], "-"))
                .await;
            api.stop().await;
        });
        futures::future::join_all(tries).await;
    })
    .await;
}
