//! The body of `POST /v1/batches`.

use std::collections::HashMap;
use std::time::Duration;

use claimcheck_common::batch::{ENDPOINT, input};
use claimcheck_common::domain::{CompletionWindow, FileId};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::job::{Metadata, SubmitJob};
use super::number::Whole;
use super::text::Text;
use crate::error::{ApiError, Problem};
use crate::extract::json::parse;

const WINDOW: &str = "24h";

/// A batch to be done. Its lines come from an uploaded file, or stand here. Null counts as absent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"input_file_id": "file-01kb3h7zj5e6t8m9n0p1q2r3s4", "endpoint": "/v1/completions", "completion_window": "24h"}))]
pub struct CreateBatch {
    /// An uploaded file of purpose `batch`: one `{custom_id, method, url, body}` a line, at most 50,000 lines.
    #[schema(value_type = Option<String>)]
    pub input_file_id: Option<Text<1, 64>>,
    /// Instead of a file: the lines themselves.
    pub requests: Option<Vec<InlineLine>>,
    /// What every line is for: `/v1/completions`.
    #[schema(value_type = Option<String>, default = "/v1/completions")]
    pub endpoint: Option<Text<1, 256>>,
    /// From one hour (`1h`, `60m`) to seven days (`7d`). What is not done by then expires.
    #[schema(value_type = Option<String>, default = "24h")]
    pub completion_window: Option<Text<1, 16>>,
    /// Up to 16 texts of at most 512 characters under keys of at most 64, handed back with the batch.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Metadata>,
    /// When the output files go by themselves; never unless set.
    pub output_expires_after: Option<ExpiresAfter>,
    /// Only says what would come of it; nothing is stored.
    pub dry_run: Option<bool>,
}

/// A line that stands in the request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct InlineLine {
    /// Your name for it, unique in the batch.
    #[schema(value_type = String, min_length = 1, max_length = 512)]
    pub custom_id: Text<1, 512>,
    /// `POST`, if it is given.
    #[schema(value_type = Option<String>)]
    pub method: Option<Text<1, 16>>,
    /// The batch's endpoint, if it is given.
    #[schema(value_type = Option<String>)]
    pub url: Option<Text<1, 256>>,
    /// What is to be done, as a submit.
    pub body: SubmitJob,
}

/// When a file goes by itself.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
pub struct ExpiresAfter {
    /// Counted from: `created_at`.
    pub anchor: Anchor,
    /// One hour to 30 days.
    #[schema(value_type = u32, minimum = 3600, maximum = 2_592_000)]
    pub seconds: Whole<3600, 2_592_000>,
}

/// What a file's time is counted from.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Its creation.
    CreatedAt,
}

impl ExpiresAfter {
    /// From the file's creation to its end.
    pub const fn ttl(self) -> Duration {
        Duration::from_secs(self.seconds.get().cast_unsigned())
    }
}

/// A batch that is in order, apart from what stands in its file.
#[derive(Debug)]
pub struct ValidBatch {
    /// Where its lines stand.
    pub lines: ValidLines,
    /// How long it may take.
    pub window: CompletionWindow,
    /// The caller's own notes.
    pub metadata: Option<Metadata>,
    /// When its output files go.
    pub output_ttl: Option<Duration>,
    /// It is only asked about.
    pub dry_run: bool,
}

/// Where the lines of a batch stand.
#[derive(Debug)]
pub enum ValidLines {
    /// In an uploaded file.
    File(FileId),
    /// Here: so many lines of JSON.
    Inline(Vec<u8>, u64),
}

/// Reads the body and checks what can be checked without the file.
pub fn read(raw: &[u8]) -> Result<ValidBatch, ApiError> {
    let request: CreateBatch = parse(raw)?;
    if request
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.as_str() != ENDPOINT)
    {
        return Err(ApiError::invalid("endpoint", format!("`endpoint` must be {ENDPOINT}.")));
    }
    let window = request.completion_window.as_ref().map_or(WINDOW, Text::as_str);
    let window = CompletionWindow::parse(window).ok_or_else(|| {
        let message = "`completion_window` must be one hour to seven days, as `24h`, `90m` or `7d`.";
        ApiError::invalid("completion_window", message)
    })?;
    let lines = match (&request.input_file_id, &request.requests) {
        (Some(id), None) => ValidLines::File(id.as_str().parse().map_err(|_| unknown_file())?),
        (None, Some(requests)) => {
            check_inline(requests)?;
            inline(raw)?
        }
        _ => {
            let message =
                "Give either `input_file_id`, for the lines of an uploaded file, or `requests`, for a few lines.";
            return Err(ApiError::Invalid(
                Problem::new("missing_field", message).at("input_file_id"),
            ));
        }
    };
    Ok(ValidBatch {
        lines,
        window,
        metadata: request.metadata,
        output_ttl: request.output_expires_after.map(ExpiresAfter::ttl),
        dry_run: request.dry_run == Some(true),
    })
}

