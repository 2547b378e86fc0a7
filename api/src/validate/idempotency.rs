//! What tells that a request was sent before: the `Idempotency-Key` header, a client's own id in the path, and the count
//! of retries that official client libraries send along.

use std::time::Duration;

use axum::http::HeaderMap;
use claimcheck_common::domain::JobId;
use claimcheck_common::store::idempotency::ClaimedBy;

use crate::error::ApiError;

/// The header's name.
pub const HEADER: &str = "idempotency-key";
/// The parameter's name.
pub const CLIENT_ID: &str = "client_id";
/// 0 in a first request, one more in each retry.
const RETRY_COUNT: &str = "x-stainless-retry-count";
const MAX: usize = 255;
const CLIENT_ID_MAX: usize = 128;

/// The caller's key, if it sent one: 1 to 255 visible ASCII characters.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(
            HEADER,
            "The Idempotency-Key header is given twice; send one.",
        ));
    }
    let text = value.as_bytes();
    if (1..=MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic) {
        return Ok(Some(String::from_utf8_lossy(text).into_owned()));
    }
    Err(ApiError::invalid(
        HEADER,
        format!("The Idempotency-Key header must have 1 to {MAX} visible ASCII characters without spaces."),
    ))
}

/// The caller's own id of a job: 1 to 128 letters, digits and `.`, `_`, `~`, `:`, `-`, and not one of ours.
pub fn client_id(text: &str) -> Result<String, ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:-".contains(&byte);
    if !(1..=CLIENT_ID_MAX).contains(&text.len()) || !text.bytes().all(good) {
        return Err(ApiError::invalid(
            CLIENT_ID,
            format!(
                "An id of your own must have 1 to {CLIENT_ID_MAX} characters of A-Z, a-z, 0-9, `.`, `_`, `~`, `:`, `-`."
            ),
        ));
    }
    if text.parse::<JobId>().is_ok() {
        return Err(ApiError::invalid(
            CLIENT_ID,
            "This is an id that the service gives; choose one of your own.",
        ));
    }
    Ok(text.to_owned())
}

/// How a `POST` is known when it comes again: by its key, else by the count of a library that sends one.
pub fn claimed_by(headers: &HeaderMap, keep: Duration) -> Result<Option<ClaimedBy>, ApiError> {
    if let Some(key) = key(headers)? {
        return Ok(Some(ClaimedBy::Key(key, keep)));
    }
    let count = headers.get(RETRY_COUNT).and_then(|value| value.to_str().ok());
    Ok(count.and_then(|text| text.parse().ok()).map(ClaimedBy::SdkRetry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(values: &[&[u8]]) -> HeaderMap {
        values
            .iter()
            .map(|value| (HEADER.parse().unwrap(), HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    #[test]
    fn one_short_visible_key_is_taken() {
        assert_eq!(key(&with(&[])).unwrap(), None);
        assert_eq!(key(&with(&[b"order-17"])).unwrap().as_deref(), Some("order-17"));
    }

    #[test]
    fn odd_keys_are_refused() {
        let long = [b'x'; 256];
        let odd: [&[&[u8]]; 5] = [&[b""], &[b"two words"], &[b"\xff"], &[&long], &[b"a", b"b"]];
        for values in odd {
            assert!(key(&with(values)).is_err(), "{values:?}");
        }
    }
    #[test]
    fn ids_of_the_callers_own_are_short_words_and_never_ours() {
        for good in ["order-17", "a", "Batch_3:line.7~", &"x".repeat(128)] {
            assert_eq!(client_id(good).unwrap(), good);
        }
        let ours = JobId::new().to_string();
        for bad in ["", "two words", "a/b", "ä", &"x".repeat(129), &ours] {
            assert!(client_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_count_of_retries_counts_only_without_a_key() {
        let keep = Duration::from_hours(1);
        let mut headers = HeaderMap::new();
        assert!(claimed_by(&headers, keep).unwrap().is_none());
        headers.insert(RETRY_COUNT, HeaderValue::from_static("some"));
        assert!(claimed_by(&headers, keep).unwrap().is_none());
        headers.insert(RETRY_COUNT, HeaderValue::from_static("2"));
        assert!(matches!(claimed_by(&headers, keep), Ok(Some(ClaimedBy::SdkRetry(2)))));
        headers.insert(HEADER, HeaderValue::from_static("k"));
        assert!(matches!(claimed_by(&headers, keep), Ok(Some(ClaimedBy::Key(..)))));
    }
}
