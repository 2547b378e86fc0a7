//! A rendered job with its strong `ETag`, and what a caller says it has already.

use axum::http::{HeaderMap, HeaderValue, header};
use claimcheck_common::store::jobs::JobView;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::JobBody;

/// A body with its validator.
#[derive(Debug)]
pub struct Rendered {
    /// JSON.
    pub body: Vec<u8>,
    /// Quoted digest of the body.
    pub etag: String,
}

impl Rendered {
    /// The job as a body.
    pub fn new(job: &JobView) -> Result<Self, serde_json::Error> {
        Self::of(&JobBody::from(job))
    }

    fn of(body: &impl Serialize) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(body)?;
        let etag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..16]));
        Ok(Self { body, etag })
    }

    /// The `ETag` header.
    pub fn etag_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.etag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
    }
}

/// What a caller has already: the `If-None-Match` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfNoneMatch(Option<String>);

impl IfNoneMatch {
    /// Reads the header; several lines count as one list.
    pub fn read(headers: &HeaderMap) -> Self {
        let lines: Vec<&str> = headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        Self((!lines.is_empty()).then(|| lines.join(",")))
    }

    /// Whether the caller sent any validator.
    pub const fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the caller has this version (weak comparison, as RFC 9110 asks for this header).
    pub fn has(&self, etag: &str) -> bool {
        self.0.as_deref().is_some_and(|list| {
            list.split(',')
                .map(str::trim)
                .any(|known| known == "*" || known.trim_start_matches("W/") == etag)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validator_changes_with_the_body_and_only_then() {
        let tag = |attempt: u32| Rendered::of(&serde_json::json!({"attempt": attempt})).unwrap().etag;
        assert_eq!(tag(0), tag(0));
        assert_ne!(tag(0), tag(1));
        assert!(tag(0).starts_with('"') && tag(0).ends_with('"'));
    }

    #[test]
    fn if_none_match_reads_lists_weak_tags_and_the_star() {
        let has = |value: &str| {
            IfNoneMatch::read(&HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())])).has("\"a\"")
        };
        assert!(has("\"a\"") && has("W/\"a\"") && has("\"b\", \"a\"") && has("*"));
        assert!(!has("\"b\"") && !has("a"));
        assert!(!IfNoneMatch::read(&HeaderMap::new()).is_present());
    }
}
