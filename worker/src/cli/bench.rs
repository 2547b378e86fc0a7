//! `claimcheck-worker bench`: tokens a second of the model alone, when it reads prompts and when it writes.
//!
//! Drives the steps of a [`StepModel`] itself: no scheduler, no sampler (but for the likeliest token where the device draws),
//! no server. Prompts are random ids and every new token is
//! one as well, since the time of a step does not depend on which tokens it computes. `whole.rs` then runs the engine on rows of
//! the same lengths and says what a step's time goes to. With a file that says what to
//! measure, `spec.rs` does instead, and `scenarios.rs` measures the engine whole. On a processor the figures are held
//! against what `machine.rs` finds that it can do.

mod launches;
mod machine;
mod scenarios;
mod spec;
mod whole;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use claimcheck_common::config::{HubConfig, WeightsCacheConfig, load_dotenv};
use claimcheck_common::domain::{DeviceChoice, Dtype, Order};
use claimcheck_common::tokenizer::Tokenizer;
use clap::{ArgGroup, Args};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::engine::EngineConfig;
use crate::gpt2::{
    BLOCK, Device, Draw, Gpt2Config, ModelFiles, StepModel, StepRow, Weights, WeightsCache, byte_tokenizer_json,
    save_random,
};
use crate::served_model;
use launches::{Launches, counted};
use machine::Machine;
use scenarios::{Scenario, Watched};
use whole::Whole;

/// Random weights and prompts are the same in every run.
const SEED: u64 = 1;

/// What to measure.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("weights").required(true).args(["model", "random", "spec"])))]
pub(super) struct BenchArgs {
    /// A JSON file that names model, prompts, new tokens, threads and repeats; prints one line of JSON: the time of every
    /// run and the likeliest tokens.
    #[arg(conflicts_with_all = ["batch", "prompt_tokens", "new_tokens", "rounds", "json"])]
    spec: Option<PathBuf>,
    /// In what the weights are kept.
    #[arg(long, default_value_t)]
    dtype: Dtype,
    /// Where to compute: auto, cpu, cuda, cuda:N or vulkan.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// How to add up: fixed, or fast, where a row's result may depend on the number of rows.
    #[arg(long, default_value_t)]
    order: Order,
    /// A folder with Hugging Face files, or a name on the hub.
    #[arg(long)]
    model: Option<String>,
    /// The revision of a hub model.
    // clap forgives a missing requirement where what is given excludes it, hence both.
    #[arg(long, requires = "model", conflicts_with_all = ["random", "spec"])]
    model_revision: Option<String>,
    /// Random weights in the shape of a named model, `gpt2` or `tiny` for instance.
    #[arg(long, value_parser = named)]
    random: Option<Gpt2Config>,
    /// Writes the random weights into this folder, too.
    #[arg(long, requires = "random", conflicts_with_all = ["model", "spec"])]
    save: Option<PathBuf>,
    /// How many sequences run side by side; several numbers are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// New tokens of each sequence.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    new_tokens: u32,
    /// How often to measure; the medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measures the whole engine in one situation, with the largest `--batch` as its slots, instead of the model alone.
    #[arg(long, value_enum, conflicts_with = "spec")]
    scenario: Option<Scenario>,
    /// Most tokens of a step in a scenario.
    #[arg(long, requires = "scenario", default_value_t = EngineConfig::default().token_budget)]
    token_budget: usize,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// The medians of one batch size.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    rounds: usize,
    /// Prompt tokens a second, all sequences together.
    prefill_tokens_per_second: f64,
    /// New tokens a second, all sequences together.
    decode_tokens_per_second: f64,
    /// From the prompts to the first new token of each.
    time_to_first_token_ms: f64,
    /// From one new token of a sequence to its next.
    time_per_output_token_ms: f64,
    /// On a graphics card: what a decode step starts there.
    launches: Option<Launches>,
    /// On a processor: what decoding reads of the weights in a second, as a share of what the machine can read.
    decode_share_of_reads: Option<f64>,
    /// On a processor: what the matrices of the prompts multiply in a second, as a share of what the machine can multiply.
    prefill_share_of_operations: Option<f64>,
    /// What the engine makes of it with scheduler, draws and text.
    engine: Option<Whole>,
}

/// All that is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// The bounds of the processor, if it computed.
    machine: Option<Machine>,
    /// The order that was computed in: on a processor the fixed one, whatever was allowed.
    order: &'static str,
    batches: Vec<Figures>,
}

/// What a step takes of the machine, at least.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    machine: Machine,
    /// Weights that a step multiplies with.
    weights: usize,
    bytes_per_weight: usize,
}

impl Bounds {
    /// `None` on a graphics card, whose bounds are not the processor's.
    fn find(args: &BenchArgs, chosen: &Chosen) -> anyhow::Result<Option<Self>> {
        if Device::find(args.device, args.dtype)? != Device::Cpu {
            return Ok(None);
        }
        Ok(Some(Self {
            machine: Machine::measure(),
            weights: chosen.config()?.matrix_weights(),
            bytes_per_weight: args.dtype.bytes(),
        }))
    }

