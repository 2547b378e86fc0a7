//! The service, as commands talk to it: who calls, what is repeated when it does not answer, what an error says.
//!
//! Every request here is safe to repeat: it reads, or it carries an idempotency key, or its repetition changes nothing.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::credentials::Credentials;
use crate::failure::Failure;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longer than the service takes to answer anything but a download.
const ANSWER_LIMIT: Duration = Duration::from_secs(100);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The first request with an idempotency key is still at work.
const IN_FLIGHT: &str = "idempotency_key_in_flight";

/// A way to the service.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    credentials: Mutex<Credentials>,
    /// Where changed credentials are kept; none for those of the environment.
    file: Option<PathBuf>,
    /// For so long an unreachable service is asked again.
    patience: Duration,
}

impl Client {
    /// With what `login` kept or the environment says.
    pub(crate) fn new(credentials: Credentials, file: Option<PathBuf>, patience: Duration) -> Result<Self, Failure> {
        // The one TLS of this tree.
        claimcheck_common::tls::install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("claimcheck/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Other(chain(&error)))?;
        Ok(Self {
            http,
            url: credentials.url.trim_end_matches('/').to_owned(),
            credentials: Mutex::new(credentials),
            file,
            patience,
        })
    }

    /// Where the service is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// `GET`, as JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, Failure> {
        read(self.send(|| self.request(Method::GET, path).query(query)).await?).await
    }

    /// `POST` without a body.
    pub(crate) async fn act<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(self.send(|| self.request(Method::POST, path)).await?).await
    }

    /// `POST` that makes something, once however often it has to be sent.
    pub(crate) async fn create<T: DeserializeOwned>(&self, path: &str, key: &str, body: &Value) -> Result<T, Failure> {
        let request = || {
            self.request(Method::POST, path)
                .header("idempotency-key", key)
                .json(body)
        };
        read(self.send(request).await?).await
    }

    /// As [`Self::create`] for what has no body.
    pub(crate) async fn create_empty<T: DeserializeOwned>(&self, path: &str, key: &str) -> Result<T, Failure> {
        let request = || self.request(Method::POST, path).header("idempotency-key", key);
        read(self.send(request).await?).await
    }

    /// `DELETE`.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(self.send(|| self.request(Method::DELETE, path)).await?).await
    }

    /// A form, as OAuth wants it; sent without credentials.
    pub(crate) async fn form<T: DeserializeOwned>(&self, path: &str, form: &[(&str, &str)]) -> Result<T, Failure> {
        let request = || {
            self.http
                .post(format!("{}{path}", self.url))
                .timeout(ANSWER_LIMIT)
                .form(form)
        };
        read(self.send(request).await?).await
    }

    /// An answer as it comes, without a limit for the whole of it.
    pub(crate) async fn open(&self, path: &str, headers: &[(&'static str, String)]) -> Result<Response, Failure> {
        self.send(|| {
            let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(self.secret());
            headers
                .iter()
                .fold(request, |request, (name, value)| request.header(*name, value))
        })
        .await
    }

    /// A request that `build` completes, repeated as a whole under a key of its own.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        build: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<T, Failure> {
        let key = uuid::Uuid::now_v7().to_string();
        let request = || {
            let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(self.secret());
            build(request.header("idempotency-key", key.as_str()))
        };
        read(self.send(request).await?).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .timeout(ANSWER_LIMIT)
            .bearer_auth(self.secret())
    }

    fn secret(&self) -> String {
        self.credentials().secret.clone()
    }

    fn credentials(&self) -> std::sync::MutexGuard<'_, Credentials> {
        self.credentials
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sends until there is an answer that repeating would not change, for as long as there is patience.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        let began = Instant::now();
        let (mut pause, mut refreshed) = (FIRST_PAUSE, false);
        loop {
            let (failure, wanted) = match request().send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !refreshed => {
                    refreshed = true;
                    let refused = refusal(answer).await;
                    if Box::pin(self.refresh()).await? {
                        continue;
                    }
                    return Err(refused);
                }
                Ok(answer) if may_pass(answer.status()) => {
                    let wanted = retry_after(&answer);
                    (refusal(answer).await, wanted)
                }
                Ok(answer) => match refusal(answer).await {
                    // An earlier run of ours was cut off, and the service is still at what it asked.
                    waits @ Failure::Refused { .. } if waits.code() == IN_FLIGHT => (waits, None),
                    refused => return Err(refused),
                },
                Err(error) if error.is_builder() => return Err(Failure::Usage(chain(&error))),
                Err(error) => (self.unreachable(&error), None),
            };
            let pause_now = wanted.unwrap_or(pause);
            if began.elapsed() + pause_now > self.patience {
                return Err(failure);
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A new access token for an expired one. `false`: there is nothing to get one by.
    async fn refresh(&self) -> Result<bool, Failure> {
        let Some(token) = self.credentials().refresh_token.clone() else {
            return Ok(false);
        };
        let form = [("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
        let sent = self
            .http
            .post(format!("{}/v1/auth/token", self.url))
            .timeout(ANSWER_LIMIT)
            .form(&form);
        let Ok(answer) = sent.send().await else {
            return Ok(false);
        };
        if !answer.status().is_success() {
            return Ok(false);
        }
        let body: Value = read(answer).await?;
        let Some(secret) = body["access_token"].as_str() else {
            return Ok(false);
        };
        let mut credentials = self.credentials();
        secret.clone_into(&mut credentials.secret);
        credentials.refresh_token = body["refresh_token"].as_str().map(str::to_owned).or(Some(token));
        if let Some(file) = &self.file {
            credentials.write(file)?;
        }
        Ok(true)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        Failure::Unreachable {
            url: self.url.clone(),
            complaint: chain(error),
        }
    }
}

/// Statuses that another try may change.
fn may_pass(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE
    )
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What the service says of a request that it does not carry out.
async fn refusal(answer: Response) -> Failure {
    let status = answer.status();
    let request_id = answer
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let body: Value = answer.json().await.unwrap_or(json!({}));
    let said = |field: &str| body["error"][field].as_str().map(str::to_owned);
    Failure::Refused {
        status: status.as_u16(),
        code: said("code").unwrap_or_else(|| status.as_str().to_owned()),
        message: said("message").unwrap_or_else(|| format!("the service answered {status}")),
        request_id,
    }
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, Failure> {
    let bytes = answer.bytes().await.map_err(|error| Failure::Other(chain(&error)))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// An error with what caused it: the outermost alone says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    line
}
