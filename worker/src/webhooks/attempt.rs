//! One attempt: from a claimed delivery to what is to be recorded. Prepare, send, judge.
//!
//! Every wait and every size here has a bound, whatever the receiver does. Must never write to the database.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use claimcheck_common::config::WebhookConfig;
use claimcheck_common::domain::PayloadKind;
use claimcheck_common::store::webhooks::dispatch::{Attempt, Delivery, Verdict};
use claimcheck_common::store::{Pool, jobs};
use claimcheck_common::webhook::{self, Target, Vault};
use ipnet::IpNet;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use time::OffsetDateTime;
use url::Url;

use super::client::{Client, ClientError, NotAllowed};
use super::schedule;

/// So much of an answer is read, that its connection may serve again; and so much is kept.
const ANSWER_READ: usize = 20_000;
const ANSWER_KEPT: usize = 1024;

/// Makes attempts.
pub(super) struct Sender {
    pool: Pool,
    client: Client,
    vault: Vault,
    allow: Arc<[IpNet]>,
    links: Option<Url>,
    timeout: Duration,
}

/// Ready to go.
struct Prepared {
    target: Target,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// What an attempt came to.
struct Outcome {
    status_code: Option<u16>,
    error: Option<&'static str>,
    message: Option<String>,
    answer: Option<String>,
    verdict: Verdict,
    /// The receiver was not asked, for no fault of its own.
    is_ours: bool,
}

impl Outcome {
    fn failed(error: &'static str, message: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            status_code: None,
            error: Some(error),
            message: Some(message.into()),
            answer: None,
            verdict,
            is_ours: false,
        }
    }

    fn unsent(error: &'static str, message: &str, verdict: Verdict) -> Self {
        Self {
            is_ours: true,
            ..Self::failed(error, message, verdict)
        }
    }
}

impl Sender {
    /// A sender within the bounds of the configuration.
    pub(super) fn new(pool: Pool, config: &WebhookConfig, vault: Vault) -> Result<Self, ClientError> {
        Ok(Self {
            pool,
            client: Client::new(&config.allow, config.timeout)?,
            vault,
            allow: config.allow.as_slice().into(),
            links: config.public_url.clone(),
            timeout: config.timeout,
        })
    }

    /// Makes one attempt.
    pub(super) async fn send(&self, delivery: Delivery) -> Attempt {
        let began = Instant::now();
        let (outcome, latency) = match self.prepare(&delivery).await {
            Ok(prepared) => self.call(prepared, delivery.tries).await,
            Err(outcome) => (outcome, began.elapsed()),
        };
        metrics::counter!("claimcheck_webhook_attempts_total", "outcome" => outcome.error.unwrap_or("delivered"))
            .increment(1);
        metrics::histogram!("claimcheck_webhook_attempt_seconds").record(latency.as_secs_f64());
        tracing::debug!(endpoint = %delivery.endpoint, event = %delivery.event_id, attempt = delivery.attempt,
            status = outcome.status_code, error = outcome.error, "sent a webhook");
        Attempt {
            endpoint: delivery.endpoint,
            event: delivery.event_id,
            number: delivery.attempt,
            ago: began.elapsed(),
            latency,
            status_code: outcome.status_code,
            error: outcome.error,
            message: outcome.message,
            answer: outcome.answer,
            verdict: outcome.verdict,
            is_ours: outcome.is_ours,
        }
    }

    async fn prepare(&self, delivery: &Delivery) -> Result<Prepared, Outcome> {
        let forgotten = |what: &str| Outcome::unsent("forgotten", what, Verdict::Failed);
        let event = delivery
            .event
            .as_ref()
            .ok_or_else(|| forgotten("The event is no longer kept."))?;
        let url = delivery
            .url
            .as_ref()
            .ok_or_else(|| forgotten("The job is no longer kept."))?;
        // Again, since the networks that are open may have changed.
        let target = Target::parse(url, &self.allow).map_err(|wrong| {
            let after = schedule::after_failure(delivery.tries, None);
            Outcome::failed("address_not_allowed", format!("The URL {wrong}."), after)
        })?;
        let job = match event.job {
            Some(id) if delivery.payload == PayloadKind::Full => {
                let job = jobs::get(&self.pool, delivery.project, id).await;
                job.map_err(ours(delivery.tries))?
            }
            _ => None,
        };
        let body = webhook::body(event, job.as_ref(), self.links.as_ref()).map_err(ours(delivery.tries))?;
        let headers = self.headers(delivery, &body)?;
        Ok(Prepared { target, headers, body })
    }