    fn share_of_reads(&self, steps_per_second: f64) -> f64 {
        steps_per_second * (self.weights * self.bytes_per_weight) as f64 / self.machine.read_bytes_per_second
    }

    fn share_of_operations(&self, tokens_per_second: f64) -> f64 {
        tokens_per_second * (2 * self.weights) as f64 / self.machine.operations_per_second
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "batch {:>4}: prefill {:>9.1} tokens/s (first token after {:.1} ms), decode {:>9.1} tokens/s ({:.1} ms a token)",
            self.batch,
            self.prefill_tokens_per_second,
            self.time_to_first_token_ms,
            self.decode_tokens_per_second,
            self.time_per_output_token_ms
        )?;
        if let (Some(reads), Some(operations)) = (self.decode_share_of_reads, self.prefill_share_of_operations) {
            let (reads, operations) = (100.0 * reads, 100.0 * operations);
            write!(
                formatter,
                "; prefill {operations:.0} % of the machine's FLOP/s, decode {reads:.0} % of its GB/s"
            )?;
        }
        if let Some(launches) = self.launches {
            write!(formatter, "; {launches}")?;
        }
        if let Some(engine) = &self.engine {
            write!(formatter, "\n            {engine}")?;
        }
        Ok(())
    }
}

fn named(name: &str) -> Result<Gpt2Config, String> {
    Gpt2Config::named(name)
        .ok_or_else(|| "known are gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, tiny".to_owned())
}

/// Prints the figures of every batch size.
pub(super) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    load_dotenv()?;
    // The signals still end the process: nothing here has to be put in order.
    tokio::task::spawn_blocking(move || match (&args.spec, args.scenario) {
        (Some(path), _) => spec::run(path, args.dtype, args.device, args.order),
        (None, Some(scenario)) => tokio::runtime::Handle::current().block_on(measure_scenario(&args, scenario)),
        (None, None) => measure_all(&args),
    })
    .await?
}

async fn measure_scenario(args: &BenchArgs, scenario: Scenario) -> anyhow::Result<()> {
    let slots = usize::from(args.batch.iter().copied().max().unwrap_or(1));
    let prompt = args.prompt_tokens as usize;
    let chosen = Chosen::find(args)?;
    let tokenizer = Arc::new(chosen.tokenizer()?);
    let model = chosen.load(args, scenarios::blocks(scenario, slots, prompt))?;
    let config = EngineConfig {
        slots,
        token_budget: args.token_budget,
        ..EngineConfig::default()
    };
    let figures = match scenario {
        Scenario::Lengths => serde_json::to_string_pretty(&scenarios::lengths(model, tokenizer, config, prompt).await?),
        Scenario::LongPrompt => {
            serde_json::to_string_pretty(&scenarios::long_prompt(model, tokenizer, config, prompt).await?)
        }
    };
    writeln!(std::io::stdout().lock(), "{}", figures?).context("standard output")
}

fn measure_all(args: &BenchArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let slots = args.batch.iter().copied().max().unwrap_or(1);
    let (prompt, new) = (args.prompt_tokens as usize, args.new_tokens as usize);
    let of_sequence = (prompt + new).div_ceil(BLOCK);
    let chosen = Chosen::find(args)?;
    let tokenizer = Arc::new(chosen.tokenizer()?);
    let mut model = Watched::new(chosen.load(args, usize::from(slots) * of_sequence)?);
    let context = model.context_length();
    ensure!(
        prompt + new <= context,
        "--prompt-tokens {prompt} and --new-tokens {new} are more than the model's context of {context}"
    );
    let device = Device::find(args.device, args.dtype)?.in_order(args.order);
    if !args.json {
        writeln!(out, "{device}, {} order", device.order()).context("standard output")?;
    }
    let bounds = Bounds::find(args, &chosen)?;
    if let Some(Bounds { machine, .. }) = bounds.filter(|_| !args.json) {
        let (reads, operations) = (machine.read_bytes_per_second / 1e9, machine.operations_per_second / 1e9);
        writeln!(
            out,
            "the machine reads {reads:.1} GB/s and computes {operations:.0} GFLOP/s"
        )
        .context("standard output")?;
    }
    let mut batches = Vec::new();
    for batch in &args.batch {
        let (slots, rounds) = (usize::from(*batch), args.rounds as usize);
        let mut figures = measure(&mut model, slots, prompt, new, rounds)?;
        let whole = whole::measure(model.clone(), tokenizer.clone(), slots, (prompt, new), rounds);
        figures.engine = Some(tokio::runtime::Handle::current().block_on(whole)?);
        if let Some(bounds) = bounds {
            let steps = figures.decode_tokens_per_second / f64::from(*batch);
            figures.decode_share_of_reads = Some(bounds.share_of_reads(steps));
            let tokens = figures.prefill_tokens_per_second;
            figures.prefill_share_of_operations = Some(bounds.share_of_operations(tokens));
        }
        if !args.json {
            writeln!(out, "{figures}").context("standard output")?;
        }
        batches.push(figures);
    }
    if args.json {
        let report = Report {
            machine: bounds.map(|bounds| bounds.machine),
            order: device.order().as_str(),
            batches,
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?).context("standard output")?;
    }
    Ok(())
}

