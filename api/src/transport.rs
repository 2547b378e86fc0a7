//! What holds for every request before its route is looked at, and for every answer: the names that we answer to, HTTPS in
//! production, who may call from a browser, and the headers that keep browsers careful (OWASP ASVS 5.0, chapter 3.4).
//!
//! Must never look at a body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use claimcheck_common::config::{Environment, TransportConfig};
use ipnet::IpNet;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::error::{ApiError, Problem};

/// Two years, as the preload lists ask.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains");
/// Answers are data: nothing in them is to be run, shown in a frame or loaded.
const CSP: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'");
/// The pages under `/docs` bring their own scripts and styles.
const CSP_OF_PAGES: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
/// Answers below this are not worth compressing.
const COMPRESS_ABOVE: u64 = 1024;
const PREFLIGHT_KEPT: Duration = Duration::from_mins(10);

/// The rules, for the layers.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    production: bool,
    hosts: Vec<String>,
    origins: Vec<HeaderValue>,
    proxies: Vec<IpNet>,
}

impl Transport {
    /// Refuses origins that are none. `proxies` are believed about the scheme they were called by.
    pub fn new(config: &TransportConfig, proxies: &[IpNet]) -> anyhow::Result<Self> {
        let origins = config.cors_origins.iter().map(|origin| {
            let url = url::Url::parse(origin).ok();
            let exact = url.is_some_and(|url| url.origin().ascii_serialization() == *origin);
            anyhow::ensure!(
                exact,
                "CLAIMCHECK_CORS_ORIGINS: `{origin}` is no origin; write `https://app.example.org`"
            );
            HeaderValue::from_str(origin).context("CLAIMCHECK_CORS_ORIGINS does not read")
        });
        let inner = Inner {
            production: config.env == Environment::Production,
            hosts: config.allowed_hosts.iter().map(|host| host.to_lowercase()).collect(),
            origins: origins.collect::<Result<_, _>>()?,
            proxies: proxies.to_vec(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets pages of the configured origins call, if there are any. Credentials are sent in headers of their own, so cookies stay at home.
    pub fn cors(&self) -> Option<CorsLayer> {
        if self.inner.origins.is_empty() {
            return None;
        }
        let told = [
            "etag",
            "location",
            "preference-applied",
            "retry-after",
            "ratelimit",
            "ratelimit-policy",
            "x-process-time",
            "x-request-id",
            "x-should-retry",
        ];
        let ours = [
            "idempotent-replayed",
            "x-ratelimit-limit-requests",
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-requests",
            "x-ratelimit-reset-tokens",
        ];
        let told = [&told[..], &ours[..]].concat();
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::list(self.inner.origins.clone()))
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            // Client libraries send headers of their own, and none means more here than to who writes it by hand.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(told.into_iter().map(HeaderName::from_static).collect::<Vec<_>>())
            .max_age(PREFLIGHT_KEPT);
        Some(layer)
    }

    fn refusal(&self, request: &Request) -> Option<Response> {
        let Inner {
            production,
            hosts,
            proxies,
            ..
        } = &*self.inner;
        if is_probe(request.uri().path()) {
            return None;
        }
        let host = host(request.uri(), request.headers());
        if !hosts.is_empty() && !host.is_some_and(|host| hosts.contains(&name_of(host).to_lowercase())) {
            let problem = Problem::new("unknown_host", "This service does not answer to this Host.");
            return Some(ApiError::Misdirected(problem.at("host")).into_response());
        }
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let believed = peer.is_some_and(|peer| {
            let address = peer.0.ip().to_canonical();
            proxies.iter().any(|network| network.contains(&address))
        });
        let plain = request
            .headers()
            .get("x-forwarded-proto")
            .is_some_and(|scheme| scheme == "http");
        (*production && believed && plain).then(|| to_https(request, host))
    }
}

/// The layer around everything but the log line: refuses, and dresses answers.
pub async fn guard(State(transport): State<Transport>, request: Request, next: Next) -> Response {
    let is_page = request.uri().path().starts_with("/docs");
    let is_api = request.uri().path().starts_with("/v1");
    let mut response = match transport.refusal(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, NO_REFERRER);
    let csp = if is_page { CSP_OF_PAGES } else { CSP };
    headers.insert(header::CONTENT_SECURITY_POLICY, csp);
    if is_api && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if transport.inner.production {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
    }
    response
}

/// Compresses answers that are worth it; never a stream of events, which has to go out as it comes.
pub fn compression() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new()
        .gzip(true)
        .compress_when(DefaultPredicate::new().and(SizeAbove::new(COMPRESS_ABOVE)))
}

/// What listens to plain HTTP beside a service that speaks TLS: all of it is sent there.
pub fn redirects() -> Router {
    Router::new().fallback(async |request: Request| {
        let host = host(request.uri(), request.headers()).map(ToOwned::to_owned);
        to_https(&request, host.as_deref())
    })
}

/// What a browser asks is asked again by HTTPS. What sent a body has shown it already and is told so.
fn to_https(request: &Request, host: Option<&str>) -> Response {
    let place = request.uri().path_and_query().map_or("/", |place| place.as_str());
    let target = host.and_then(|host| HeaderValue::from_str(&format!("https://{}{place}", name_of(host))).ok());
    match (request.method(), target) {
        (&Method::GET | &Method::HEAD, Some(target)) => {
            (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, target)]).into_response()
        }
        _ => ApiError::Forbidden(Problem::new("https_required", "Send this by HTTPS.")).into_response(),
    }
}

fn host<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<&'r str> {
    uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok())
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/startupz" | "/metrics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        let with = |origin: &str| {
            let config = TransportConfig {
                cors_origins: vec![origin.to_owned()],
                ..TransportConfig::default()
            };
            Transport::new(&config, &[])
        };
        assert!(with("https://app.example.org").is_ok() && with("http://localhost:3000").is_ok());
        for bad in [
            "*",
            "app.example.org",
            "https://app.example.org/",
            "null",
            "https://a.org/path",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_is_no_part_of_a_name() {
        assert_eq!(name_of("api.example.org:8080"), "api.example.org");
        assert_eq!(name_of("[::1]:80"), "[::1]");
        assert_eq!(name_of("[::1]"), "[::1]");
        assert_eq!(name_of("api.example.org"), "api.example.org");
    }
}
