//! The body of `POST /v1/completions`: OpenAI's fields, ours beside them, and the jobs that they come to.

use std::fmt;

use claimcheck_common::domain::Prompt;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};
use utoipa::ToSchema;

use super::job::{LogitBias, PromptIn, StopIds, StopSchema, Stops, SubmitJob};
use super::number::{Between, UpTo, Whole};
use super::text::Text;
use crate::error::{ApiError, Problem};

/// Most prompts of one request: each is a job.
const PROMPTS_MAX: usize = 32;
/// OpenAI's defaults, which differ from those of a job.
const MAX_TOKENS: i64 = 16;
const TEMPERATURE: i32 = 1;

/// A completion to be made while the caller waits. Fields that are null count as absent; unknown fields are refused.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"model": "claimcheck-tiny", "prompt": "Once upon a time", "max_tokens": 50}))]
pub struct CreateCompletion {
    /// A served model's name or alias; may be absent while exactly one model is served.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256)]
    pub model: Option<Text<1, 256>>,
    /// A text, an array of token ids, or up to 32 of either; each has `n` choices, in this order.
    #[schema(value_type = PromptsSchema)]
    pub prompt: Prompts,
    /// Makes so many choices and answers the `n` whose tokens are likeliest on average.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 5)]
    pub best_of: Option<Whole<1, 5>>,
    /// Puts the prompt in front of each text.
    #[schema(default = false)]
    pub echo: Option<bool>,
    /// Taken off a token's logit for each time that it was generated.
    #[schema(value_type = Option<f32>, minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<Between<-2, 2>>,
    /// Added to the logits of at most 300 tokens: numbers from -100 to 100 under their ids.
    #[schema(value_type = Option<BTreeMap<String, f32>>)]
    pub logit_bias: Option<LogitBias>,
    /// Asks for the log probability of each generated token, and of so many of the likeliest at its place.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 5)]
    pub logprobs: Option<Whole<0, 5>>,
    /// Most tokens to generate for each choice.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4096, default = 16)]
    pub max_tokens: Option<Whole<1, 4096>>,
    /// How many choices to answer for each prompt.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 5, default = 1)]
    pub n: Option<Whole<1, 5>>,
    /// Taken off the logit of each token that was generated.
    #[schema(value_type = Option<f32>, minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<Between<-2, 2>>,
    /// Fixes the output.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Whole<{ i64::MIN }, { i64::MAX }>>,
    /// One text or up to 4 texts, each of 1 to 256 characters, before which generation ends.
    #[schema(value_type = Option<StopSchema>)]
    pub stop: Option<Stops>,
    /// Sends the text as it is made, as server-sent events that end with `[DONE]`.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Text behind the gap: no model here fills gaps, so anything but null or an empty text is refused.
    pub suffix: Option<String>,
    /// 0 takes the likeliest token every time.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<UpTo<2>>,
    /// Sample among the likeliest tokens that together hold this probability.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<UpTo<1>>,
    /// Taken and not used.
    #[schema(value_type = Option<String>, max_length = 512)]
    pub user: Option<Text<0, 512>>,
    /// Sample among this many likeliest tokens. Not of OpenAI.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub top_k: Option<Whole<1, { i32::MAX as i64 }>>,
    /// Sample among the tokens at least this many times as likely as the likeliest one. Not of OpenAI.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 1, default = 0)]
    pub min_p: Option<UpTo<1>>,
    /// Divides the positive logits of the tokens of prompt and text, and multiplies the negative ones. Not of OpenAI.
    #[schema(value_type = Option<f32>, minimum = 0.01, maximum = 10, default = 1)]
    pub repetition_penalty: Option<UpTo<10>>,
    /// Up to 16 token ids with any of which generation ends. Not of OpenAI.
    #[schema(value_type = Option<Vec<u32>>, max_items = 16)]
    pub stop_token_ids: Option<StopIds>,
    /// `true` checks the request and says what it would come to; nothing is stored. Not of OpenAI.
    #[schema(default = false)]
    pub dry_run: Option<bool>,
}

/// How to stream.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object with `include_usage`")]
pub struct StreamOptions {
    /// Sends the tokens used in a last chunk before `[DONE]`.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
    /// Taken and not used: no chunk is padded here.
    #[schema(default = false)]
    pub include_obfuscation: Option<bool>,
}

