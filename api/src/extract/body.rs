//! Reads a request body within a size and a time limit, after a look at what it claims to be.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hyper::body::Body as _;

use crate::error::{ApiError, Problem};

/// The largest body that any route reads, unless the route says otherwise.
pub const MAX_BODY: usize = 1 << 20;
/// A body must have come within this.
const READ_TIME: Duration = Duration::from_secs(15);
/// So much of a body that is too large is still read, so that the answer is not lost in a reset connection.
const DRAIN_BYTES: usize = 16 << 20;

/// The body's bytes, if it is of `media` (`application/json`) and has at most `limit` bytes.
pub async fn read(request: Request, media: &str, limit: usize) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    if !parts.headers.contains_key(header::CONTENT_TYPE) && body.size_hint().exact() == Some(0) {
        let message = format!("The request has no body; send one, as {media}.");
        return Err(ApiError::Invalid(Problem::new("missing_body", message)));
    }
    check_media(&parts.headers, media)?;
    collect_within(READ_TIME, body, limit).await
}

async fn collect_within(time: Duration, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    tokio::time::timeout(time, collect(body, limit))
        .await
        .map_err(|_| ApiError::SlowRequest)?
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            ApiError::Invalid(Problem::new(
                "invalid_body",
                "The request body ended early or is wrongly framed.",
            ))
        })?;
        seen += chunk.len();
        if seen <= limit {
            kept.extend_from_slice(&chunk);
        } else if seen > DRAIN_BYTES {
            break;
        }
    }
    if seen > limit {
        Err(ApiError::TooLarge(limit))
    } else {
        Ok(kept.freeze())
    }
}

fn check_media(headers: &HeaderMap, wanted: &str) -> Result<(), ApiError> {
    let refuse = |param: &str, message: String| {
        Err(ApiError::UnsupportedMedia(
            Problem::new("unsupported_media_type", message).at(param),
        ))
    };
    let encoding = headers.get(header::CONTENT_ENCODING).map(header_text);
    if encoding.is_some_and(|name| !name.trim().eq_ignore_ascii_case("identity")) {
        return refuse(
            "content-encoding",
            "Compressed request bodies are not read; send the body as it is.".into(),
        );
    }
    let Some(given) = headers.get(header::CONTENT_TYPE).map(header_text) else {
        return refuse(
            "content-type",
            format!("The Content-Type header is missing; send {wanted}."),
        );
    };
    let mut parts = given.split(';').map(str::trim);
    let media_fits = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(wanted));
    let charset_fits = parts
        .filter_map(|parameter| parameter.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .all(|(_, charset)| {
            ["utf-8", "utf8"].contains(&charset.trim().trim_matches('"').to_ascii_lowercase().as_str())
        });
    if media_fits && charset_fits {
        Ok(())
    } else {
        refuse(
            "content-type",
            format!("This Content-Type is not read here; send {wanted} in UTF-8."),
        )
    }
}

fn header_text(value: &axum::http::HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn request(headers: &[(&str, &str)], body: impl Into<Body>) -> Request {
        let mut builder = Request::builder();
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(body.into()).unwrap()
    }

    async fn status(headers: &[(&str, &str)], body: impl Into<Body>) -> StatusCode {
        match read(request(headers, body), "application/json", 8).await {
            Ok(_) => StatusCode::OK,
            Err(error) => error.status(),
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_refused_beyond() {
        let json = [("content-type", "application/json; charset=UTF-8")];
        assert_eq!(status(&json, "12345678").await, StatusCode::OK);
        assert_eq!(status(&json, "123456789").await, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn another_or_no_media_type_is_415() {
        for headers in [
            &[] as &[_],
            &[("content-type", "text/plain")],
            &[("content-type", "application/jsonx")],
            &[("content-type", "application/json; charset=latin1")],
            &[("content-type", "application/json"), ("content-encoding", "gzip")],
        ] {
            assert_eq!(
                status(headers, "{}").await,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "{headers:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_request_without_a_body_is_not_blamed_for_its_type() {
        assert_eq!(status(&[], Body::empty()).await, StatusCode::BAD_REQUEST);
        let unknown_length = Body::from_stream(futures::stream::empty::<Result<Bytes, std::io::Error>>());
        assert_eq!(status(&[], unknown_length).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }

    #[tokio::test]
    async fn a_body_that_never_comes_is_given_up() {
        let stuck = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let outcome = collect_within(Duration::from_millis(1), stuck, 8).await;
        assert!(matches!(outcome, Err(ApiError::SlowRequest)));
    }
}