/// The answer to a file that is not there, or somebody else's.
pub fn unknown_file() -> ApiError {
    let message = "There is no such file; upload one with purpose `batch` at POST /v1/files.";
    ApiError::Invalid(Problem::new("file_not_found", message).at("input_file_id"))
}

fn check_inline(requests: &[InlineLine]) -> Result<(), ApiError> {
    if requests.is_empty() {
        return Err(ApiError::invalid("requests", "`requests` must have at least one line."));
    }
    let mut seen = HashMap::new();
    for (place, line) in requests.iter().enumerate() {
        let at = |problem: Problem| {
            let param = problem.param.clone().unwrap_or_default();
            ApiError::Invalid(problem.at(format!("requests[{place}].{param}")))
        };
        if line.method.as_ref().is_some_and(|method| method.as_str() != "POST") {
            return Err(at(Problem::new("invalid_method", "`method` must be POST.").at("method")));
        }
        if line.url.as_ref().is_some_and(|url| url.as_str() != ENDPOINT) {
            return Err(at(
                Problem::new("invalid_url", format!("`url` must be {ENDPOINT}.")).at("url")
            ));
        }
        input::check_body(&line.body).map_err(at)?;
        if let Some(earlier) = seen.insert(line.custom_id.as_str(), place) {
            let message = format!("`custom_id` was used by `requests[{earlier}]` already; each line needs its own.");
            return Err(at(Problem::new("duplicate_custom_id", message).at("custom_id")));
        }
    }
    Ok(())
}

/// The same lines, as they would stand in a file.
fn inline(raw: &[u8]) -> Result<ValidLines, ApiError> {
    #[derive(Deserialize)]
    struct Request {
        requests: Vec<Line>,
    }
    #[derive(Deserialize)]
    struct Line {
        custom_id: String,
        body: Value,
    }
    let request: Request = serde_json::from_slice(raw).map_err(ApiError::internal)?;
    let mut text = Vec::with_capacity(raw.len());
    for Line { custom_id, body } in &request.requests {
        let line = json!({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body});
        serde_json::to_writer(&mut text, &line).map_err(ApiError::internal)?;
        text.push(b'\n');
    }
    Ok(ValidLines::Inline(text, request.requests.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &Value) -> Problem {
        match read(body.to_string().as_bytes()) {
            Err(ApiError::Invalid(problem)) => problem,
            other => panic!("{body} was not refused: {other:?}"),
        }
    }

    #[test]
    fn lines_of_the_request_become_lines_of_a_file() {
        let body = json!({"requests": [
            {"custom_id": "a", "body": {"prompt": "hi", "seed": -7, "temperature": 0.1}},
            {"custom_id": "b", "method": "POST", "url": ENDPOINT, "body": {"prompt": [1, 2]}},
        ]});
        let batch = read(body.to_string().as_bytes()).unwrap();
        assert_eq!(batch.window.as_str(), "24h");
        let ValidLines::Inline(text, 2) = batch.lines else {
            panic!("{:?}", batch.lines)
        };
        let lines: Vec<_> = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(lines.len(), 2);
        for (line, name) in lines.into_iter().zip(["a", "b"]) {
            assert_eq!(input::read(line).unwrap().custom_id, name);
        }
        assert!(String::from_utf8_lossy(&text).contains("0.1"));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let line = |body: Value| json!({"custom_id": "a", "body": body});
        let good = line(json!({"prompt": "hi"}));
        for (body, code, param) in [
            (json!({}), "missing_field", "input_file_id"),
            (
                json!({"input_file_id": "file-1", "requests": [good]}),
                "missing_field",
                "input_file_id",
            ),
            (json!({"input_file_id": "file-1"}), "file_not_found", "input_file_id"),
            (json!({"requests": []}), "invalid_value", "requests"),
            (
                json!({"requests": [good, good]}),
                "duplicate_custom_id",
                "requests[1].custom_id",
            ),
            (
                json!({"requests": [good, line(json!({"prompt": ""}))]}),
                "invalid_value",
                "requests[1].body.prompt",
            ),
            (
                json!({"requests": [line(json!({"prompt": "x", "class": "batch"}))]}),
                "not_in_a_batch",
                "requests[0].body.class",
            ),
            (
                json!({"requests": [good], "endpoint": "/v1/chat/completions"}),
                "invalid_value",
                "endpoint",
            ),
            (
                json!({"requests": [good], "completion_window": "30m"}),
                "invalid_value",
                "completion_window",
            ),
            (
                json!({"requests": [good], "output_expires_after": {"anchor": "created_at", "seconds": 5}}),
                "invalid_value",
                "output_expires_after.seconds",
            ),
        ] {
            let problem = refused(&body);
            assert_eq!(
                (problem.code, problem.param.as_deref()),
                (code, Some(param)),
                "{body}: {problem:?}"
            );
        }
    }
}
