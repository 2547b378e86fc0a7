//! The one error type of the HTTP face, and its one mapping to a status and a body.
//!
//! Every handler, extractor and layer answers failures with [`ApiError`]; nothing else decides a status. A message tells
//! the caller what to do and never shows internals: causes go to the log, once, here. Layers below have their own enums
//! (`store::StoreError`, [`crate::auth::TokensError`], …), which become an `ApiError` at the edge and nowhere else.

use std::error::Error as StdError;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::BudgetStanding;
use claimcheck_common::store::StoreError;
pub use claimcheck_common::validate::Problem;
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::{PasswordError, TokensError};
use crate::refusal;

/// Tells the retry loop of official client libraries to give up.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Seconds after which a caller may try again when a dependency is down.
pub const RETRY_AFTER_OUTAGE: u32 = 2;

/// Seconds after which a tenant whose quota is full may have room again.
const RETRY_AFTER_QUOTA: u32 = 5;

/// The code of a 409 whose first request is still at work.
pub const IN_FLIGHT: &str = "idempotency_key_in_flight";

/// Seconds after which the first request under a key has most likely been answered.
const RETRY_AFTER_IN_FLIGHT: u32 = 1;

type Cause = Box<dyn StdError + Send + Sync>;

/// Everything that a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 400: the request is malformed, out of range or names an unknown field.
    #[error("invalid request: {}", .0.message)]
    Invalid(Problem),
    /// 401: no, a bad or an expired token; wrong credentials.
    #[error("not authenticated: {}", .0.message)]
    Unauthenticated(Problem),
    /// 403: the caller is known and may not.
    #[error("forbidden: {}", .0.message)]
    Forbidden(Problem),
    /// 404: nothing here, or nothing of the caller's.
    #[error("not found: {}", .0.message)]
    NotFound(Problem),
    /// 405: the path exists, the method does not. The router adds `Allow`.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// 408: the caller took too long to send its request.
    #[error("the request body came too slowly")]
    SlowRequest,
    /// 409: the change clashes with the present state.
    #[error("conflict: {}", .0.message)]
    Conflict(Problem),
    /// 413: the body is beyond this many bytes.
    #[error("body beyond {0} bytes")]
    TooLarge(usize),
    /// 415: the body is of a type that is not read here.
    #[error("unsupported media type: {}", .0.message)]
    UnsupportedMedia(Problem),
    /// 421: the request was meant for another host.
    #[error("misdirected: {}", .0.message)]
    Misdirected(Problem),
    /// 422: an idempotency key came back with another body.
    #[error("unprocessable: {}", .0.message)]
    Unprocessable(Problem),
    /// 429: the caller has as much here as it may; later there is room.
    #[error("too many: {}", .0.message)]
    TooMany(Problem),
    /// 429: the caller comes too often.
    #[error("too often: {}", .problem.message)]
    RateLimited {
        /// What the caller is told.
        problem: Problem,
        /// Seconds until one more request is taken.
        retry_after: u32,
    },
    /// 429: a budget has too little left.
    #[error("over budget: {}", .problem.message)]
    OverBudget {
        /// What the caller is told.
        problem: Problem,
        /// Seconds until the budget is renewed, if that helps.
        retry_after: Option<u32>,
        /// What is left of it.
        standing: Box<BudgetStanding>,
    },
    /// 503: a dependency is down or all hands are busy; the cause, if any, is logged.
    #[error("unavailable: {message}")]
    Unavailable {
        /// What the caller is told.
        message: &'static str,
        /// Seconds until a retry makes sense.
        retry_after: u32,
        /// What went wrong inside.
        cause: Option<Cause>,
    },
    /// 504: the request ran into its time limit.
    #[error("time limit reached")]
    TimedOut,
    /// 500: the job of a caller that waited for it failed, after all its attempts.
    #[error("the job failed: {}", .0.message)]
    JobFailed(Problem),
    /// 500: a bug or a broken invariant; the cause is logged.
    #[error("internal error: {0}")]
    Internal(Cause),
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// One sentence for people: what to change.
    pub message: String,
    /// The family: `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field, header or parameter at fault, else null.
    #[schema(required)]
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: &'static str,
}

