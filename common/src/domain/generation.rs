//! What to generate and what came of it. Every value here was checked at the edge (`api/src/validate.rs`).

use std::collections::BTreeMap;

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

/// How to continue the prompt. Fields that came later have defaults, so that rows from before still read.
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
    /// Sample among the tokens that are at least so likely, measured by the likeliest one (0 keeps all).
    #[serde(default)]
    pub min_p: f32,
    /// Above 1 makes every token of prompt and text less likely (Keskar et al., 2019); 1 changes nothing.
    #[serde(default = "one")]
    pub repetition_penalty: f32,
    /// Taken off the logit of each token that was generated.
    #[serde(default)]
    pub presence_penalty: f32,
    /// Taken off a token's logit for each time that it was generated.
    #[serde(default)]
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    #[serde(default)]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Whether the tokens' log probabilities are wanted, and of how many of the likeliest at each place.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// Number of choices, each with its own generator.
    pub n: u32,
    /// Generation ends before the first of these texts.
    pub stop: Vec<String>,
    /// Generation ends with any of these tokens, which is not part of the text.
    #[serde(default)]
    pub stop_token_ids: Vec<u32>,
    /// Fixes the output: equal prompt, parameters, weights and seed give equal text.
    pub seed: i64,
}

const fn one() -> f32 {
    1.0
}

impl Default for GenerationParams {
    /// What a job that names none of them gets; the seed is 0.
    fn default() -> Self {
        Self {
            max_tokens: 100,
            temperature: 0.7,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            repetition_penalty: one(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            n: 1,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            seed: 0,
        }
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended the text, or a stop string or a stop token was met.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The content policy withheld the text, or a part of it.
    ContentFilter,
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
    /// Null unless they were asked for.
    pub logprobs: Option<Logprobs>,
    /// What was generated, also what the text leaves out. Stored beside the choices and not in them; empty when read, and where
    /// the text was withheld.
    #[serde(skip)]
    pub tokens: Vec<u32>,
}

/// How likely the model held what was generated, before penalties, bias, temperature and truncation. One element for each
/// generated token, also of those that the text leaves out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Logprobs {
    /// Each token's text; `bytes:` and hexadecimal bytes where it is no whole text.
    pub tokens: Vec<String>,
    /// Each token's natural log probability.
    pub token_logprobs: Vec<f32>,
    /// The likeliest tokens at that place, and the generated one.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Whole characters of the text before the token.
    pub text_offset: Vec<u32>,
}

impl Logprobs {
    /// Those of the tokens after the first `tokens`.
    #[must_use]
    pub fn after(&self, tokens: usize) -> Self {
        fn rest<T: Clone>(all: &[T], from: usize) -> Vec<T> {
            all.get(from..).unwrap_or_default().to_vec()
        }
        Self {
            tokens: rest(&self.tokens, tokens),
            token_logprobs: rest(&self.token_logprobs, tokens),
            top_logprobs: rest(&self.top_logprobs, tokens),
            text_offset: rest(&self.text_offset, tokens),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_from_before_a_field_came_still_read() {
        let old =
            r#"{"max_tokens": 8, "temperature": 0.5, "top_p": 1, "top_k": null, "n": 2, "stop": ["x"], "seed": -7}"#;
        let read: GenerationParams = serde_json::from_str(old).unwrap();
        let expected = GenerationParams {
            max_tokens: 8,
            temperature: 0.5,
            n: 2,
            stop: vec!["x".to_owned()],
            seed: -7,
            ..GenerationParams::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_stored_reads_back() {
        let params = GenerationParams {
            logit_bias: [(5, -100.0), (50_256, 0.1)].into(),
            stop_token_ids: vec![3],
            logprobs: Some(5),
            min_p: 0.1,
            ..GenerationParams::default()
        };
        let stored = serde_json::to_value(&params).unwrap();
        assert_eq!(stored["logit_bias"]["5"], -100.0);
        assert_eq!(serde_json::from_value::<GenerationParams>(stored).unwrap(), params);
    }
}
