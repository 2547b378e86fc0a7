//! The body of `POST /v1/responses`, as far as plain text goes: what else OpenAI has is refused by name, unless it is what OpenAI takes
//! for absent.

use claimcheck_common::domain::Prompt;
use claimcheck_common::validate::job::{Metadata, PROMPT_MAX, PromptIn, SubmitJob};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::completion::unsupported;
use super::number::{UpTo, Whole};
use super::text::{Text, check};
use crate::error::ApiError;

/// OpenAI sets no limit; here a job needs one.
const MAX_TOKENS: i64 = 256;
const TEMPERATURE: i32 = 1;
/// A response to be made. Fields that are null count as absent; unknown fields are refused.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"model": "claimcheck-tiny", "input": "Once upon a time", "background": true}))]
pub struct CreateResponse {
    /// A served model's name or alias; may be absent while exactly one model is served.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256)]
    pub model: Option<Text<1, 256>>,
    /// A text, or messages whose texts are joined by line breaks.
    #[schema(value_type = InputSchema)]
    pub input: Input,
    /// Stands before the input, with an empty line between.
    pub instructions: Option<String>,
    /// Answers at once; collect the response later.
    #[schema(default = false)]
    pub background: Option<bool>,
    /// Sends what happens as server-sent events.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// `false` erases the texts soon after the response was fetched. Not with `background`.
    #[schema(default = true)]
    pub store: Option<bool>,
    /// Most tokens to generate.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4096, default = 256)]
    pub max_output_tokens: Option<Whole<1, 4096>>,
    /// 0 takes the likeliest token every time.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<UpTo<2>>,
    /// Sample among the likeliest tokens that together hold this probability.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<UpTo<1>>,
    /// Up to 16 texts of at most 512 characters under keys of at most 64, handed back with the response.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Metadata>,
    /// Only an empty array.
    #[schema(value_type = Option<Value>)]
    pub include: Option<Value>,
    /// Only an empty array.
    #[schema(value_type = Option<Value>)]
    pub tools: Option<Value>,
    /// Only `auto` or `none`.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    /// Only the format `text`.
    #[schema(value_type = Option<Value>)]
    pub text: Option<Value>,
    /// Only `disabled`.
    #[schema(value_type = Option<Value>)]
    pub truncation: Option<Value>,
    /// Only `auto` or `default`.
    #[schema(value_type = Option<Value>)]
    pub service_tier: Option<Value>,
    /// Only 0.
    #[schema(value_type = Option<Value>)]
    pub top_logprobs: Option<Value>,
    /// Only an empty object.
    #[schema(value_type = Option<Value>)]
    pub reasoning: Option<Value>,
    /// Not served.
    #[schema(value_type = Option<Value>)]
    pub conversation: Option<Value>,
    /// Not served.
    #[schema(value_type = Option<Value>)]
    pub previous_response_id: Option<Value>,
    /// Not served.
    #[schema(value_type = Option<Value>)]
    pub prompt: Option<Value>,
    /// Not served.
    #[schema(value_type = Option<Value>)]
    pub max_tool_calls: Option<Value>,
    /// Not served.
    #[schema(value_type = Option<Value>)]
    pub context_management: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub user: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub safety_identifier: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub prompt_cache_key: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub prompt_cache_retention: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub parallel_tool_calls: Option<Value>,
    /// Taken and not used.
    #[schema(value_type = Option<Value>)]
    pub stream_options: Option<Value>,
}

/// A text, or messages.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes `Input` in the OpenAPI document")]
pub enum InputSchema {
    /// A text.
    Text(String),
    /// Messages: `{role, content}`, with a text or `[{type: "input_text", text}]` as content.
    Messages(Vec<Value>),
}

/// A text, or messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a string or an array of messages {role, content}")]
pub enum Input {
    /// A text.
    Text(String),
    /// Messages in their order.
    Messages(Vec<Message>),
}

/// A message.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    content: Content,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    InputText { text: String },
    OutputText { text: String },
}

/// How a response is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// It goes on without its caller.
    pub background: bool,
    /// As events.
    pub stream: bool,
}