impl ApiError {
    /// 400 for one field.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Problem::invalid(param, message))
    }

    /// 500, with what is to be logged.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    /// 503 because a server that this request needs does not answer.
    pub fn outage(cause: impl Into<Cause>) -> Self {
        Self::Unavailable {
            message: "The service cannot reach its database right now; try again in a moment.",
            retry_after: RETRY_AFTER_OUTAGE,
            cause: Some(cause.into()),
        }
    }

    /// 503 because everything that does this work is busy.
    pub const fn busy(message: &'static str, retry_after: u32) -> Self {
        Self::Unavailable {
            message,
            retry_after,
            cause: None,
        }
    }

    /// The status that this failure is answered with.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMedia(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Misdirected(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany(_) | Self::RateLimited { .. } | Self::OverBudget { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::JobFailed(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable word for programs, where the caller is at fault; for what is ours, nothing that programs need.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(problem)
            | Self::Unauthenticated(problem)
            | Self::Forbidden(problem)
            | Self::NotFound(problem)
            | Self::Conflict(problem) => Some(problem.code),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn log(&self) {
        match self {
            Self::Internal(cause) => tracing::error!(error = %Chain(cause.as_ref()), "a request failed inside"),
            Self::Unavailable { cause: Some(cause), .. } => {
                tracing::warn!(error = %Chain(cause.as_ref()), "a request could not be served for now");
            }
            _ => {}
        }
    }

    fn into_problem(self) -> Problem {
        match self {
            Self::Invalid(problem)
            | Self::Unauthenticated(problem)
            | Self::Forbidden(problem)
            | Self::NotFound(problem)
            | Self::Conflict(problem)
            | Self::UnsupportedMedia(problem)
            | Self::Misdirected(problem)
            | Self::Unprocessable(problem)
            | Self::TooMany(problem)
            | Self::JobFailed(problem)
            | Self::RateLimited { problem, .. }
            | Self::OverBudget { problem, .. } => problem,
            Self::MethodNotAllowed => Problem::new(
                "method_not_allowed",
                "This path does not take this method; the Allow header names those it takes.",
            ),
            Self::SlowRequest => Problem::new("request_timeout", "The request body came too slowly; send it again."),
            Self::TooLarge(limit) => Problem::new(
                "body_too_large",
                format!("The request body is too large; at most {limit} bytes are read here."),
            ),
            Self::Unavailable { message, .. } => Problem::new("unavailable", message),
            Self::TimedOut => Problem::new(
                "timeout",
                "The request took too long and its outcome is unknown; look before sending it again, or use an \
                 Idempotency-Key.",
            ),
            Self::Internal(_) => Problem::new(
                "internal_error",
                "Something went wrong on our side. Try again, and quote the x-request-id header if it stays.",
            ),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl ApiError {
    /// The body alone, for an answer whose status was sent already.
    pub fn into_body(self) -> ErrorBody {
        self.log();
        let kind = self.kind();
        ErrorBody::new(self.into_problem(), kind)
    }
}

impl ErrorBody {
    fn new(problem: Problem, kind: &'static str) -> Self {
        Self {
            error: ErrorDetail {
                message: problem.message,
                kind,
                param: problem.param,
                code: problem.code,
            },
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            // Repeated inside already, in vain: too much is going on.
            StoreError::Unavailable(_) | StoreError::Retry(_) => Self::outage(error),
            // Expected conflicts are handled where they are expected.
            StoreError::Conflict { .. } | StoreError::Refused(_) => Self::internal(error),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::busy("Too many sign-ins at the moment; try again shortly.", 1),
            PasswordError::Failed(_) => Self::internal(error),
        }
    }
}

impl From<TokensError> for ApiError {
    /// Of issuing; what is wrong with a token that was shown is said where it is verified.
    fn from(error: TokensError) -> Self {
        match error {
            TokensError::Store(error) => error.into(),
            TokensError::Token(error) => Self::internal(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let (status, kind) = (self.status(), self.kind());
        let retry_after = match &self {
            Self::Unavailable { retry_after, .. } | Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::TooMany(_) => Some(RETRY_AFTER_QUOTA),
            Self::OverBudget { retry_after, .. } => *retry_after,
            Self::Conflict(problem) if problem.code == IN_FLIGHT => Some(RETRY_AFTER_IN_FLIGHT),
            _ => None,
        };
        let standing = match &self {
            Self::OverBudget { standing, .. } => Some(standing.clone()),
            _ => None,
        };
        let problem = self.into_problem();
        let challenge = (status == StatusCode::UNAUTHORIZED).then(|| challenge(&problem));
        let body = ErrorBody::new(problem, kind);
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        let hopeless = standing.is_some() && retry_after.is_none();
        if let Some(standing) = standing {
            refusal::write_tokens(headers, &standing);
        }
        // Repeating these requests unchanged cannot help, or may do the work twice.
        if hopeless || matches!(status, StatusCode::CONFLICT | StatusCode::GATEWAY_TIMEOUT) {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

/// RFC 6750: `error` appears only when a token was shown and is bad.
fn challenge(problem: &Problem) -> HeaderValue {
    if problem.code == "invalid_client" {
        // RFC 6749, section 5.2.
        HeaderValue::from_static("Basic realm=\"claimcheck\"")
    } else if problem.code == "invalid_token" {
        HeaderValue::from_static("Bearer realm=\"claimcheck\", error=\"invalid_token\"")
    } else {
        HeaderValue::from_static("Bearer realm=\"claimcheck\"")
    }
}

/// An error with everything that caused it, on one line.
struct Chain<'a>(&'a (dyn StdError + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut line = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let cause_line = cause.to_string();
            // Many errors repeat their cause in their own words.
            if !line.contains(&cause_line) {
                line = format!("{line}: {cause_line}");
            }
            source = cause.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(error: ApiError) -> (StatusCode, axum::http::HeaderMap, serde_json::Value) {
        let (parts, body) = error.into_response().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_bad_field_is_named_in_the_envelope() {
        let (status, _, body) = answer(ApiError::invalid("max_tokens", "too much")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(
            body,
            serde_json::json!({"error": {"message": "too much", "type": "invalid_request_error",
                "param": "max_tokens", "code": "invalid_value"}})
        );
    }

    #[tokio::test]
    async fn an_internal_cause_never_reaches_the_caller() {
        let (status, _, body) = answer(ApiError::internal("password=hunter2 at 10.0.0.1")).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!body.to_string().contains("hunter2"));
        assert!(!body.to_string().contains("10.0.0.1"));
    }

    #[tokio::test]
    async fn an_outage_says_when_to_come_back() {
        let (status, headers, _) = answer(ApiError::outage("connection refused")).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers[header::RETRY_AFTER], "2");
    }

    #[tokio::test]
    async fn conflicts_and_timeouts_stop_the_retry_loops_of_client_libraries() {
        for error in [ApiError::Conflict(Problem::new("x", "x")), ApiError::TimedOut] {
            assert_eq!(answer(error).await.1["x-should-retry"], "false");
        }
        assert!(!answer(ApiError::TooLarge(1)).await.1.contains_key("x-should-retry"));
    }

    #[tokio::test]
    async fn a_missing_token_is_challenged_without_blaming_it() {
        let missing = answer(ApiError::Unauthenticated(Problem::new("missing_token", "x"))).await;
        assert_eq!(missing.1[header::WWW_AUTHENTICATE], "Bearer realm=\"claimcheck\"");
        let bad = answer(ApiError::Unauthenticated(Problem::new("invalid_token", "x"))).await;
        assert!(
            bad.1[header::WWW_AUTHENTICATE]
                .to_str()
                .unwrap()
                .contains("error=\"invalid_token\"")
        );
    }
}