/// A prompt, or several.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes `Prompts` in the OpenAPI document")]
pub enum PromptsSchema {
    /// One text.
    Text(String),
    /// Up to 32 texts.
    Texts(Vec<String>),
    /// The token ids of one prompt.
    Tokens(Vec<u32>),
    /// Those of up to 32.
    TokenLists(Vec<Vec<u32>>),
}

/// How the answer is put together from what the jobs generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Choices to answer for each prompt.
    pub n: u32,
    /// Whether log probabilities are to be shown, and not only to choose by.
    pub logprobs: bool,
    /// Whether the prompt stands in front of each text.
    pub echo: bool,
    /// How it is sent.
    pub delivery: Delivery,
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// At the end.
    Whole,
    /// As it is made, perhaps with the usage at the end.
    Streamed {
        /// Whether the usage is told.
        usage: bool,
    },
}

impl CreateCompletion {
    /// Checks what spans several fields; answers how to put the answer together, and a job for each prompt.
    pub fn into_jobs(self) -> Result<(Shape, Vec<SubmitJob>), ApiError> {
        self.check()?;
        let options = self.stream_options.unwrap_or_default();
        let n = self.n.map_or(1, |n| n.get() as u32);
        let shape = Shape {
            n,
            logprobs: self.logprobs.is_some(),
            echo: self.echo.unwrap_or(false),
            delivery: if self.stream == Some(true) {
                let usage = options.include_usage.unwrap_or(false);
                Delivery::Streamed { usage }
            } else {
                Delivery::Whole
            },
        };
        let choosing = self.best_of.is_some_and(|most| most.get() > i64::from(n));
        let template = SubmitJob {
            model: self.model,
            max_tokens: self.max_tokens.or(Whole::new(MAX_TOKENS)),
            temperature: self.temperature.or(UpTo::new(TEMPERATURE)),
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias,
            // The best are chosen by them.
            logprobs: self.logprobs.or(if choosing { Whole::new(0) } else { None }),
            n: self.best_of.or(self.n),
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            seed: self.seed,
            dry_run: self.dry_run,
            ..SubmitJob::continuing(PromptIn(Prompt::Tokens(Vec::new())))
        };
        let job = |prompt| SubmitJob {
            prompt,
            ..template.clone()
        };
        Ok((shape, self.prompt.0.into_iter().map(job).collect()))
    }

    fn check(&self) -> Result<(), ApiError> {
        let streams = self.stream == Some(true);
        let n = self.n.map_or(1, Whole::get);
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(unsupported("suffix", "No model here fills gaps; leave `suffix` out."));
        }
        if self.stream_options.is_some() && !streams {
            let message = "`stream_options` is only allowed with `stream`: true.";
            return Err(ApiError::invalid("stream_options", message));
        }
        if self.best_of.is_some_and(|most| most.get() < n) {
            let message = "`best_of` must be at least `n`, since the best are chosen among so many.";
            return Err(ApiError::invalid("best_of", message));
        }
        if streams && self.best_of.is_some_and(|most| most.get() > n) {
            let message = "The best are known at the end only; leave out `best_of` or `stream`.";
            return Err(unsupported("best_of", message));
        }
        if self.echo == Some(true) && self.logprobs.is_some() {
            let message =
                "The log probabilities of a prompt's own tokens are not computed; leave out `echo` or `logprobs`.";
            return Err(unsupported("logprobs", message));
        }
        Ok(())
    }
}

/// 400 for what OpenAI has and this service does not.
pub fn unsupported(param: &str, message: &str) -> ApiError {
    ApiError::Invalid(Problem::new("unsupported_parameter", message).at(param))
}

