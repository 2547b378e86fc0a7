//! The body of `POST /v1/jobs`: its fields with their limits, and the rules that span several of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::RngExt;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Problem;
use super::number::{Between, UpTo, Whole};
use super::text::{Text, check};
use super::webhook::{JobHook, JobHookSchema};
use crate::domain::{Class, GenerationParams, Prompt};
use crate::store::submit::JobOptions;

/// Most characters of a prompt, and most token ids.
pub const PROMPT_MAX: usize = 10_000;
const STOPS_MAX: usize = 4;
const STOP_IDS_MAX: usize = 16;
const BIASES_MAX: usize = 300;
const REPETITION_PENALTY_MIN: f32 = 0.01;
const METADATA_MAX: usize = 16;
const METADATA_KEY_MAX: usize = 64;
/// Farther ahead, a job would outlive the models it names.
const AHEAD_SECONDS: i64 = 366 * 24 * 3600;
/// Numbers up to here survive every JSON reader, also those that only know doubles.
const SEED_DRAWN_BITS: u32 = 53;

/// A job to be done. Fields that are null count as absent; unknown fields are refused.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"prompt": "Once upon a time", "max_tokens": 50, "temperature": 0.7}))]
pub struct SubmitJob {
    /// The text to continue (1 to 10,000 characters), or its token ids.
    #[schema(value_type = PromptSchema)]
    pub prompt: PromptIn,
    /// A served model's name or alias; may be absent while exactly one model is served.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256, example = "claimcheck-tiny")]
    pub model: Option<Text<1, 256>>,
    /// Most tokens to generate for each choice.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4096, default = 100)]
    pub max_tokens: Option<Whole<1, 4096>>,
    /// 0 takes the likeliest token every time.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 2, default = 0.7)]
    pub temperature: Option<UpTo<2>>,
    /// Sample among the likeliest tokens that together hold this probability.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<UpTo<1>>,
    /// Sample among this many likeliest tokens; null sets no such limit.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub top_k: Option<Whole<1, { i32::MAX as i64 }>>,
    /// Sample among the tokens that are at least this many times as likely as the likeliest one.
    #[schema(value_type = Option<f32>, minimum = 0, maximum = 1, default = 0)]
    pub min_p: Option<UpTo<1>>,
    /// Divides the positive logits of the tokens of prompt and text, and multiplies the negative ones.
    #[schema(value_type = Option<f32>, minimum = 0.01, maximum = 10, default = 1)]
    pub repetition_penalty: Option<UpTo<10>>,
    /// Taken off the logit of each token that was generated.
    #[schema(value_type = Option<f32>, minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<Between<-2, 2>>,
    /// Taken off a token's logit for each time that it was generated.
    #[schema(value_type = Option<f32>, minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<Between<-2, 2>>,
    /// Added to the logits of at most 300 tokens: numbers from -100 to 100 under their ids.
    #[schema(value_type = Option<BTreeMap<String, f32>>, example = json!({"50256": -100}))]
    pub logit_bias: Option<LogitBias>,
    /// Asks for the log probability of each generated token, and of so many of the likeliest at its place.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 5)]
    pub logprobs: Option<Whole<0, 5>>,
    /// How many choices to generate.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 5, default = 1)]
    pub n: Option<Whole<1, 5>>,
    /// One text or up to 4 texts, each of 1 to 256 characters, before which generation ends.
    #[schema(value_type = Option<StopSchema>)]
    pub stop: Option<Stops>,
    /// Up to 16 token ids with any of which generation ends; the text does not show it.
    #[schema(value_type = Option<Vec<u32>>, max_items = 16)]
    pub stop_token_ids: Option<StopIds>,
    /// Fixes the output; drawn and shown when absent.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Whole<{ i64::MIN }, { i64::MAX }>>,
    /// Up to 16 texts of at most 512 characters under keys of at most 64, handed back with the job.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub metadata: Option<Metadata>,
    /// Unix seconds before which the job must not start, at most a year ahead.
    #[schema(value_type = Option<i64>)]
    pub scheduled_at: Option<Whole<0, { i64::MAX }>>,
    /// Unix seconds by which the job must be finished, at most a year ahead: later it is `expired`.
    #[schema(value_type = Option<i64>)]
    pub deadline_at: Option<Whole<0, { i64::MAX }>>,
    /// Unix seconds by which a worker must have begun, at most a year ahead: later it is `expired`.
    #[schema(value_type = Option<i64>)]
    pub start_by: Option<Whole<0, { i64::MAX }>>,
    /// `interactive` goes before `batch`.
    #[schema(value_type = Option<ClassSchema>, default = "interactive")]
    pub class: Option<Class>,
    /// Greater goes first among your jobs of the class.
    #[schema(value_type = Option<i16>, minimum = -10, maximum = 10, default = 0)]
    pub priority: Option<Whole<-10, 10>>,
    /// How often the job may be tried before it fails.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 20, default = 5)]
    pub max_attempts: Option<Whole<1, 20>>,
    /// `false` erases prompt and output five minutes after the ended job was first fetched (24 hours after its end if it
    /// never is).
    #[schema(default = true)]
    pub store: Option<bool>,
    /// Seconds after the job's end at which prompt and output are erased.
    #[schema(value_type = Option<u32>, minimum = 60, maximum = 31_536_000)]
    pub ttl: Option<Whole<60, 31_536_000>>,
    /// `true` checks the request and says what it would come to; nothing is stored.
    #[schema(default = false)]
    pub dry_run: Option<bool>,
    /// A URL that is told how the job ends, or an object with `url`, `events` and `payload`. Signed with the secret at
    /// `/v1/webhook_endpoints/jobs/secret`.
    #[schema(value_type = Option<JobHookSchema>)]
    pub webhook: Option<JobHook>,
}

