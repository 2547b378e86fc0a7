//! A receiver of webhooks: it writes down what comes, and answers as the test wants.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::eventually;

const LIMIT: Duration = Duration::from_secs(30);

type Answer = dyn Fn(Received) -> BoxFuture<'static, Response> + Send + Sync;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Received {
    /// How many came before it.
    pub place: usize,
    /// Its path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it had come.
    pub at: OffsetDateTime,
}

/// A receiver on a port of its own, until it is dropped.
pub struct Receiver {
    base: String,
    seen: Arc<Mutex<Vec<Received>>>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Shared {
    seen: Arc<Mutex<Vec<Received>>>,
    answer: Arc<Answer>,
}

impl Received {
    /// A header as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

impl Receiver {
    /// A receiver that takes everything.
    pub async fn start() -> Self {
        Self::answering(StatusCode::NO_CONTENT).await
    }

    /// A receiver that always gives the same answer.
    pub async fn answering(status: StatusCode) -> Self {
        Self::by(move |_| Box::pin(async move { status.into_response() })).await
    }

    /// A receiver that answers by `answer`.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn by(answer: impl Fn(Received) -> BoxFuture<'static, Response> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::default());
        let shared = Shared {
            seen: Arc::clone(&seen),
            answer: Arc::new(answer),
        };
        let router = Router::new().fallback(take).with_state(shared);
        let serving = tokio::spawn(async move {
            axum::serve(listener, router)
                .await
                .expect("it serves until it is dropped");
        });
        Self {
            base,
            seen,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// What has come.
    pub fn received(&self) -> Vec<Received> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many have come, and answers them.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} webhooks have come"), LIMIT, async || {
            Some(self.received()).filter(|seen| seen.len() >= count)
        })
        .await
    }
}

async fn take(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let received = {
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let received = Received {
            place: seen.len(),
            path: uri.path().to_owned(),
            headers,
            body,
            at: OffsetDateTime::now_utc(),
        };
        seen.push(received.clone());
        received
    };
    (shared.answer)(received).await
}
