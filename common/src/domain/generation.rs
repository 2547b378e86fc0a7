//! What to generate and what came of it. Every value here was checked at the edge (`api/src/validate.rs`).

use serde::{Deserialize, Serialize};

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, encoded by the model's own tokenizer.
    Text(String),
    /// Token ids of the model's vocabulary.
    Tokens(Vec<u32>),
}

/// How to continue the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationParams {
    /// Most new tokens for each choice, at least 1.
    pub max_tokens: u32,
    /// 0 takes the likeliest token every time; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Sample among the likeliest tokens that together hold this probability. At 0 only the likeliest remains.
    pub top_p: f32,
    /// Sample among this many likeliest tokens.
    pub top_k: Option<u32>,
    /// Number of choices, each with its own generator.
    pub n: u32,
    /// Generation ends before the first of these texts.
    pub stop: Vec<String>,
    /// Fixes the output: equal prompt, parameters, weights and seed give equal text.
    pub seed: i64,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended the text, or a stop string was met.
    Stop,
    /// `max_tokens` were generated.
    Length,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The continuation, without the prompt and without the stop string.
    pub text: String,
    /// Its place among the `n` choices.
    pub index: u32,
    /// Null while a cancelled choice had not ended.
    pub finish_reason: Option<FinishReason>,
    /// Not offered yet, hence null.
    pub logprobs: Option<serde_json::Value>,
}

/// Tokens that were read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, counted once whatever `n` is.
    pub prompt_tokens: u32,
    /// Tokens generated, all choices together, the end-of-text token included.
    pub completion_tokens: u32,
    /// The sum of both.
    pub total_tokens: u32,
}

impl Usage {
    /// Adds up the two counts.
    pub const fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// What the engine hands back for a job: all choices, finished or (after a cancel) as far as they came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// In the order of their index.
    pub choices: Vec<Choice>,
    /// What it cost.
    pub usage: Usage,
}