/// How urgently a job waits.
#[derive(ToSchema)]
#[schema(as = Class, rename_all = "snake_case")]
#[allow(dead_code, reason = "only describes `Class` in the OpenAPI document")]
pub enum ClassSchema {
    /// Somebody waits for the answer.
    Interactive,
    /// To be done when there is room.
    Batch,
}

/// A text, or token ids.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes `PromptIn` in the OpenAPI document")]
pub enum PromptSchema {
    /// Text.
    Text(String),
    /// Token ids of the model's vocabulary.
    Tokens(Vec<u32>),
}

/// A text, or several.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes `Stops` in the OpenAPI document")]
pub enum StopSchema {
    /// One text.
    One(String),
    /// Up to 4 texts.
    Many(Vec<String>),
}

/// What the API must know of a model to accept a job for it.
#[derive(Debug, Clone, Copy)]
pub struct ModelLimits {
    /// Prompt and new tokens together may not exceed this.
    pub context_length: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
}

/// What remains of a request once every rule was checked, apart from the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidJob {
    /// What to continue.
    pub prompt: Prompt,
    /// Its length for the model.
    pub prompt_tokens: u32,
    /// How to continue it.
    pub params: GenerationParams,
    /// The caller's own notes.
    pub metadata: BTreeMap<String, String>,
    /// Its earliest start, if that lies ahead.
    pub scheduled_at: Option<OffsetDateTime>,
    /// Which queue.
    pub class: Class,
    /// When it must be done, how often it is tried, what is kept of it.
    pub options: JobOptions,
}

impl SubmitJob {
    /// The job that a request with nothing but a prompt asks for.
    pub const fn continuing(prompt: PromptIn) -> Self {
        Self {
            prompt,
            model: None,
            max_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            presence_penalty: None,
            frequency_penalty: None,
            logit_bias: None,
            logprobs: None,
            n: None,
            stop: None,
            stop_token_ids: None,
            seed: None,
            metadata: None,
            scheduled_at: None,
            deadline_at: None,
            start_by: None,
            class: None,
            priority: None,
            max_attempts: None,
            store: None,
            ttl: None,
            dry_run: None,
            webhook: None,
        }
    }

    /// Checks what depends on the model, on the clock and on several fields. `prompt_tokens` is the encoded length of a
    /// text prompt (an array of ids is its own length), `now` is in Unix seconds.
    pub fn into_valid(self, prompt_tokens: u32, limits: ModelLimits, now: i64) -> Result<ValidJob, Problem> {
        if self.webhook.is_some() {
            // Who takes one has taken it out by now.
            let message = "`webhook` is not a field here; a webhook endpoint of the project is told of all jobs.";
            return Err(Problem::new("unknown_field", message).at("webhook"));
        }
        self.check_vocabulary(limits.vocab_size)?;
        let max_tokens = self.max_tokens.map_or(100, |value| value.get() as u32);
        check_context(prompt_tokens, max_tokens, limits.context_length)?;
        let repetition_penalty = self.repetition_penalty()?;
        let scheduled_at = ahead("scheduled_at", self.scheduled_at, now)?;
        let options = self.options(scheduled_at, now)?;
        Ok(ValidJob {
            prompt: self.prompt.0,
            prompt_tokens,
            params: GenerationParams {
                max_tokens,
                temperature: self.temperature.map_or(0.7, UpTo::get),
                top_p: self.top_p.map_or(1.0, UpTo::get),
                top_k: self.top_k.map(|value| value.get() as u32),
                min_p: self.min_p.map_or(0.0, UpTo::get),
                repetition_penalty,
                presence_penalty: self.presence_penalty.map_or(0.0, Between::get),
                frequency_penalty: self.frequency_penalty.map_or(0.0, Between::get),
                logit_bias: self.logit_bias.map(|bias| bias.0).unwrap_or_default(),
                logprobs: self.logprobs.map(|value| value.get() as u32),
                n: self.n.map_or(1, |value| value.get() as u32),
                stop: self.stop.map(|stops| stops.0).unwrap_or_default(),
                stop_token_ids: self.stop_token_ids.map(|ids| ids.0).unwrap_or_default(),
                seed: self.seed.map_or_else(draw_seed, Whole::get),
            },
            metadata: self.metadata.map(|metadata| metadata.0).unwrap_or_default(),
            scheduled_at,
            class: self.class.unwrap_or(Class::Interactive),
            options,
        })
    }

