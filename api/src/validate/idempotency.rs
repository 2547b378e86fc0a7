//! The `Idempotency-Key` header: which keys are accepted.

use axum::http::HeaderMap;

use crate::error::ApiError;

/// The header's name.
pub const HEADER: &str = "idempotency-key";
const MAX: usize = 255;

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
}
