//! A line of a batch's output or error file, and of its results: `{id, custom_id, response, error}`.
//!
//! As with OpenAI, a line that was answered has a `response` with a status, also if that is an error's; one that never
//! was has an `error` alone.

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::{BatchStatus, JobError, JobStatus};
use crate::store::batch_results::{BatchResult, Outcome};
use crate::view::OutputBody;

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    custom_id: Option<&'a str>,
    response: Option<Response>,
    error: Option<LineError>,
}

#[derive(Serialize)]
struct Response {
    status_code: u16,
    request_id: String,
    body: Value,
}

#[derive(Serialize)]
struct LineError {
    code: String,
    message: String,
}

/// Whether the line belongs in the output file; the error file has the others.
pub const fn is_output(result: &BatchResult) -> bool {
    matches!(result.outcome, Outcome::Completed(_))
}

/// The line, with its line feed. `ending` is how the batch ends, where that is not `completed`.
pub fn render(result: &BatchResult, ending: Option<BatchStatus>) -> serde_json::Result<Vec<u8>> {
    let id = result.id.to_string();
    let request_id = id.replacen("batch_req_", "job_", 1);
    let answered = |status_code, body| {
        (
            Some(Response {
                status_code,
                request_id,
                body,
            }),
            None,
        )
    };
    let never = |error: LineError| (None, Some(error));
    let (response, error) = match &result.outcome {
        Outcome::Completed(output) => {
            let body = OutputBody::new(
                output.job,
                output.created_at,
                &output.model,
                &output.choices,
                output.usage,
            );
            answered(200, serde_json::to_value(body)?)
        }
        Outcome::Refused(error) if error.kind == JobError::INVALID_REQUEST => answered(400, refusal(error)),
        Outcome::Refused(error) => never(error.clone().into()),
        Outcome::Ended(JobStatus::Failed, Some(error)) => {
            let status = if error.kind == JobError::INVALID_REQUEST {
                400
            } else {
                500
            };
            answered(status, refusal(error))
        }
        Outcome::Ended(JobStatus::Expired, _) => never(unfinished(BatchStatus::Expired).into()),
        Outcome::Ended(..) => never(ending.map_or_else(job_cancelled, |ending| unfinished(ending).into())),
        Outcome::Gone => never(LineError {
            code: "output_erased".to_owned(),
            message: "The output of this line was erased.".to_owned(),
        }),
    };
    let line = Line {
        id,
        custom_id: result.custom_id.as_deref(),
        response,
        error,
    };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    Ok(text)
}

fn job_cancelled() -> LineError {
    LineError {
        code: "job_cancelled".to_owned(),
        message: "The job of this line was cancelled by itself.".to_owned(),
    }
}

/// What becomes of a line that was not done when its batch ended so.
pub fn unfinished(ending: BatchStatus) -> JobError {
    match ending {
        BatchStatus::Cancelled => {
            JobError::server("batch_cancelled", "The batch was cancelled before this line was done.")
        }
        BatchStatus::Expired => JobError::server(
            "batch_expired",
            "The batch's window was over before this line was done.",
        ),
        _ => JobError::server("batch_failed", "The batch failed before this line was done."),
    }
}

fn refusal(error: &JobError) -> Value {
    json!({"error": {"message": error.message, "type": error.kind, "param": null, "code": error.code}})
}

impl From<JobError> for LineError {
    fn from(error: JobError) -> Self {
        Self {
            code: error.code,
            message: error.message,
        }
    }
}