/// One prompt or more, each within its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts(pub Vec<PromptIn>);

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptsVisitor;
        impl<'de> Visitor<'de> for PromptsVisitor {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(
                    f,
                    "a string, an array of token ids, or an array of 1 to {PROMPTS_MAX} of either kind"
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                let prompt = PromptIn::deserialize(serde::de::value::StrDeserializer::<E>::new(text))?;
                Ok(Prompts(vec![prompt]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompts, A::Error> {
                let (mut ids, mut prompts) = (Vec::new(), Vec::new());
                while let Some(item) = items.next_element::<Item>()? {
                    match item {
                        Item::Id(id) => ids.push(id),
                        Item::Prompt(prompt) => prompts.push(prompt),
                    }
                    if !ids.is_empty() && !prompts.is_empty() {
                        return Err(A::Error::invalid_type(Unexpected::Other("a mixture"), &self));
                    }
                    if prompts.len() > PROMPTS_MAX || ids.len() > super::job::PROMPT_MAX {
                        return Err(A::Error::invalid_length(prompts.len().max(ids.len()), &self));
                    }
                }
                if !ids.is_empty() {
                    prompts.push(PromptIn(Prompt::Tokens(ids)));
                }
                if prompts.is_empty() {
                    return Err(A::Error::invalid_length(0, &self));
                }
                Ok(Prompts(prompts))
            }
        }
        deserializer.deserialize_any(PromptsVisitor)
    }
}

/// What stands in an array under `prompt`.
enum Item {
    Id(u32),
    Prompt(PromptIn),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a token id, a string or an array of token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
                let id = u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
                Ok(Item::Id(id))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
                PromptIn::deserialize(serde::de::value::StrDeserializer::<E>::new(text)).map(Item::Prompt)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Item, A::Error> {
                PromptIn::deserialize(SeqAccessDeserializer::new(items)).map(Item::Prompt)
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::json::parse;
    use serde_json::{Value, json};

    fn jobs(body: &Value) -> Result<(Shape, Vec<SubmitJob>), ApiError> {
        parse::<CreateCompletion>(body.to_string().as_bytes())?.into_jobs()
    }

    fn refusal(body: &Value) -> Problem {
        match jobs(body) {
            Err(ApiError::Invalid(problem)) => problem,
            other => panic!("{body} was not refused as invalid: {other:?}"),
        }
    }

    #[test]
    fn each_kind_of_prompt_is_read_as_what_it_is() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (prompt, wanted) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            ),
        ] {
            let (_, jobs) = jobs(&json!({"prompt": prompt})).unwrap();
            let prompts: Vec<_> = jobs.into_iter().map(|job| job.prompt.0).collect();
            assert_eq!(prompts, wanted);
        }
    }

    #[test]
    fn odd_prompts_are_refused_with_their_place() {
        let many = vec!["a"; 33];
        for (prompt, place) in [
            (json!([]), "prompt"),
            (json!([1, "a"]), "prompt"),
            (json!(many), "prompt"),
            (json!(["a", ""]), "prompt[1]"),
            (json!([[1], []]), "prompt[1]"),
            (json!([[1, -1]]), "prompt[0][1]"),
            (json!([1, -1]), "prompt[1]"),
            (json!(17), "prompt"),
        ] {
            assert_eq!(
                refusal(&json!({"prompt": prompt})).param.as_deref(),
                Some(place),
                "{prompt}"
            );
        }
    }

    #[test]
    fn absent_fields_take_openais_defaults() {
        let (shape, jobs) = jobs(&json!({"prompt": "a", "suffix": null, "user": "u-17", "n": null})).unwrap();
        assert_eq!((shape.n, shape.logprobs, shape.delivery), (1, false, Delivery::Whole));
        assert_eq!(jobs[0].max_tokens.map(Whole::get), Some(16));
        assert_eq!(jobs[0].temperature.map(UpTo::get), Some(1.0));
    }

    #[test]
    fn the_best_are_chosen_by_log_probabilities_that_nobody_asked_to_see() {
        let (shape, jobs) = jobs(&json!({"prompt": "a", "n": 2, "best_of": 4})).unwrap();
        assert_eq!((shape.n, shape.logprobs), (2, false));
        assert_eq!(
            (jobs[0].n.map(Whole::get), jobs[0].logprobs.map(Whole::get)),
            (Some(4), Some(0))
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (more, param) in [
            (json!({"suffix": "end"}), "suffix"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"n": 3, "best_of": 2}), "best_of"),
            (json!({"best_of": 2, "stream": true}), "best_of"),
            (json!({"echo": true, "logprobs": 1}), "logprobs"),
            (json!({"messages": []}), "messages"),
        ] {
            let mut body = json!({"prompt": "a"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(refusal(&body).param.as_deref(), Some(param));
        }
    }
}
