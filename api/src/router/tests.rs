//! The face as a caller meets it while every server behind it is away.

use super::*;
use crate::app::StateParts;
use crate::auth::{Secret, SecretKind};
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use claimcheck_common::config::{
    ApiConfig, BrokerConfig, DatabaseConfig, DeliveryConfig, Environment, FilesConfig, JwtAlgorithm, LimitsConfig,
    PolicyConfig, Prices, RedisConfig, SignInConfig, TransportConfig, WebhookConfig,
};
use claimcheck_common::domain::{SessionId, UserId};
use futures::FutureExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

fn parts() -> StateParts {
    StateParts::new(&config()).unwrap()
}

fn state() -> AppState {
    parts().into()
}

/// Nothing listens on the discard port.
pub(crate) fn config() -> crate::Config {
    crate::Config {
        api: ApiConfig {
            http_addr: ([127, 0, 0, 1], 0).into(),
            jwt_secret: "a secret of at least thirty-two bytes".to_owned().into(),
            receipt_secret: None,
            jwt_algorithm: JwtAlgorithm::Hs256,
            token_ttl: Duration::from_mins(1),
            session_ttl: Duration::from_hours(1),
            max_queued: None,
            prices: Prices::default(),
            stop_notice: Duration::ZERO,
            drain: Duration::from_secs(1),
        },
        database: DatabaseConfig {
            url: "postgres://nobody@127.0.0.1:9/none".to_owned(),
            owner_url: None,
            pool_size: 1,
        },
        broker: BrokerConfig {
            url: "amqp://127.0.0.1:9".to_owned(),
            queue_prefix: "none".to_owned(),
        },
        redis: RedisConfig {
            prefix: "test".to_owned(),
            url: "redis://127.0.0.1:9".to_owned(),
        },
        delivery: DeliveryConfig::default(),
        webhooks: WebhookConfig::default(),
        files: FilesConfig {
            place: std::env::temp_dir().join("claimcheck-no-files").display().to_string(),
            ..FilesConfig::default()
        },
        limits: LimitsConfig::unlimited(),
        policy: PolicyConfig::default(),
        transport: TransportConfig::default(),
        sign_in: SignInConfig::default(),
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .expect("an error envelope")
            .to_owned()
    }
}