    /// The caller's own headers, and over them ours (Standard Webhooks: id, timestamp, signatures).
    fn headers(&self, delivery: &Delivery, body: &[u8]) -> Result<HeaderMap, Outcome> {
        let (tries, mut headers) = (delivery.tries, HeaderMap::new());
        if let Some(sealed) = &delivery.headers {
            let opened = self.vault.open(delivery.endpoint, sealed).map_err(ours(tries))?;
            let own: Vec<(String, String)> = serde_json::from_slice(&opened).map_err(ours(tries))?;
            for (name, value) in own {
                headers.insert(
                    HeaderName::try_from(name).map_err(ours(tries))?,
                    HeaderValue::try_from(value).map_err(ours(tries))?,
                );
            }
        }
        let (id, timestamp) = (
            delivery.event_id.to_string(),
            OffsetDateTime::now_utc().unix_timestamp(),
        );
        let signatures = self.signatures(delivery, &id, timestamp, body)?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in [
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::try_from(value).map_err(ours(tries))?,
            );
        }
        Ok(headers)
    }

    /// By the secret, and by the one before while that one is good.
    fn signatures(&self, delivery: &Delivery, id: &str, timestamp: i64, body: &[u8]) -> Result<Vec<String>, Outcome> {
        let open = |sealed: &[u8]| self.vault.open_secret(delivery.endpoint, sealed);
        let secret = open(&delivery.secret).map_err(ours(delivery.tries))?;
        let mut signatures = vec![secret.sign(id, timestamp, body)];
        match delivery.old_secret.as_deref().map(open) {
            Some(Ok(old)) => signatures.push(old.sign(id, timestamp, body)),
            // Whoever has the new secret by now needs no other.
            Some(Err(error)) => tracing::warn!(endpoint = %delivery.endpoint, %error, "an old secret does not open"),
            None => {}
        }
        Ok(signatures)
    }

    /// Sends, and judges the answer. Also says how long its head took.
    async fn call(&self, prepared: Prepared, tries: u32) -> (Outcome, Duration) {
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + self.timeout;
        let request = self.client.to(&prepared.target).post(prepared.target.url().clone());
        let sent = request.headers(prepared.headers).body(prepared.body).send();
        let answered = tokio::time::timeout_at(deadline, sent).await;
        let latency = began.elapsed();
        let again = || schedule::after_failure(tries, None);
        let outcome = match answered {
            Err(_) => {
                let message = format!("There was no answer within {:?}.", self.timeout);
                Outcome::failed("timeout", message, again())
            }
            Ok(Err(error)) => {
                let (word, message) = explain(&error);
                Outcome::failed(word, message, again())
            }
            Ok(Ok(response)) => judge(response, tries, deadline).await,
        };
        (outcome, latency)
    }
}

async fn judge(response: Response, tries: u32, deadline: tokio::time::Instant) -> Outcome {
    let status = response.status();
    let put_off = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| schedule::retry_after(value.to_str().ok()?, SystemTime::now()));
    let (error, message, verdict) = match status {
        status if status.is_success() => (None, None, Verdict::Delivered),
        StatusCode::GONE => (
            Some("gone"),
            Some("The receiver wants no more deliveries."),
            Verdict::Gone,
        ),
        status if status.is_redirection() => (
            Some("redirect"),
            Some("Redirects are not followed; set the URL that it leads to."),
            schedule::after_failure(tries, put_off),
        ),
        _ => (
            Some("status"),
            Some("The receiver answered with another status than 2xx."),
            schedule::after_failure(tries, put_off),
        ),
    };
    Outcome {
        status_code: Some(status.as_u16()),
        error,
        message: message.map(str::to_owned),
        answer: first_bytes(response, deadline).await,
        verdict,
        is_ours: false,
    }
}

/// The answer's beginning, as far as it comes in time. What the status said holds whatever follows.
async fn first_bytes(mut response: Response, deadline: tokio::time::Instant) -> Option<String> {
    let (mut kept, mut read) = (Vec::new(), 0);
    while read < ANSWER_READ {
        let Ok(Ok(Some(chunk))) = tokio::time::timeout_at(deadline, response.chunk()).await else {
            break;
        };
        read += chunk.len();
        let room = ANSWER_KEPT - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    (!kept.is_empty()).then(|| String::from_utf8_lossy(&kept).into_owned())
}

/// A word and a sentence for what kept an answer from coming.
fn explain(error: &reqwest::Error) -> (&'static str, String) {
    let mut innermost: &dyn StdError = error;
    loop {
        if innermost.is::<NotAllowed>() {
            return ("address_not_allowed", format!("No connection was made: {innermost}."));
        }
        match innermost.source() {
            Some(cause) => innermost = cause,
            None => break,
        }
    }
    let word = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "protocol"
    };
    (word, format!("No answer came: {innermost}."))
}

/// What failed on our side is logged here, and the receiver's log only says that it was us. It may be mended by the next try,
/// and if it never is, then this ends like any other delivery.
fn ours<E: StdError>(tries: u32) -> impl Fn(E) -> Outcome {
    move |error| {
        tracing::error!(%error, "a webhook could not be prepared");
        let message = "The delivery could not be prepared.";
        Outcome::unsent("internal", message, schedule::after_failure(tries, None))
    }
}
