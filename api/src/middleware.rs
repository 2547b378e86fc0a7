//! What happens around every handler: request id, log line, metrics, time limit, admission, panics.
//!
//! The order is set in `router.rs`. Must never log a header, a query or a body.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::{BudgetStanding, UserId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::error::ApiError;
use crate::limits::{self, Mark, Standing};
use crate::refusal;

/// Names a request in answers and logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Seconds that the request took.
pub const X_PROCESS_TIME: HeaderName = HeaderName::from_static("x-process-time");

const REQUEST_ID_MAX: usize = 128;

/// What handlers tell the log line about the request.
#[derive(Debug, Clone, Default)]
pub struct RequestNotes {
    inner: Arc<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    id: String,
    user: OnceLock<UserId>,
    standings: OnceLock<Vec<Standing>>,
    budget: OnceLock<BudgetStanding>,
    names: OnceLock<Mark>,
}

impl RequestNotes {
    fn of(id: String) -> Self {
        let inner = Notes { id, ..Notes::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The request's id, as its answer carries it.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Who the caller turned out to be.
    pub fn set_user(&self, user: UserId) {
        let _already_known = self.inner.user.set(user);
    }

    /// Where the caller stands with its limits; the answer tells.
    pub fn set_standings(&self, standings: Vec<Standing>) {
        let _already_known = self.inner.standings.set(standings);
    }

    /// The mark that the models' names had when the request came.
    pub fn set_names(&self, mark: Mark) {
        let _already_known = self.inner.names.set(mark);
    }

    /// `None`: nobody can tell.
    pub fn names(&self) -> Option<Mark> {
        self.inner.names.get().copied()
    }

    /// What is left of the caller's nearest budget; the answer tells.
    pub fn set_budget(&self, standing: BudgetStanding) {
        let _already_known = self.inner.budget.set(standing);
    }
}

/// The outermost layer: names the request, measures it, writes its one log line. Once the process is stopping, each answer is its
/// connection's last: who comes again comes to another process.
pub async fn observe(State(stopping): State<CancellationToken>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // HTTP/2 parts by a frame of its own.
    let parts_by_header = request.version() < Version::HTTP_2;
    let notes = RequestNotes::of(id.clone());
    request.extensions_mut().insert(notes.clone());
    let record = Record {
        id: id.clone(),
        method: request.method().clone(),
        route: request
            .extensions()
            .get::<MatchedPath>()
            .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned()),
        notes: notes.clone(),
        started: Instant::now(),
        status: None,
    };
    let span = tracing::info_span!("http", request_id = %id);
    let mut response = next.run(request).instrument(span).await;
    let seconds = record.answered(response.status());
    let headers = response.headers_mut();
    if parts_by_header && stopping.is_cancelled() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(
        X_REQUEST_ID,
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("invalid")),
    );
    headers.insert(
        X_PROCESS_TIME,
        HeaderValue::from_str(&format!("{seconds:.6}")).unwrap_or(HeaderValue::from_static("0")),
    );
    if let Some(standings) = notes.inner.standings.get() {
        limits::write_headers(headers, standings);
    }
    if let Some(standing) = notes.inner.budget.get() {
        refusal::write_tokens(headers, standing);
    }
    response
}

/// The caller's own id if it is a short visible word, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(X_REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned)
}

/// Writes the log line when it is dropped, so that a client that hung up leaves one too.
struct Record {
    id: String,
    method: Method,
    route: String,
    notes: RequestNotes,
    started: Instant,
    status: Option<StatusCode>,
}

impl Record {
    fn answered(mut self, status: StatusCode) -> f64 {
        self.status = Some(status);
        self.started.elapsed().as_secs_f64()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        // 499 is nginx's word for a client that closed the connection before the answer.
        let status = self.status.map_or(499, |status| status.as_u16());
        let method = method_label(&self.method);
        let labels = [
            ("method", method.to_owned()),
            ("route", self.route.clone()),
            ("status", status.to_string()),
        ];
        metrics::counter!("claimcheck_http_requests_total", &labels).increment(1);
        metrics::histogram!("claimcheck_http_request_duration_seconds", "route" => self.route.clone()).record(seconds);
        let duration_ms = (seconds * 1e6).round() / 1e3;
        let user = self.notes.inner.user.get().map(tracing::field::display);
        let (route, request_id) = (self.route.as_str(), self.id.as_str());
        if is_probe(route) {
            tracing::debug!(method, route, status, duration_ms, request_id, user, "request");
        } else {
            tracing::info!(method, route, status, duration_ms, request_id, user, "request");
        }
    }
}

/// Callers may send any word as a method; a metric's label may take only a few values.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn is_probe(route: &str) -> bool {
    matches!(route, "/healthz" | "/readyz" | "/startupz" | "/metrics")
}

/// How many requests are at work at the same time, and for how long each. Clones share their room.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// None: as many as come.
    room: Option<Arc<Semaphore>>,
    limit: Duration,
}

impl Bounds {
    /// Room for so many, of which each is given up after `limit`.
    pub fn new(room: usize, limit: Duration) -> Self {
        Self {
            room: Some(Arc::new(Semaphore::new(room))),
            limit,
        }
    }

    /// Room for all who come.
    pub const fn of_time(limit: Duration) -> Self {
        Self { room: None, limit }
    }

    /// The same room, with another limit.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

/// Refuses requests while there is no room, before they cost anything, and gives up what takes too long.
pub async fn bound(State(Bounds { room, limit }): State<Bounds>, request: Request, next: Next) -> Response {
    match room.as_ref().map(|room| room.try_acquire()).transpose() {
        Ok(_place) => match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::TimedOut.into_response(),
        },
        Err(_) => ApiError::busy(
            "The service is at its limit of open requests; try again in a moment.",
            1,
        )
        .into_response(),
    }
}

/// A handler that panicked is a 500 like any other.
#[allow(clippy::needless_pass_by_value, reason = "the shape that `CatchPanicLayer` wants")]
pub fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    ApiError::internal(format!("a handler panicked: {message}")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_own_request_id_is_kept_if_it_is_sane() {
        let id = |value: &[u8]| {
            request_id(&HeaderMap::from_iter([(
                X_REQUEST_ID,
                HeaderValue::from_bytes(value).unwrap(),
            )]))
        };
        assert_eq!(id(b"trace-17"), "trace-17");
        for odd in [b"".as_slice(), b"two words", b"\xff", &[b'x'; 129]] {
            assert!(Uuid::try_parse(&id(odd)).is_ok(), "{odd:?}");
        }
    }
}