async fn send_to(router: Router, request: Request<Body>) -> Answer {
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    let body = String::from_utf8(to_bytes(body, 16 << 20).await.unwrap().to_vec()).unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

async fn send(request: Request<Body>) -> Answer {
    send_to(router(state()), request).await
}

async fn get(path: &str) -> Answer {
    send(Request::get(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn an_unknown_path_and_an_unknown_page_are_404_in_the_envelope() {
    for path in ["/nothing", "/v1", "/v1/jobs/x/y/z", "/docs/nothing.html"] {
        let answer = get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.code(), "not_found", "{path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_and_told_the_right_ones() {
    let answer = send(Request::delete("/v1/jobs").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.code(), "method_not_allowed");
    let allowed = answer.headers["allow"].to_str().unwrap().to_owned();
    assert!(allowed.contains("POST") && allowed.contains("GET"), "{allowed}");
}

#[tokio::test]
async fn every_answer_carries_its_request_id_and_its_time() {
    for path in ["/", "/nothing", "/v1/jobs", "/docs/"] {
        let answer = get(path).await;
        assert!(!answer.headers["x-request-id"].is_empty(), "{path}");
        let seconds: f64 = answer.headers["x-process-time"].to_str().unwrap().parse().unwrap();
        assert!((0.0..30.0).contains(&seconds));
    }
    let named = Request::get("/")
        .header("x-request-id", "mine-17")
        .body(Body::empty())
        .unwrap();
    assert_eq!(send(named).await.headers["x-request-id"], "mine-17");
}

#[tokio::test]
async fn without_a_token_every_private_route_is_401_with_a_challenge() {
    for (method, path) in [
        (Method::GET, "/v1/jobs"),
        (Method::POST, "/v1/jobs"),
        (Method::GET, "/v1/jobs/job_01h455vb4pex5vsknk084sn02q"),
        (Method::POST, "/v1/jobs/job_01h455vb4pex5vsknk084sn02q/cancel"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/events"),
        (Method::POST, "/v1/webhook_endpoints"),
        (Method::GET, "/v1/webhook_endpoints/jobs/secret"),
        (Method::GET, "/v1/models/tiny"),
        (Method::GET, "/v1/models/openai-community/gpt2"),
    ] {
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let answer = send(request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert!(answer.headers.contains_key("www-authenticate"), "{method} {path}");
    }
}

#[tokio::test]
async fn while_the_database_is_away_requests_are_503_and_the_process_is_alive_but_not_ready() {
    let state = state();
    let token = state.tokens.issue(UserId::new(), SessionId::new()).await.unwrap().token;
    let request = Request::get("/v1/jobs")
        .header("authorization", format!("Bearer {}", token.expose_secret()))
        .body(Body::empty())
        .unwrap();
    let answer = send_to(router(state.clone()), request).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(!answer.body.contains("127.0.0.1"), "internals leak: {}", answer.body);
    assert_eq!(get("/healthz").await.status, StatusCode::OK);
    let ready = get("/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json()["checks"]["postgres"], "down");
    assert_eq!(get("/startupz").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_mistyped_api_key_is_refused_without_a_look_into_the_database() {
    let ask = async |key: &str| {
        let request = Request::get("/v1/jobs").header("x-api-key", key);
        send(request.body(Body::empty()).unwrap()).await.status
    };
    let key = Secret::draw(SecretKind::ApiKey);
    assert_eq!(ask(key.expose()).await, StatusCode::SERVICE_UNAVAILABLE);
    let mistyped = key.expose().replace(&key.expose()[10..11], "u");
    assert_eq!(ask(&mistyped).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn every_route_of_the_document_states_what_it_needs() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            assert!(
                operation[crate::access::X_NEEDS].is_string(),
                "{method} {path} states no need: write `.needs(…)` beside it in router.rs"
            );
        }
    }
}

#[tokio::test]
async fn a_handler_that_asks_for_its_caller_on_a_route_without_a_need_lets_nobody_in() {
    async fn handler(_caller: crate::extract::Caller) {}
    let router = Router::new().route("/", axum::routing::get(handler));
    let request = Request::get("/").header("authorization", "Bearer x");
    let answer = send_to(router, request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_bad_registration_is_refused_before_anything_else_is_asked() {
    let register = |media: &str, body: &str| {
        Request::post("/v1/auth/register")
            .header("content-type", media)
            .body(Body::from(body.to_owned()))
            .unwrap()
    };
    let huge = format!(r#"{{"username": "{}"}}"#, "x".repeat(20_000));
    for (media, body, status) in [
        ("application/json", "{", StatusCode::BAD_REQUEST),
        ("application/json", r#"{"username": "a"}"#, StatusCode::BAD_REQUEST),
        ("application/json", &huge, StatusCode::PAYLOAD_TOO_LARGE),
        ("text/plain", "{}", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        assert_eq!(send(register(media, body)).await.status, status, "{body:.40}");
    }
    let good = r#"{"username": "ada", "email": "ada@example.org", "password": "correct horse"}"#;
    assert_eq!(
        send(register("application/json", good)).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn the_token_form_follows_rfc_6749() {
    let form = |body: &'static str| {
        Request::post("/v1/auth/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(body))
            .unwrap()
    };
    for (body, code) in [
        ("", "invalid_request"),
        ("grant_type=password&username=ada", "invalid_request"),
        (
            "grant_type=password&username=a&username=b&password=x",
            "invalid_request",
        ),
        ("grant_type=implicit", "unsupported_grant_type"),
        // A client has to say who it is.
        ("grant_type=client_credentials", "invalid_client"),
        ("grant_type=refresh_token", "invalid_request"),
        // So does a refresh token that is none.
        ("grant_type=refresh_token&refresh_token=cck_123", "invalid_grant"),
        // A refusal is written down, and there is nowhere to write it.
        ("grant_type=password&username=%00&password=whatever", "unavailable"),
    ] {
        assert_eq!(send(form(body)).await.code(), code, "{body}");
    }
}

#[tokio::test]
async fn a_panic_and_an_overlong_request_are_answered_in_the_envelope() {
    async fn boom() {
        panic!("secret detail");
    }
    let router = Router::new()
        .route("/boom", axum::routing::get(boom))
        .route("/slow", axum::routing::get(std::future::pending::<()>))
        .layer(from_fn_with_state(Bounds::of_time(Duration::from_millis(5)), bound))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(CancellationToken::new(), middleware::observe));
    let answer = send_to(router.clone(), Request::get("/boom").body(Body::empty()).unwrap()).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
    );
    assert!(!answer.body.contains("secret"));
    let answer = send_to(router, Request::get("/slow").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.headers["x-should-retry"], "false");
}

#[tokio::test]
async fn beyond_the_room_requests_are_refused_at_once() {
    let leave = Arc::new(Notify::new());
    let handler = {
        let leave = leave.clone();
        || async move { leave.notified().await }
    };
    let router = Router::new()
        .route("/", axum::routing::get(handler))
        .layer(from_fn_with_state(Bounds::new(1, TIME_LIMIT), bound));
    let request = || Request::get("/").body(Body::empty()).unwrap();
    let mut first = std::pin::pin!(send_to(router.clone(), request()));
    assert!(first.as_mut().now_or_never().is_none(), "it is inside");
    assert_eq!(
        send_to(router.clone(), request()).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    leave.notify_one();
    assert_eq!(first.await.status, StatusCode::OK);
    leave.notify_one();
    assert_eq!(send_to(router, request()).await.status, StatusCode::OK);
}

/// What a stranger may ask.
const OPEN: [&str; 5] = [
    "/v1/auth/register",
    "/v1/auth/token",
    "/v1/auth/providers",
    "/v1/auth/{provider}/start",
    "/v1/auth/{provider}/callback",
];

#[tokio::test]
async fn the_document_lists_every_route_with_its_errors_and_the_pages_need_no_other_host() {
    let document = get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/",
        "/version",
        "/healthz",
        "/readyz",
        "/startupz",
        "/metrics",
        "/v1/auth/register",
        "/v1/auth/token",
        "/.well-known/jwks.json",
        "/v1/jobs",
        "/v1/jobs/{id}",
        "/v1/jobs/{id}/cancel",
        "/v1/models",
        "/v1/models/{name}",
    ] {
        assert!(paths.contains_key(path), "{path} is not documented");
    }
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            for (status, answer) in answers {
                assert!(
                    answer["description"].is_string(),
                    "{method} {path} {status} lacks its description"
                );
            }
            if !path.starts_with("/v1/") {
                continue;
            }
            assert!(
                answers.contains_key("503") && answers.contains_key("500"),
                "{method} {path}"
            );
            let private = operation[crate::access::X_NEEDS] != "nothing";
            assert_eq!(private, !OPEN.contains(&path.as_str()), "{method} {path}");
            assert_eq!(operation.get("security").is_some(), private, "{method} {path}");
            assert_eq!(
                answers.contains_key("401"),
                private || path.ends_with("token") || path.ends_with("callback"),
                "{method} {path}"
            );
        }
    }
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["type"], "oauth2");
    for name in ["SubmitJob", "JobBody", "ErrorBody", "Registration"] {
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} has no schema"
        );
    }
    for page in ["/docs/", "/docs/index.html", "/docs/swagger-initializer.js"] {
        let answer = get(page).await;
        assert_eq!(answer.status, StatusCode::OK, "{page}");
        assert!(
            !answer.body.contains("src=\"http") && !answer.body.contains("href=\"http"),
            "{page}"
        );
    }
}

#[tokio::test]
async fn every_schema_that_the_document_refers_to_is_in_it() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| match value.as_str() {
                Some(reference) if key == "$ref" => found.push(reference.to_owned()),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = serde_json::to_value(document()).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

fn transport(change: impl FnOnce(&mut TransportConfig)) -> Router {
    let mut config = TransportConfig::default();
    change(&mut config);
    let proxies = ["127.0.0.0/8".parse().unwrap()];
    let transport = crate::transport::Transport::new(&config, &proxies).unwrap();
    router(StateParts { transport, ..parts() }.into())
}

#[tokio::test]
async fn every_answer_keeps_browsers_careful() {
    for path in ["/", "/nothing", "/v1/jobs", "/docs/", "/healthz"] {
        let answer = get(path).await;
        for (name, part) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "frame-ancestors 'none'"),
        ] {
            let value = answer.headers[name].to_str().unwrap();
            assert!(value.contains(part), "{path}: {name}: {value}");
        }
        assert!(!answer.headers.contains_key("x-xss-protection"));
        assert!(!answer.headers.contains_key("strict-transport-security"));
    }
    assert_eq!(get("/v1/jobs").await.headers["cache-control"], "no-store");
    let production = transport(|config| config.env = Environment::Production);
    let answer = send_to(production, Request::get("/").body(Body::empty()).unwrap()).await;
    assert!(
        answer.headers["strict-transport-security"]
            .to_str()
            .unwrap()
            .contains("max-age=63072000")
    );
}

/// What OpenAI's library and a page by hand send.
const LIBRARY_HEADERS: &str = "authorization,content-type,idempotency-key,openai-organization,openai-project,prefer,\
    x-stainless-lang,x-stainless-retry-count,x-stainless-timeout";

#[tokio::test]
async fn pages_of_configured_origins_alone_may_call() {
    let allowing = || transport(|config| config.cors_origins = vec!["https://app.example.org".to_owned()]);
    let preflight = |origin: &str| {
        Request::options("/v1/jobs")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", LIBRARY_HEADERS)
            .body(Body::empty())
            .unwrap()
    };
    let ours = send_to(allowing(), preflight("https://app.example.org")).await;
    assert_eq!(ours.status, StatusCode::OK);
    assert_eq!(ours.headers["access-control-allow-origin"], "https://app.example.org");
    assert_eq!(ours.headers["access-control-allow-headers"], LIBRARY_HEADERS);
    assert!(!ours.headers.contains_key("access-control-allow-credentials"));
    for origin in ["https://evil.example.org", "https://app.example.org.evil.net", "null"] {
        let theirs = send_to(allowing(), preflight(origin)).await;
        assert!(!theirs.headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    let request = Request::get("/").header("origin", "https://app.example.org");
    let told = send_to(allowing(), request.body(Body::empty()).unwrap()).await;
    let told = told.headers["access-control-expose-headers"]
        .to_str()
        .unwrap()
        .to_owned();
    for name in [
        "retry-after",
        "x-should-retry",
        "preference-applied",
        "x-process-time",
        "x-ratelimit-remaining-tokens",
    ] {
        assert!(told.split(',').any(|shown| shown == name), "{name}: {told}");
    }
    let none = send(preflight("https://app.example.org")).await;
    assert_eq!(none.status, StatusCode::METHOD_NOT_ALLOWED, "no origin is configured");
    assert!(!none.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn only_configured_hosts_are_answered_to_and_probes_always() {
    let router = || transport(|config| config.allowed_hosts = vec!["API.example.org".to_owned()]);
    let request = |path: &str, host: &str| Request::get(path).header("host", host).body(Body::empty()).unwrap();
    for host in ["api.example.org", "api.EXAMPLE.org:8443"] {
        assert_eq!(
            send_to(router(), request("/", host)).await.status,
            StatusCode::OK,
            "{host}"
        );
    }
    for host in [
        "evil.example.org",
        "api.example.org.evil.net",
        "api.example.org@evil.net",
    ] {
        let answer = send_to(router(), request("/", host)).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        assert_eq!(answer.code(), "unknown_host");
    }
    assert_eq!(
        send_to(router(), request("/healthz", "10.0.0.7:8080")).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn in_production_plain_http_is_sent_to_https_as_far_as_a_proxy_tells() {
    let request = |method: Method, peer: [u8; 4], scheme: &str| {
        let peer = std::net::SocketAddr::from((peer, 4000));
        Request::builder()
            .method(method)
            .uri("/v1/jobs?limit=1")
            .header("host", "api.example.org:80")
            .header("x-forwarded-proto", scheme)
            .extension(axum::extract::ConnectInfo(peer))
            .body(Body::empty())
            .unwrap()
    };
    let ask = async |request| send_to(transport(|config| config.env = Environment::Production), request).await;
    let moved = ask(request(Method::GET, [127, 0, 0, 1], "http")).await;
    assert_eq!(moved.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(moved.headers["location"], "https://api.example.org/v1/jobs?limit=1");
    let shown = ask(request(Method::POST, [127, 0, 0, 1], "http")).await;
    assert_eq!(
        (shown.status, shown.code().as_str()),
        (StatusCode::FORBIDDEN, "https_required")
    );
    for (peer, scheme) in [([127, 0, 0, 1], "https"), ([203, 0, 113, 7], "http")] {
        let answer = ask(request(Method::GET, peer, scheme)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{peer:?} {scheme}");
    }
}

#[tokio::test]
async fn long_answers_are_compressed_for_who_asks() {
    let request = |encoding: &str| {
        Request::get("/openapi.json")
            .header("accept-encoding", encoding)
            .body(Body::empty())
            .unwrap()
    };
    let response = router(state()).oneshot(request("gzip")).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let short = to_bytes(response.into_body(), 16 << 20).await.unwrap().len();
    let plain = send(request("identity")).await;
    assert!(!plain.headers.contains_key("content-encoding"));
    assert!(short * 3 < plain.body.len(), "{short} of {}", plain.body.len());
}
