//! How a job looks to its owner, over HTTP and in webhooks.
//!
//! The body depends on the stored job alone, so that equal bodies mean an unchanged job. Times are Unix seconds; what is
//! absent is null. `output` has the shape that OpenAI's `/v1/completions` answers.

use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::domain::{Choice, GenerationParams, JobError, JobId, JobStatus, Logprobs, ModelRef, Usage};
use crate::store::jobs::{JobView, WaitingReason};

/// A job.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobBody {
    /// `job_…`; ids sort by creation.
    #[schema(example = "job_01kb3h7zj5e6t8m9n0p1q2r3s4")]
    pub id: String,
    /// Always `job`.
    pub object: &'static str,
    /// Where it stands.
    #[schema(value_type = StatusSchema)]
    pub status: JobStatus,
    /// The model's own name.
    pub model: String,
    /// The alias that the request named, if it named one.
    #[schema(required)]
    pub requested_model: Option<String>,
    /// When it was accepted.
    pub created_at: i64,
    /// It does not run before this time.
    pub available_at: i64,
    /// When its first prefill began.
    #[schema(required)]
    pub started_at: Option<i64>,
    /// When a caller asked to stop it.
    #[schema(required)]
    pub cancel_requested_at: Option<i64>,
    /// When it ended.
    #[schema(required)]
    pub finished_at: Option<i64>,
    /// How often a worker took it up.
    pub attempt: u32,
    /// How often one may.
    pub max_attempts: u32,
    /// `interactive` or `batch`.
    pub class: &'static str,
    /// Greater goes first among the jobs of a class.
    pub priority: i16,
    /// It expires unless it is finished by then.
    #[schema(required)]
    pub deadline_at: Option<i64>,
    /// It expires unless an attempt has begun by then.
    #[schema(required)]
    pub start_by: Option<i64>,
    /// Why it does not run yet: `scheduled`, `backoff`, `paused`, `worker_unhealthy`, `rate_limit` or `capacity`; null
    /// when it does not wait.
    #[schema(required)]
    pub waiting_reason: Option<&'static str>,
    /// The ended job that it does again.
    #[schema(required)]
    pub retry_of: Option<String>,
    /// The ended job whose tokens it is held against.
    #[schema(required)]
    pub replay_of: Option<String>,
    /// Tokens that a cancelled job had generated when it stopped.
    #[schema(required)]
    pub stopped_after_tokens: Option<u32>,
    /// When its prompt and output were erased.
    #[schema(required)]
    pub erased_at: Option<i64>,
    /// How it is generated, the drawn seed included; null once its input is erased.
    #[schema(required)]
    pub parameters: Option<ParametersBody>,
    /// What came of it; a cancelled job keeps what it had.
    #[schema(required)]
    pub output: Option<OutputBody>,
    /// Why it failed or expired.
    #[schema(required)]
    pub error: Option<ErrorInfo>,
    /// Why the attempt before this one failed.
    #[schema(required)]
    pub last_error: Option<ErrorInfo>,
    /// What it cost, once it ended with an output.
    #[schema(required)]
    pub usage: Option<UsageBody>,
    /// The caller's own notes.
    pub metadata: BTreeMap<String, String>,
}

/// A job's state.
#[derive(ToSchema)]
#[schema(as = JobStatus, rename_all = "snake_case")]
#[allow(dead_code, reason = "only describes `JobStatus` in the OpenAPI document")]
pub enum StatusSchema {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker.
    Queued,
    /// A worker is at it.
    InProgress,
    /// Is being stopped.
    Cancelling,
    /// Ended with an output.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended because the caller asked.
    Cancelled,
    /// Ended because its time was up.
    Expired,
}

/// How a job is generated, with every default filled in.
#[derive(Debug, Serialize, ToSchema)]
pub struct ParametersBody {
    /// Most new tokens for each choice.
    pub max_tokens: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Likeliest tokens considered.
    #[schema(required)]
    pub top_k: Option<u32>,
    /// Least share of the likeliest token's probability.
    pub min_p: f64,
    /// Penalty on tokens of prompt and text.
    pub repetition_penalty: f64,
    /// Penalty on tokens that were generated.
    pub presence_penalty: f64,
    /// Penalty on tokens for each time that they were generated.
    pub frequency_penalty: f64,
    /// Added to logits, by token.
    #[schema(value_type = BTreeMap<String, f64>)]
    pub logit_bias: BTreeMap<u32, f64>,
    /// Likeliest tokens whose log probabilities are wanted.
    #[schema(required)]
    pub logprobs: Option<u32>,
    /// Number of choices.
    pub n: u32,
    /// Texts before which generation ends.
    pub stop: Vec<String>,
    /// Tokens with which generation ends.
    pub stop_token_ids: Vec<u32>,
    /// Fixes the output.
    pub seed: i64,
}

