//! Calls to providers: bounded in time and size, no redirect followed, no proxy asked; in production by TLS alone.

use std::pin::Pin;
use std::time::Duration;

use claimcheck_common::tls;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use reqwest::redirect::Policy;

const USER_AGENT: &str = concat!("claimcheck/", env!("CARGO_PKG_VERSION"));
/// One call has been answered within this.
const TIME: Duration = Duration::from_secs(5);
/// The largest answer that is read. Metadata and keys are a few KiB.
const BODY_MAX: usize = 512 << 10;

/// A call that was not answered well.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// No answer, or none in time.
    #[error("the call failed: {}", cause(.0))]
    Call(#[from] reqwest::Error),
    /// More than is read.
    #[error("the answer is larger than {BODY_MAX} bytes")]
    TooLarge,
    /// An answer that cannot be put together again.
    #[error("the answer is malformed: {0}")]
    Malformed(#[from] axum::http::Error),
}

/// The client of all providers.
pub(super) struct Http(reqwest::Client);

impl Http {
    /// With the roots of the public web.
    pub(super) fn new(https_only: bool) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::of_the_web()?)
            .redirect(Policy::none())
            .no_proxy()
            .https_only(https_only)
            .timeout(TIME)
            .referer(false)
            .user_agent(USER_AGENT);
        Ok(Self(client.build()?))
    }

    /// Sends a request and reads all of its answer.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut response = axum::http::Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = std::mem::take(answer.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > BODY_MAX {
                return Err(HttpError::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        Ok(response.body(body)?)
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// What is behind reqwest's own words, which repeat the URL with all that stands in it.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if error.is_timeout() {
        format!("no answer within {TIME:?}")
    } else {
        deepest.to_string()
    }
}
