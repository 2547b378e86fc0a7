//! The caller's trace (W3C Trace Context), handed on with the job.

use axum::http::HeaderMap;

/// The `traceparent` header, if it is one of version 00.
pub fn parent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    let not_zero = |part: &str| part.bytes().any(|digit| digit != b'0');
    let &[version, trace, span, flags] = parts.as_slice() else {
        return None;
    };
    let holds =
        version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2) && not_zero(trace) && not_zero(span);
    holds.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_parent_is_handed_on() {
        let read = |value: &str| {
            parent(&HeaderMap::from_iter([(
                "traceparent".parse().unwrap(),
                value.parse().unwrap(),
            )]))
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(read(good).as_deref(), Some(good));
        for bad in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
