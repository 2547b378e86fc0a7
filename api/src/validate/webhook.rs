//! What may be said of a webhook. URLs are checked by `common/src/webhook/target.rs`, which knows the networks that are open.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use claimcheck_common::domain::PayloadKind;
use claimcheck_common::validate::webhook::Events;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use utoipa::ToSchema;

use super::number::Whole;
use super::text::{Text, check};

const HEADERS_MAX: usize = 10;
const HEADER_VALUE_MAX: usize = 1024;
/// What the connection and the signature are made of is not for callers to set.
const OURS: [&str; 14] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept-encoding",
    "user-agent",
    "cookie",
];

/// An endpoint to be made. Fields that are null count as absent; unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"url": "https://example.org/hook", "events": ["job.completed", "job.failed"]}))]
pub struct NewEndpoint {
    /// Where deliveries go: https, on port 443 or 8443.
    #[schema(value_type = String, max_length = 2048)]
    pub url: Text<1, 2048>,
    /// Your own words.
    #[schema(value_type = Option<String>, max_length = 500)]
    pub description: Option<Text<0, 500>>,
    /// Which events; all but `job.started` unless given.
    #[schema(value_type = Option<Vec<String>>)]
    pub events: Option<Events>,
    /// `thin`: ids, state and links. `full`: the job as well, while the body stays below 20 kB.
    #[schema(value_type = Option<String>, default = "thin")]
    pub payload: Option<PayloadKind>,
    /// Up to 10 headers that are sent with every delivery. Their values are never shown again.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub headers: Option<Headers>,
    /// Most deliveries a second; no such limit unless given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub rate_limit: Option<Whole<1, 1000>>,
    /// Most deliveries at the same time.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100, default = 16)]
    pub concurrency: Option<Whole<1, 100>>,
}

/// A change. What is absent stays; null takes a description or a rate limit away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct ChangeEndpoint {
    /// Where deliveries go.
    #[schema(value_type = Option<String>, max_length = 2048)]
    pub url: Option<Text<1, 2048>>,
    /// Your own words.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 500)]
    pub description: Option<Option<Text<0, 500>>>,
    /// Which events; an empty list is all but `job.started`.
    #[schema(value_type = Option<Vec<String>>)]
    pub events: Option<Events>,
    /// `thin` or `full`.
    #[schema(value_type = Option<String>)]
    pub payload: Option<PayloadKind>,
    /// In place of all headers so far.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub headers: Option<Headers>,
    /// Most deliveries a second.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub rate_limit: Option<Option<Whole<1, 1000>>>,
    /// Most deliveries at the same time.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    pub concurrency: Option<Whole<1, 100>>,
    /// Whether it gets deliveries. `true` also forgets past failures.
    pub enabled: Option<bool>,
}

/// Headers within their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)
            .map_err(|_| D::Error::custom("must be an object of texts"))?;
        if map.len() > HEADERS_MAX {
            return Err(D::Error::custom(format!("must have at most {HEADERS_MAX} headers")));
        }
        let mut headers: Vec<(String, String)> = Vec::with_capacity(map.len());
        for (name, value) in map {
            let name = header_name(&name).map_err(D::Error::custom)?;
            if headers.iter().any(|(known, _)| *known == name) {
                return Err(D::Error::custom("must have each header once"));
            }
            check(&value, 0, HEADER_VALUE_MAX).map_err(|what| D::Error::custom(format!("has a value that {what}")))?;
            HeaderValue::from_str(&value)
                .map_err(|_| D::Error::custom("has a value with a character that headers cannot hold"))?;
            headers.push((name, value));
        }
        Ok(Self(headers))
    }
}

fn header_name(name: &str) -> Result<String, String> {
    let name = HeaderName::try_from(name).map_err(|_| "has a name that no header can have".to_owned())?;
    let name = name.as_str();
    if OURS.contains(&name) || name.starts_with("webhook-") || name.starts_with("proxy-") {
        return Err(format!("must not set `{name}`, which the delivery itself sets"));
    }
    Ok(name.to_owned())
}

/// Tells null from absent.
#[allow(clippy::option_option, reason = "absent, null and given are three things here")]
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_str;

    #[test]
    fn headers_that_the_delivery_sets_itself_are_refused() {
        let good: Headers = from_str(r#"{"Authorization": "Bearer x", "X-Tenant": "7"}"#).unwrap();
        assert_eq!(good.0[0], ("authorization".to_owned(), "Bearer x".to_owned()));
        for bad in [
            r#"{"Host": "x"}"#,
            r#"{"webhook-signature": "x"}"#,
            r#"{"Content-Length": "1"}"#,
            r#"{"a b": "x"}"#,
            r#"{"x": "a\r\nb: c"}"#,
            r#"{"x": 5}"#,
            r#"{"X-A": "1", "x-a": "2"}"#,
            "[]",
        ] {
            assert!(from_str::<Headers>(bad).is_err(), "{bad}");
        }
        let many: BTreeMap<String, String> = (0..11).map(|number| (format!("x-{number}"), String::new())).collect();
        assert!(from_str::<Headers>(&serde_json::to_string(&many).unwrap()).is_err());
    }

    #[test]
    fn a_change_tells_null_from_absent() {
        let change: ChangeEndpoint = from_str(r#"{"rate_limit": null}"#).unwrap();
        assert!(change.rate_limit == Some(None) && change.description.is_none());
    }
}
