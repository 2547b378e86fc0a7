//! How a limited answer tells where its caller stands.
//!
//! `RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-10, one item a limit; the
//! `x-ratelimit-*` are those of OpenAI, for the limit that has least left.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::gcra::Standing;
use super::seconds;

/// Writes the headers of a request's limits.
pub fn write(headers: &mut HeaderMap, standings: &[Standing]) {
    let Some(nearest) = standings.iter().min_by_key(|standing| {
        // What refuses comes before all others.
        (standing.retry_after.is_none(), standing.remaining)
    }) else {
        return;
    };
    let (mut limits, mut policies) = (String::new(), String::new());
    for (index, standing) in standings.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let (policy, left, reset) = (standing.policy, standing.remaining, seconds(standing.reset));
        let (limit, window) = (standing.rate.limit(), standing.rate.period().as_secs());
        let _never = write!(limits, "{comma}\"{policy}\";r={left};t={reset}");
        let _never = write!(policies, "{comma}\"{policy}\";q={limit};w={window}");
    }
    for (name, value) in [
        ("ratelimit", limits),
        ("ratelimit-policy", policies),
        ("x-ratelimit-limit-requests", nearest.rate.limit().to_string()),
        ("x-ratelimit-remaining-requests", nearest.remaining.to_string()),
        ("x-ratelimit-reset-requests", format!("{}ms", nearest.reset.as_millis())),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_limit_is_an_item_and_the_nearest_one_is_openais() {
        let standing = |policy, rate: &str, remaining| Standing {
            policy,
            rate: rate.parse().unwrap(),
            remaining,
            reset: Duration::from_millis(6500),
            retry_after: None,
        };
        let mut headers = HeaderMap::new();
        write(
            &mut headers,
            &[standing("user", "10/min", 9), standing("address", "1000/min", 999)],
        );
        assert_eq!(headers["ratelimit"], "\"user\";r=9;t=7, \"address\";r=999;t=7");
        assert_eq!(
            headers["ratelimit-policy"],
            "\"user\";q=10;w=60, \"address\";q=1000;w=60"
        );
        assert_eq!(headers["x-ratelimit-limit-requests"], "10");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "9");
        assert_eq!(headers["x-ratelimit-reset-requests"], "6500ms");
    }

    #[test]
    fn without_limits_there_are_no_headers() {
        let mut headers = HeaderMap::new();
        write(&mut headers, &[]);
        assert!(headers.is_empty());
    }
}
