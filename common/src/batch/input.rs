//! A line of a batch's input: `{custom_id, method, url, body}`.

use serde::Deserialize;

use super::ENDPOINT;
use crate::validate::job::SubmitJob;
use crate::validate::text::Text;
use crate::validate::{Problem, json};

/// A line, checked as far as it can be without the model.
#[derive(Debug)]
pub struct InputLine {
    /// The caller's name for it.
    pub custom_id: String,
    /// What is to be done.
    pub body: SubmitJob,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
struct Line {
    custom_id: Text<1, 512>,
    method: Text<1, 16>,
    url: Text<1, 256>,
    body: SubmitJob,
}

/// Reads a line. A problem names its field by its path (`body.max_tokens`).
pub fn read(raw: &[u8]) -> Result<InputLine, Problem> {
    let line: Line = json::parse(raw, "The line")?;
    if line.method.as_str() != "POST" {
        return Err(Problem::new("invalid_method", "`method` must be POST.").at("method"));
    }
    if line.url.as_str() != ENDPOINT {
        let message = format!("`url` must be {ENDPOINT}, as the batch's endpoint.");
        return Err(Problem::new("invalid_url", message).at("url"));
    }
    check_body(&line.body)?;
    Ok(InputLine {
        custom_id: line.custom_id.into_string(),
        body: line.body,
    })
}

/// What the batch decides, its lines cannot.
pub fn check_body(body: &SubmitJob) -> Result<(), Problem> {
    let set = [
        ("class", body.class.is_some()),
        ("scheduled_at", body.scheduled_at.is_some()),
        ("deadline_at", body.deadline_at.is_some()),
        ("start_by", body.start_by.is_some()),
        ("store", body.store.is_some()),
        ("ttl", body.ttl.is_some()),
        ("webhook", body.webhook.is_some()),
        ("dry_run", body.dry_run.is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((name, _)) => {
            let message =
                format!("`body.{name}` cannot be set in a batch, which decides it for all lines; leave it out.");
            Err(Problem::new("not_in_a_batch", message).at(format!("body.{name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_order_is_read() {
        let line = read(br#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 5}}"#);
        assert_eq!(line.unwrap().custom_id, "a");
    }

    #[test]
    fn what_is_wrong_with_a_line_is_named_by_its_path() {
        let body = r#""body": {"prompt": "hi"}"#;
        let post = r#""method": "POST", "url": "/v1/completions""#;
        for (line, code, param) in [
            ("{".to_owned(), "invalid_json", None),
            (String::new(), "invalid_json", None),
            ("17".to_owned(), "invalid_value", None),
            (format!(r"{{{post}, {body}}}"), "missing_field", Some("custom_id")),
            (
                format!(r#"{{"custom_id": "", {post}, {body}}}"#),
                "invalid_value",
                Some("custom_id"),
            ),
            (
                format!(r#"{{"custom_id": "a", "method": "GET", "url": "/v1/completions", {body}}}"#),
                "invalid_method",
                Some("method"),
            ),
            (
                format!(r#"{{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", {body}}}"#),
                "invalid_url",
                Some("url"),
            ),
            (
                format!(r#"{{"custom_id": "a", {post}}}"#),
                "missing_field",
                Some("body"),
            ),
            (
                format!(r#"{{"custom_id": "a", {post}, "body": {{}}}}"#),
                "missing_field",
                Some("body.prompt"),
            ),
            (
                format!(r#"{{"custom_id": "a", {post}, "body": {{"prompt": "hi", "max_tokens": 0}}}}"#),
                "invalid_value",
                Some("body.max_tokens"),
            ),
            (
                format!(r#"{{"custom_id": "a", {post}, "body": {{"prompt": "hi", "ttl": 90}}}}"#),
                "not_in_a_batch",
                Some("body.ttl"),
            ),
            (
                format!(r#"{{"custom_id": "a", {post}, {body}, "more": 1}}"#),
                "unknown_field",
                Some("more"),
            ),
        ] {
            let problem = read(line.as_bytes()).unwrap_err();
            assert_eq!(
                (problem.code, problem.param.as_deref()),
                (code, param),
                "{line}: {problem:?}"
            );
        }
        assert_eq!(read(b"{\"custom_id\": \"\xff\"}").unwrap_err().code, "invalid_utf8");
    }
}