impl CreateResponse {
    /// Checks what spans several fields; answers how to deliver, and the job.
    pub fn into_job(self) -> Result<(Manner, SubmitJob), ApiError> {
        self.check()?;
        let manner = Manner {
            background: self.background == Some(true),
            stream: self.stream == Some(true),
        };
        let mut text = self.input.into_text();
        if let Some(instructions) = self.instructions.filter(|instructions| !instructions.is_empty()) {
            text = format!("{instructions}\n\n{text}");
        }
        check(&text, 1, PROMPT_MAX).map_err(|wrong| ApiError::invalid("input", format!("`input` {wrong}.")))?;
        let job = SubmitJob {
            model: self.model,
            max_tokens: self.max_output_tokens.or(Whole::new(MAX_TOKENS)),
            temperature: self.temperature.or(UpTo::new(TEMPERATURE)),
            top_p: self.top_p,
            metadata: self.metadata,
            store: self.store,
            ..SubmitJob::continuing(PromptIn(Prompt::Text(text)))
        };
        Ok((manner, job))
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.background == Some(true) && self.store == Some(false) {
            return Err(ApiError::invalid(
                "store",
                "`store` must not be false with `background`.",
            ));
        }
        let plain: [(&str, &Option<Value>, &[&str]); 13] = [
            ("include", &self.include, &["[]"]),
            ("tools", &self.tools, &["[]"]),
            ("tool_choice", &self.tool_choice, &["\"auto\"", "\"none\""]),
            ("text", &self.text, &["{}", r#"{"format":{"type":"text"}}"#]),
            ("truncation", &self.truncation, &["\"disabled\""]),
            ("service_tier", &self.service_tier, &["\"auto\"", "\"default\""]),
            ("top_logprobs", &self.top_logprobs, &["0"]),
            ("reasoning", &self.reasoning, &["{}"]),
            ("conversation", &self.conversation, &[]),
            ("previous_response_id", &self.previous_response_id, &[]),
            ("prompt", &self.prompt, &[]),
            ("max_tool_calls", &self.max_tool_calls, &[]),
            ("context_management", &self.context_management, &[]),
        ];
        for (name, value, taken) in plain {
            let said = value.as_ref().map(Value::to_string);
            if said.is_some_and(|said| said != "null" && !taken.contains(&said.as_str())) {
                let message = format!("Responses are plain text here: this value of `{name}` is not served.");
                return Err(unsupported(name, &message));
            }
        }
        Ok(())
    }
}

impl Input {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => {
                let texts = messages.into_iter().map(|message| message.content.into_text());
                texts.collect::<Vec<_>>().join("\n")
            }
        }
    }
}

impl Content {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts
                .into_iter()
                .map(|(Part::InputText { text } | Part::OutputText { text })| text)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::json::parse;
    use serde_json::json;

    fn job(body: &Value) -> Result<(Manner, SubmitJob), ApiError> {
        parse::<CreateResponse>(body.to_string().as_bytes())?.into_job()
    }

    #[test]
    fn texts_and_messages_become_one_prompt() {
        for (body, wanted) in [
            (json!({"input": "a"}), "a"),
            (json!({"input": "a", "instructions": "Be brief."}), "Be brief.\n\na"),
            (
                json!({"input": [{"role": "user", "content": "a"},
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]}]}),
                "a\nb",
            ),
        ] {
            assert_eq!(job(&body).unwrap().1.prompt.0, Prompt::Text(wanted.to_owned()));
        }
    }

    #[test]
    fn what_goes_beyond_plain_text_is_refused_by_name_and_what_changes_nothing_is_taken() {
        let taken = json!({"input": "a", "tools": [], "text": {"format": {"type": "text"}}, "user": "u", "reasoning": null,
            "truncation": "disabled", "parallel_tool_calls": true, "tool_choice": "auto"});
        assert!(job(&taken).is_ok());
        for (field, value) in [
            ("tools", json!([{"type": "web_search"}])),
            ("previous_response_id", json!("resp_1")),
            ("text", json!({"format": {"type": "json_object"}})),
            ("messages", json!([])),
            ("store", json!(false)),
        ] {
            let mut body = json!({"input": "a", "background": true});
            body[field] = value;
            let refused = job(&body).unwrap_err();
            assert!(
                matches!(refused, ApiError::Invalid(problem) if problem.param.as_deref() == Some(field)),
                "{field}"
            );
        }
        assert!(job(&json!({"input": ""})).is_err());
        assert!(job(&json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})).is_err());
    }
}