    fn options(&self, scheduled_at: Option<OffsetDateTime>, now: i64) -> Result<JobOptions, Problem> {
        let deadline_at = ahead("deadline_at", self.deadline_at, now)?;
        let start_by = ahead("start_by", self.start_by, now)?;
        for (name, time) in [("deadline_at", deadline_at), ("start_by", start_by)] {
            if time.is_some_and(|time| Some(time) <= scheduled_at) {
                return Err(Problem::invalid(
                    name,
                    format!("`{name}` must be after `scheduled_at`."),
                ));
            }
        }
        let default = JobOptions::default();
        Ok(JobOptions {
            priority: self.priority.map_or(default.priority, |value| value.get() as i16),
            deadline_at,
            start_by,
            max_attempts: self
                .max_attempts
                .map_or(default.max_attempts, |value| value.get() as u32),
            store: self.store.unwrap_or(default.store),
            ttl: self.ttl.map(|value| Duration::from_secs(value.get().cast_unsigned())),
            attended: default.attended,
        })
    }

    fn repetition_penalty(&self) -> Result<f32, Problem> {
        let value = self.repetition_penalty.map_or(1.0, UpTo::get);
        if value < REPETITION_PENALTY_MIN {
            return Err(Problem::invalid(
                "repetition_penalty",
                format!("`repetition_penalty` must be a number from {REPETITION_PENALTY_MIN} to 10."),
            ));
        }
        Ok(value)
    }

    fn check_vocabulary(&self, vocab_size: u32) -> Result<(), Problem> {
        let prompt: &[u32] = match &self.prompt.0 {
            Prompt::Tokens(ids) => ids,
            Prompt::Text(_) => &[],
        };
        let stops: &[u32] = self.stop_token_ids.as_ref().map_or(&[], |ids| &ids.0);
        let biased = self.logit_bias.iter().flat_map(|bias| bias.0.keys());
        let places = (prompt
            .iter()
            .enumerate()
            .map(|(place, id)| (*id, format!("prompt[{place}]"))))
        .chain(
            stops
                .iter()
                .enumerate()
                .map(|(place, id)| (*id, format!("stop_token_ids[{place}]"))),
        )
        .chain(biased.map(|id| (*id, format!("logit_bias.{id}"))));
        match places.into_iter().find(|(id, _)| *id >= vocab_size) {
            None => Ok(()),
            Some((_, place)) => {
                let message = format!(
                    "`{place}` is not a token of the model; its ids go from 0 to {}.",
                    vocab_size - 1
                );
                Err(Problem::invalid(place, message))
            }
        }
    }
}

fn check_context(prompt_tokens: u32, max_tokens: u32, context: u32) -> Result<(), Problem> {
    if u64::from(prompt_tokens) + u64::from(max_tokens) <= u64::from(context) {
        return Ok(());
    }
    let total = u64::from(prompt_tokens) + u64::from(max_tokens);
    let message = format!(
        "This model's context holds {context} tokens, but {total} were asked for ({prompt_tokens} in `prompt` and \
         {max_tokens} in `max_tokens`). Shorten the prompt or lower `max_tokens`."
    );
    Err(Problem::new("context_length_exceeded", message).at("max_tokens"))
}

/// A time that lies ahead, but not too far.
fn ahead(name: &'static str, at: Option<Whole<0, { i64::MAX }>>, now: i64) -> Result<Option<OffsetDateTime>, Problem> {
    let Some(at) = at.map(Whole::get) else {
        return Ok(None);
    };
    if at <= now || at - now > AHEAD_SECONDS {
        return Err(Problem::invalid(
            name,
            format!("`{name}` must be Unix seconds in the future, at most 366 days ahead; now it is {now}."),
        ));
    }
    OffsetDateTime::from_unix_timestamp(at)
        .map(Some)
        .map_err(|_| Problem::invalid(name, format!("`{name}` is not a time.")))
}

