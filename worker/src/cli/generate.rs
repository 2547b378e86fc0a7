//! `claimcheck-worker generate`: one prompt through the real engine, without any server.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use claimcheck_common::config::{HubConfig, WeightsCacheConfig, load_dotenv};
use claimcheck_common::domain::{Completion, DeviceChoice, Dtype, GenerationParams, JobId, JobKey, Order, Share};
use clap::Args;
use rand::RngExt;
use tokio::sync::mpsc;

use super::number::{bias, penalty, probability, repetition, temperature};
use crate::engine::{Ending, Engine, EngineConfig, EngineEvent, EngineJob};
use crate::served_model::{LoadedModel, ModelChoice};

/// Numbers up to here survive every JSON reader, as in the API.
const SEED_BITS: u32 = 53;

/// The prompt and how to continue it: the fields of a job, with their limits.
#[derive(Debug, Clone, Args)]
pub(super) struct GenerateArgs {
    /// A folder with Hugging Face files, or a name on the hub.
    #[arg(long)]
    model: String,
    /// The revision of a hub model.
    #[arg(long)]
    model_revision: Option<String>,
    /// What weights are kept in: f32, bf16 or int8.
    #[arg(long, default_value_t)]
    dtype: Dtype,
    /// Where to compute: auto, cpu, cuda, cuda:N or vulkan.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// The text to continue.
    #[arg(long, allow_hyphen_values = true)]
    prompt: String,
    /// Most new tokens for each choice.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_tokens: u32,
    /// 0 takes the likeliest token every time.
    #[arg(long, default_value = "0.7", value_parser = temperature, allow_hyphen_values = true)]
    temperature: f32,
    /// Sample among the likeliest tokens that together hold this probability.
    #[arg(long, default_value = "1", value_parser = probability, allow_hyphen_values = true)]
    top_p: f32,
    /// Sample among this many likeliest tokens.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    top_k: Option<u32>,
    /// Sample among the tokens that are at least this many times as likely as the likeliest one.
    #[arg(long, default_value = "0", value_parser = probability, allow_hyphen_values = true)]
    min_p: f32,
    /// Above 1 makes the tokens of prompt and text less likely.
    #[arg(long, default_value = "1", value_parser = repetition, allow_hyphen_values = true)]
    repetition_penalty: f32,
    /// Taken off the logit of each token that was generated.
    #[arg(long, default_value = "0", value_parser = penalty, allow_hyphen_values = true)]
    presence_penalty: f32,
    /// Taken off a token's logit for each time that it was generated.
    #[arg(long, default_value = "0", value_parser = penalty, allow_hyphen_values = true)]
    frequency_penalty: f32,
    /// Added to a token's logit, as `ID=NUMBER`; may be repeated.
    #[arg(long, value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Lists the log probability of each token, and of so many of the likeliest at its place (with `--json`).
    #[arg(long, requires = "json", value_parser = clap::value_parser!(u32).range(0..=5))]
    logprobs: Option<u32>,
    /// Fixes the output; drawn unless given.
    #[arg(long, allow_hyphen_values = true)]
    seed: Option<i64>,
    /// Generation ends before this text; up to four of them.
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Generation ends with this token id; may be repeated.
    #[arg(long)]
    stop_token_id: Vec<u32>,
    /// How many choices to generate.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5))]
    n: u32,
    /// Prints the choices and the usage as JSON.
    #[arg(long)]
    json: bool,
}

impl GenerateArgs {
    fn params(&self) -> anyhow::Result<GenerationParams> {
        ensure!(!self.prompt.is_empty(), "--prompt is empty");
        ensure!(
            self.stop.len() <= 4,
            "--stop is given {} times, at most 4",
            self.stop.len()
        );
        ensure!(self.stop.iter().all(|stop| !stop.is_empty()), "--stop is empty");
        Ok(GenerationParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            logprobs: self.logprobs,
            n: self.n,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_id.clone(),
            seed: self
                .seed
                .unwrap_or_else(|| (rand::rng().random::<u64>() >> (u64::BITS - SEED_BITS)) as i64),
        })
    }
}

/// Prints the continuation.
pub(super) async fn run(args: GenerateArgs) -> anyhow::Result<()> {
    load_dotenv()?;
    let params = args.params()?;
    let choice = ModelChoice {
        source: args.model.clone(),
        revision: args.model_revision.clone(),
        name: None,
        dtype: args.dtype,
        device: args.device,
        order: Order::Fixed,
        slots: args.n as u16,
        // What one sequence needs is there in any case.
        kv_cache_mib: 1024,
        hub: HubConfig::from_env()?,
        weights_cache: WeightsCacheConfig::from_env()?,
    };
    let completion = complete(choice.load().await?, &args.prompt, params).await?;
    print(&completion, args.json)
}

async fn complete(loaded: LoadedModel, prompt: &str, params: GenerationParams) -> anyhow::Result<Completion> {
    let prompt = loaded.tokenizer.encode(prompt)?;
    let (sender, mut events) = mpsc::channel(4);
    let engine = Engine::start(loaded.model, loaded.tokenizer, EngineConfig::default(), sender);
    let key = JobKey {
        id: JobId::new(),
        fence: 1,
    };
    engine
        .submit(EngineJob {
            key,
            prompt,
            params,
            share: Share::default(),
        })
        .await?;
    while let Some(event) = events.recv().await {
        match event {
            EngineEvent::Started(_) => {}
            EngineEvent::Ended(_, Ending::Completed(completion) | Ending::Stopped(completion), _) => {
                return Ok(completion);
            }
            EngineEvent::Ended(_, Ending::Failed(error), _) => bail!("{}", error.message),
            EngineEvent::Ended(_, Ending::Lost, _) => bail!("the engine broke"),
        }
    }
    bail!("the engine stopped")
}

fn print(completion: &Completion, json: bool) -> anyhow::Result<()> {
    let text = match completion.choices.as_slice() {
        _ if json => serde_json::to_string_pretty(completion)?,
        [only] => only.text.clone(),
        several => {
            let lines: Vec<_> = several
                .iter()
                .map(|one| format!("[{}]{}", one.index, one.text))
                .collect();
            lines.join("\n")
        }
    };
    writeln!(std::io::stdout().lock(), "{text}").context("standard output")
}