/// An OpenAI `text_completion`.
#[derive(Debug, Serialize, ToSchema)]
pub struct OutputBody {
    /// `cmpl-…`
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// When the job was accepted.
    pub created: i64,
    /// The model's name.
    pub model: String,
    /// In the order of their index.
    pub choices: Vec<ChoiceBody>,
    /// What it cost.
    pub usage: UsageBody,
    /// The weights' revision.
    pub system_fingerprint: String,
}

/// One continuation.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChoiceBody {
    /// The continuation, without prompt and stop text.
    pub text: String,
    /// Its place among the choices.
    pub index: u32,
    /// `stop` or `length`; null for a choice that was cancelled on its way.
    #[schema(required, value_type = Option<String>)]
    pub finish_reason: Option<crate::domain::FinishReason>,
    /// Null unless they were asked for.
    #[schema(required)]
    pub logprobs: Option<LogprobsBody>,
}

/// How likely the model held each generated token, before penalties, bias, temperature and truncation. Tokens that the
/// text leaves out (of a stop text, the one that ended it) are listed, too.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Logprobs)]
pub struct LogprobsBody {
    /// Each token's text; `bytes:\\xNN` where it is only part of a character.
    pub tokens: Vec<String>,
    /// Natural logarithms.
    pub token_logprobs: Vec<f64>,
    /// The likeliest tokens at that place, and the generated one.
    pub top_logprobs: Vec<BTreeMap<String, f64>>,
    /// Whole characters of `text` before the token.
    pub text_offset: Vec<u32>,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct UsageBody {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, all choices together.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorInfo {
    /// The family.
    #[serde(rename = "type")]
    pub kind: String,
    /// A stable word for programs.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}

impl From<&JobView> for JobBody {
    fn from(job: &JobView) -> Self {
        Self {
            id: job.key.id.to_string(),
            object: "job",
            status: job.status,
            model: job.model.name.clone(),
            requested_model: job.requested_model.clone(),
            created_at: job.created_at.unix_timestamp(),
            available_at: job.available_at.unix_timestamp(),
            started_at: seconds(job.started_at),
            cancel_requested_at: seconds(job.cancel_requested_at),
            finished_at: seconds(job.finished_at),
            attempt: job.attempt,
            max_attempts: job.options.max_attempts,
            class: job.class.as_str(),
            priority: job.options.priority,
            deadline_at: seconds(job.options.deadline_at),
            start_by: seconds(job.options.start_by),
            waiting_reason: job.waiting.map(WaitingReason::as_str),
            retry_of: job.retry_of.map(|id| id.to_string()),
            replay_of: job.replay_of.map(|id| id.to_string()),
            stopped_after_tokens: (job.status == JobStatus::Cancelled).then_some(job.usage.completion_tokens),
            erased_at: seconds(job.erased_at),
            parameters: job.input.as_ref().map(|input| ParametersBody::from(&input.params)),
            output: job
                .choices
                .as_deref()
                .map(|choices| OutputBody::new(job.key.id, job.created_at, &job.model, choices, job.usage)),
            error: job.error.as_ref().map(ErrorInfo::from),
            last_error: job.last_error.as_ref().map(ErrorInfo::from),
            usage: job.choices.is_some().then(|| job.usage.into()),
            metadata: job
                .input
                .as_ref()
                .and_then(|input| input.metadata.clone())
                .unwrap_or_default(),
        }
    }
}

fn seconds(time: Option<OffsetDateTime>) -> Option<i64> {
    time.map(OffsetDateTime::unix_timestamp)
}

/// A completion goes by its job's id, with OpenAI's prefix.
pub fn completion_id(id: JobId) -> String {
    id.to_string().replacen("job_", "cmpl-", 1)
}

impl OutputBody {
    /// What came of a job that was accepted at `created`.
    pub fn new(id: JobId, created: OffsetDateTime, model: &ModelRef, choices: &[Choice], usage: Usage) -> Self {
        Self {
            id: completion_id(id),
            object: "text_completion",
            created: created.unix_timestamp(),
            model: model.name.clone(),
            choices: choices.iter().map(ChoiceBody::from).collect(),
            usage: usage.into(),
            system_fingerprint: model.revision.clone(),
        }
    }
}

impl From<&Choice> for ChoiceBody {
    fn from(choice: &Choice) -> Self {
        Self {
            text: choice.text.clone(),
            index: choice.index,
            finish_reason: choice.finish_reason,
            logprobs: choice.logprobs.as_ref().map(LogprobsBody::from),
        }
    }
}

impl From<&Logprobs> for LogprobsBody {
    fn from(logprobs: &Logprobs) -> Self {
        let decimals = |top: &BTreeMap<String, f32>| {
            top.iter()
                .map(|(name, value)| (name.clone(), decimal(*value)))
                .collect()
        };
        Self {
            tokens: logprobs.tokens.clone(),
            token_logprobs: logprobs.token_logprobs.iter().map(|value| decimal(*value)).collect(),
            top_logprobs: logprobs.top_logprobs.iter().map(decimals).collect(),
            text_offset: logprobs.text_offset.clone(),
        }
    }
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens,
        }
    }
}

impl From<&JobError> for ErrorInfo {
    fn from(error: &JobError) -> Self {
        Self {
            kind: error.kind.clone(),
            code: error.code.clone(),
            message: error.message.clone(),
        }
    }
}

impl From<&GenerationParams> for ParametersBody {
    fn from(params: &GenerationParams) -> Self {
        Self {
            max_tokens: params.max_tokens,
            temperature: decimal(params.temperature),
            top_p: decimal(params.top_p),
            top_k: params.top_k,
            min_p: decimal(params.min_p),
            repetition_penalty: decimal(params.repetition_penalty),
            presence_penalty: decimal(params.presence_penalty),
            frequency_penalty: decimal(params.frequency_penalty),
            logit_bias: params
                .logit_bias
                .iter()
                .map(|(id, bias)| (*id, decimal(*bias)))
                .collect(),
            logprobs: params.logprobs,
            n: params.n,
            stop: params.stop.clone(),
            stop_token_ids: params.stop_token_ids.clone(),
            seed: params.seed,
        }
    }
}

/// 0.7 as it was sent, and not as 0.699999988079071, its nearest single.
pub fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Class, FinishReason, JobKey, ModelRef, Prompt};
    use crate::store::jobs::JobInput;
    use crate::store::submit::JobOptions;

    fn job() -> JobView {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        JobView {
            key: JobKey {
                id: JobId::new(),
                fence: 0,
            },
            status: JobStatus::Queued,
            model: ModelRef {
                name: "tiny".into(),
                revision: "abc".into(),
            },
            requested_model: None,
            class: Class::Interactive,
            attempt: 0,
            last_error: None,
            waiting: Some(WaitingReason::Capacity),
            retry_of: None,
            replay_of: None,
            options: JobOptions::default(),
            erased_at: None,
            input: Some(JobInput {
                prompt: Prompt::Text("a secret prompt".into()),
                params: GenerationParams {
                    max_tokens: 100,
                    temperature: 0.7,
                    top_p: 0.1,
                    top_k: None,
                    n: 1,
                    stop: vec![],
                    seed: 7,
                    ..GenerationParams::default()
                },
                metadata: None,
            }),
            choices: None,
            usage: Usage::new(3, 0),
            error: None,
            created_at: at,
            available_at: at,
            started_at: None,
            cancel_requested_at: None,
            finished_at: None,
        }
    }

    fn json(job: &JobView) -> serde_json::Value {
        serde_json::to_value(JobBody::from(job)).unwrap()
    }

    #[test]
    fn a_waiting_job_shows_what_is_absent_as_null() {
        let body = json(&job());
        assert_eq!(body["object"], "job");
        assert_eq!(body["status"], "queued");
        assert_eq!(body["created_at"], 1_800_000_000);
        assert_eq!(body["parameters"]["temperature"], 0.7);
        for absent in ["started_at", "finished_at", "output", "error", "usage"] {
            assert!(body.get(absent).is_some_and(serde_json::Value::is_null), "{absent}");
        }
    }

    #[test]
    fn a_finished_job_carries_a_text_completion() {
        let mut job = job();
        job.status = JobStatus::Completed;
        job.usage = Usage::new(3, 5);
        job.choices = Some(vec![Choice {
            text: " world".into(),
            index: 0,
            finish_reason: Some(FinishReason::Length),
            logprobs: None,
            tokens: Vec::new(),
        }]);
        let body = json(&job);
        assert_eq!(body["output"]["object"], "text_completion");
        assert!(body["output"]["id"].as_str().unwrap().starts_with("cmpl-"));
        assert_eq!(
            body["output"]["choices"][0],
            serde_json::json!({"text": " world", "index": 0, "finish_reason": "length", "logprobs": null})
        );
        assert_eq!(
            body["usage"],
            serde_json::json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})
        );
        assert_eq!(body["output"]["usage"], body["usage"]);
    }

    #[test]
    fn log_probabilities_are_shown_as_they_were_stored() {
        let mut job = job();
        job.choices = Some(vec![Choice {
            text: "é".into(),
            index: 0,
            finish_reason: Some(FinishReason::Length),
            logprobs: Some(Logprobs {
                tokens: vec![r"bytes:\xc3".into(), r"bytes:\xa9".into()],
                token_logprobs: vec![-0.7, -0.1],
                top_logprobs: vec![
                    [(r"bytes:\xc3".into(), -0.7)].into(),
                    [(r"bytes:\xa9".into(), -0.1)].into(),
                ],
                text_offset: vec![0, 0],
            }),
            tokens: Vec::new(),
        }]);
        assert_eq!(
            json(&job)["output"]["choices"][0]["logprobs"],
            serde_json::json!({
                "tokens": [r"bytes:\xc3", r"bytes:\xa9"],
                "token_logprobs": [-0.7, -0.1],
                "top_logprobs": [{r"bytes:\xc3": -0.7}, {r"bytes:\xa9": -0.1}],
                "text_offset": [0, 0]
            })
        );
    }
}