fn draw_seed() -> i64 {
    rand::rng().random_range(0..1_i64 << SEED_DRAWN_BITS)
}

/// A prompt within its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptIn(pub Prompt);

impl<'de> Deserialize<'de> for PromptIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = PromptIn;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(
                    f,
                    "a string of 1 to {PROMPT_MAX} characters or an array of 1 to {PROMPT_MAX} token ids"
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PromptIn, E> {
                check(text, 1, PROMPT_MAX).map_err(E::custom)?;
                Ok(PromptIn(Prompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<PromptIn, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element::<Whole<0, { u32::MAX as i64 }>>()? {
                    if ids.len() == PROMPT_MAX {
                        return Err(A::Error::invalid_length(ids.len() + 1, &self));
                    }
                    ids.push(id.get() as u32);
                }
                if ids.is_empty() {
                    return Err(A::Error::invalid_length(0, &self));
                }
                Ok(PromptIn(Prompt::Tokens(ids)))
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// Stop texts within their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stops(pub Vec<String>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StopsVisitor;
        impl<'de> Visitor<'de> for StopsVisitor {
            type Value = Stops;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(
                    f,
                    "a string or an array of at most {STOPS_MAX} strings, each of 1 to 256 characters"
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stops, E> {
                let text = Text::<1, 256>::parse(text).map_err(E::custom)?;
                Ok(Stops(vec![text.into_string()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Stops, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = items.next_element::<Text<1, 256>>()? {
                    if stops.len() == STOPS_MAX {
                        return Err(A::Error::invalid_length(stops.len() + 1, &self));
                    }
                    stops.push(stop.into_string());
                }
                Ok(Stops(stops))
            }
        }
        deserializer.deserialize_any(StopsVisitor)
    }
}

/// Stop tokens within their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopIds(pub Vec<u32>);

impl<'de> Deserialize<'de> for StopIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdsVisitor;
        impl<'de> Visitor<'de> for IdsVisitor {
            type Value = StopIds;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an array of at most {STOP_IDS_MAX} token ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<StopIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element::<Whole<0, { u32::MAX as i64 }>>()? {
                    if ids.len() == STOP_IDS_MAX {
                        return Err(A::Error::invalid_length(ids.len() + 1, &self));
                    }
                    ids.push(id.get() as u32);
                }
                Ok(StopIds(ids))
            }
        }
        deserializer.deserialize_any(IdsVisitor)
    }
}

/// Biases within their limits, by token.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitBias(pub BTreeMap<u32, f32>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BiasVisitor;
        impl<'de> Visitor<'de> for BiasVisitor {
            type Value = LogitBias;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(
                    f,
                    "an object of at most {BIASES_MAX} numbers from -100 to 100, under token ids"
                )
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<LogitBias, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if biases.len() == BIASES_MAX {
                        return Err(A::Error::invalid_length(biases.len() + 1, &self));
                    }
                    // Rust would read "+5" and "05" as well, and the same token could come twice.
                    let id = key.parse::<u32>().ok().filter(|id| id.to_string() == key);
                    let id = id.ok_or_else(|| A::Error::invalid_value(Unexpected::Other("another key"), &self))?;
                    if biases
                        .insert(id, entries.next_value::<Between<-100, 100>>()?.get())
                        .is_some()
                    {
                        return Err(A::Error::custom("is given twice"));
                    }
                }
                Ok(LogitBias(biases))
            }
        }
        deserializer.deserialize_any(BiasVisitor)
    }
}

/// A caller's notes within their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(
                    f,
                    "an object of at most {METADATA_MAX} strings of at most 512 characters, under keys of 1 to \
                     {METADATA_KEY_MAX} characters"
                )
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Metadata, A::Error> {
                let mut metadata = BTreeMap::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if check(&key, 1, METADATA_KEY_MAX).is_err() || metadata.len() == METADATA_MAX {
                        return Err(A::Error::invalid_length(metadata.len() + 1, &self));
                    }
                    let value = entries.next_value::<Text<0, 512>>()?;
                    if metadata.insert(key, value.into_string()).is_some() {
                        return Err(A::Error::custom("is given twice"));
                    }
                }
                Ok(Metadata(metadata))
            }
        }
        deserializer.deserialize_any(MetadataVisitor)
    }
}

#[cfg(test)]
mod tests;
