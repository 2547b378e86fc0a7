//! A job as OpenAI's `response` object.

use std::collections::BTreeMap;

use claimcheck_common::domain::{Choice, FinishReason, JobId, JobStatus};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::view::decimal;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// A response. What this service has no use for is as OpenAI has it when it is absent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Response)]
pub struct ResponseBody {
    /// `resp_…`; the job's id has the same end.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// When it was accepted.
    pub created_at: i64,
    /// `queued`, `in_progress`, `completed`, `incomplete`, `failed` or `cancelled`.
    pub status: &'static str,
    /// Whether it goes on without its caller.
    pub background: bool,
    /// Why it failed: `{code, message}`.
    #[schema(required)]
    pub error: Option<Value>,
    /// `{reason}` where the text could have gone on: `max_output_tokens`.
    #[schema(required)]
    pub incomplete_details: Option<Value>,
    /// Always null: instructions become part of the input.
    #[schema(required)]
    pub instructions: Option<String>,
    /// Most tokens to generate.
    #[schema(required)]
    pub max_output_tokens: Option<u32>,
    /// The caller's own notes.
    pub metadata: BTreeMap<String, String>,
    /// The model's name.
    pub model: String,
    /// Messages: one, once there is text.
    pub output: Vec<Value>,
    /// Always true.
    pub parallel_tool_calls: bool,
    /// Always null.
    #[schema(required)]
    pub previous_response_id: Option<String>,
    /// Always `{effort: null, summary: null}`.
    pub reasoning: Value,
    /// Always `default`.
    pub service_tier: &'static str,
    /// Whether the texts are kept.
    pub store: bool,
    /// Sampling temperature.
    #[schema(required)]
    pub temperature: Option<f64>,
    /// Always `{format: {type: "text"}}`.
    pub text: Value,
    /// Always `auto`.
    pub tool_choice: &'static str,
    /// Always empty.
    pub tools: Vec<Value>,
    /// Nucleus.
    #[schema(required)]
    pub top_p: Option<f64>,
    /// Always `disabled`.
    pub truncation: &'static str,
    /// What it cost, once it has ended with an output.
    #[schema(required)]
    pub usage: Option<Value>,
    /// Always null.
    #[schema(required)]
    pub user: Option<String>,
}

/// The id that OpenAI's libraries know the job by.
pub fn response_id(id: JobId) -> String {
    id.to_string().replacen("job_", "resp_", 1)
}

/// The job that such an id leads to.
pub fn job_of_response(text: &str) -> Option<JobId> {
    format!("job_{}", text.strip_prefix("resp_")?).parse().ok()
}

/// The id of the one message of a response.
pub fn message_id(id: JobId) -> String {
    id.to_string().replacen("job_", "msg_", 1)
}

/// A message with its text as far as it came.
pub fn message(id: JobId, status: &str, content: &[Value]) -> Value {
    json!({"id": message_id(id), "type": "message", "status": status, "role": "assistant", "content": content})
}

/// A message's text.
pub fn output_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// How a response stands, in OpenAI's words.
fn response_status(job: &JobView) -> &'static str {
    match job.status {
        JobStatus::Scheduled | JobStatus::Queued => "queued",
        JobStatus::InProgress | JobStatus::Cancelling => "in_progress",
        JobStatus::Completed if cut_by(job).is_some() => "incomplete",
        JobStatus::Completed => "completed",
        JobStatus::Failed | JobStatus::Expired => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

/// Why its text is not all that there could be.
fn cut_by(job: &JobView) -> Option<&'static str> {
    let reasons = job.choices.iter().flatten().map(|choice| choice.finish_reason);
    reasons.into_iter().find_map(|reason| match reason? {
        FinishReason::Stop => None,
        FinishReason::Length => Some("max_output_tokens"),
        FinishReason::ContentFilter => Some("content_filter"),
    })
}

impl ResponseBody {
    /// `background` is what its request said; a response that is fetched was made so.
    pub fn new(job: &JobView, background: bool) -> Self {
        let params = job.input.as_ref().map(|input| &input.params);
        let status = response_status(job);
        let failed = status == "failed";
        Self {
            id: response_id(job.key.id),
            object: "response",
            created_at: job.created_at.unix_timestamp(),
            status,
            background,
            error: job
                .error
                .as_ref()
                .filter(|_| failed)
                .map(|error| json!({"code": "server_error", "message": error.message})),
            incomplete_details: cut_by(job)
                .filter(|_| status == "incomplete")
                .map(|reason| json!({"reason": reason})),
            instructions: None,
            max_output_tokens: params.map(|params| params.max_tokens),
            metadata: job
                .input
                .as_ref()
                .and_then(|input| input.metadata.clone())
                .unwrap_or_default(),
            model: job.model.name.clone(),
            output: messages(job),
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: json!({"effort": null, "summary": null}),
            service_tier: "default",
            store: job.options.store,
            temperature: params.map(|params| decimal(params.temperature)),
            text: json!({"format": {"type": "text"}}),
            tool_choice: "auto",
            tools: Vec::new(),
            top_p: params.map(|params| decimal(params.top_p)),
            truncation: "disabled",
            usage: job.choices.is_some().then(|| {
                json!({
                    "input_tokens": job.usage.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens": job.usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": job.usage.total_tokens,
                })
            }),
            user: None,
        }
    }
}

fn messages(job: &JobView) -> Vec<Value> {
    let one = |choice: &Choice| {
        let whole = job.status == JobStatus::Completed && choice.finish_reason == Some(FinishReason::Stop);
        let status = if whole { "completed" } else { "incomplete" };
        message(job.key.id, status, &[output_text(&choice.text)])
    };
    job.choices.iter().flatten().take(1).map(one).collect()
}