/// The weights to measure with.
enum Chosen {
    Files(ModelFiles),
    Random(Gpt2Config),
}

impl Chosen {
    fn find(args: &BenchArgs) -> anyhow::Result<Self> {
        if let Some(config) = &args.random {
            return Ok(Self::Random(config.clone()));
        }
        let source = args.model.as_deref().context("neither --model nor --random")?;
        let revision = args.model_revision.as_deref();
        Ok(Self::Files(served_model::find(
            source,
            revision,
            &HubConfig::from_env()?,
        )?))
    }

    fn config(&self) -> anyhow::Result<Gpt2Config> {
        match self {
            Self::Files(files) => Ok(Gpt2Config::read(&files.config)?),
            Self::Random(config) => Ok(config.clone()),
        }
    }

    /// The model's own, or one token a byte for random weights.
    fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        let json = match self {
            Self::Files(files) => {
                std::fs::read(&files.tokenizer).with_context(|| files.tokenizer.display().to_string())?
            }
            Self::Random(config) => byte_tokenizer_json(config.vocab_size).into_bytes(),
        };
        Ok(Tokenizer::from_bytes(&json)?)
    }

    fn load(&self, args: &BenchArgs, blocks: usize) -> anyhow::Result<Box<dyn StepModel>> {
        let device = Device::find(args.device, args.dtype)?.in_order(args.order);
        let cache = WeightsCache::new(&WeightsCacheConfig::from_env()?);
        let weights = match self {
            Self::Files(files) => Weights::Files(files, cache.as_ref()),
            Self::Random(config) => {
                if let Some(folder) = &args.save {
                    save_random(config, SEED, folder)?;
                }
                Weights::Random(config, SEED)
            }
        };
        Ok(device.load(weights, args.dtype, &|_, _| blocks)?)
    }
}

fn measure(
    model: &mut dyn StepModel,
    batch: usize,
    prompt: usize,
    new: usize,
    rounds: usize,
) -> anyhow::Result<Figures> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let vocabulary = model.vocab_size() as u32;
    let (mut prefill, mut decode) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    let mut launches = None;
    for _ in 0..rounds {
        let mut rows = |position, len| -> Vec<StepRow> {
            let of_sequence = (prompt + new).div_ceil(BLOCK) as u32;
            (0..batch as u32)
                .map(|row| StepRow {
                    blocks: (row * of_sequence..(row + 1) * of_sequence).collect(),
                    position,
                    tokens: (0..len).map(|_| random.random_range(0..vocabulary)).collect(),
                    wants_logits: true,
                })
                .collect()
        };
        let prompts = rows(0, prompt);
        prefill.push(timed(model, &[prompts])?);
        let steps: Vec<_> = (0..new).map(|step| rows(prompt + step, 1)).collect();
        let (time, counts) = counted(new, || timed(model, &steps));
        decode.push(time?);
        launches = counts;
    }
    let (prefill, decode) = (median(prefill).as_secs_f64(), median(decode).as_secs_f64());
    Ok(Figures {
        batch,
        prompt_tokens: prompt,
        new_tokens: new,
        rounds,
        prefill_tokens_per_second: (batch * prompt) as f64 / prefill,
        decode_tokens_per_second: (batch * new) as f64 / decode,
        time_to_first_token_ms: 1e3 * prefill,
        time_per_output_token_ms: 1e3 * decode / new as f64,
        launches,
        decode_share_of_reads: None,
        prefill_share_of_operations: None,
        engine: None,
    })
}

fn timed(model: &mut dyn StepModel, steps: &[Vec<StepRow>]) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    for rows in steps {
        if model.draws() {
            std::hint::black_box(model.draw(rows, &vec![Draw::GREEDY; rows.len()])?);
        } else {
            std::hint::black_box(model.step(rows)?);
        }
    }
    Ok(begin.elapsed())
}

/// The middle one, or the mean of the two in the middle.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    (times[times.len() / 2] + times[(times.len() - 1) / 2]) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let times = |millis: &[u64]| millis.iter().map(|one| Duration::from_millis(*one)).collect();
        assert_eq!(median(times(&[9, 1, 4])), Duration::from_millis(4));
        assert_eq!(median(times(&[9, 1, 4, 6])), Duration::from_millis(5));
    }
}
