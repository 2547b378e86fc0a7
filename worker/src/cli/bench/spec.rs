//! `bench SPEC.json`: given prompts, the likeliest token each time, and every run's times as one line of JSON.
//!
//! For programs that compare engines on the same weights, prompts and counts. Warms up once. Rows run side by side from
//! the first step to the last, so that every step has the same number of rows.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use claimcheck_common::config::WeightsCacheConfig;
use claimcheck_common::domain::{DeviceChoice, Dtype, Order};
use serde::{Deserialize, Serialize};

use super::launches::{Launches, counted};
use crate::gpt2::{BLOCK, Device, Draw, Drawn, ModelFiles, StepModel, StepRow, Weights, WeightsCache};

/// What to measure.
#[derive(Debug, Deserialize)]
struct Spec {
    /// A folder with `config.json` and `model.safetensors`; no tokenizer is needed.
    model: PathBuf,
    /// Token ids, one list a row.
    prompts: Vec<Vec<u32>>,
    /// A prompt to read by itself, or nothing.
    long_prompt: Vec<u32>,
    /// New tokens of each row.
    new: usize,
    threads: usize,
    repeats: usize,
}

#[derive(Debug, Serialize)]
struct Answer {
    /// Seconds.
    load_s: f64,
    /// The order that was computed in: on a processor the fixed one, whatever was allowed.
    order: &'static str,
    runs: Vec<Run>,
    /// Seconds from the long prompt to its first new token, one a repeat.
    long_prefill_s: Vec<f64>,
    /// New tokens of the last run, row by row.
    tokens: Vec<Vec<u32>>,
    /// What the steps of the warm-up started on a graphics card, those of its prompts included.
    #[serde(skip_serializing_if = "Option::is_none")]
    launches: Option<Launches>,
}

#[derive(Debug, Serialize)]
struct Run {
    /// Seconds until every row has its first new token.
    prefill_s: f64,
    /// Seconds from then on to the last.
    decode_s: f64,
}

/// Measures what `path` asks for.
pub(super) fn run(path: &Path, dtype: Dtype, device: DeviceChoice, order: Order) -> anyhow::Result<()> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let spec: Spec = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let answer = measure(&spec, dtype, device, order)?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&answer)?).context("standard output")
}

fn measure(spec: &Spec, dtype: Dtype, device: DeviceChoice, order: Order) -> anyhow::Result<Answer> {
    ensure!(!spec.prompts.is_empty(), "`prompts` is empty");
    ensure!(
        spec.prompts.iter().all(|prompt| !prompt.is_empty()),
        "a prompt has no tokens"
    );
    ensure!(spec.new > 0, "`new` is 0");
    ensure!(spec.repeats > 0, "`repeats` is 0");
    ensure!(spec.threads > 0, "`threads` is 0");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(spec.threads).build()?;
    pool.install(|| measure_here(spec, dtype, device, order))
}

/// Tokens of a step that reads prompts on a processor.
const PREFILL: usize = 512;

fn measure_here(spec: &Spec, dtype: Dtype, device: DeviceChoice, order: Order) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    let files = ModelFiles {
        name: "measured".to_owned(),
        commit: None,
        config: spec.model.join("config.json"),
        weights: spec.model.join("model.safetensors"),
        tokenizer: spec.model.join("tokenizer.json"),
    };
    let rows = spec
        .prompts
        .iter()
        .map(|prompt| blocks(prompt, spec.new))
        .sum::<usize>();
    let long = blocks(&spec.long_prompt, 1);
    let device = Device::find(device, dtype)?.in_order(order);
    let cache = WeightsCache::new(&WeightsCacheConfig::from_env()?);
    let mut model = device.load(Weights::Files(&files, cache.as_ref()), dtype, &|_, _| rows.max(long))?;
    let load_s = begin.elapsed().as_secs_f64();
    // The last token is not read any more.
    let context = model.context_length();
    let longest = spec.prompts.iter().map(|prompt| prompt.len() + spec.new - 1).max();
    ensure!(
        longest.max(Some(spec.long_prompt.len())) <= Some(context),
        "prompts with `new` tokens, or `long_prompt`, are longer than the model's context of {context}"
    );
    let mut answer = Answer {
        load_s,
        order: device.order().as_str(),
        runs: Vec::new(),
        long_prefill_s: Vec::new(),
        tokens: Vec::new(),
        launches: None,
    };
    let at_once = rows_of_prefill(&device, &spec.prompts);
    let steps = spec.prompts.len().div_ceil(at_once) + spec.new - 1;
    for repeat in 0..=spec.repeats {
        let mut once = || generate(model.as_mut(), &spec.prompts, spec.new, at_once);
        let (run, tokens) = if repeat == 0 {
            let (outcome, launches) = counted(steps, once);
            answer.launches = launches;
            outcome?
        } else {
            once()?
        };
        let long = match spec.long_prompt.as_slice() {
            [] => None,
            prompt => Some(generate(model.as_mut(), &[prompt.to_vec()], 1, 1)?.0.prefill_s),
        };
        if repeat == 0 {
            continue; // The warm-up.
        }
        answer.runs.push(run);
        answer.tokens = tokens;
        answer.long_prefill_s.extend(long);
    }
    Ok(answer)
}

/// Reads the prompts of `at_once` rows a step, then goes on with all rows together.
fn generate(
    model: &mut dyn StepModel,
    prompts: &[Vec<u32>],
    new: usize,
    at_once: usize,
) -> anyhow::Result<(Run, Vec<Vec<u32>>)> {
    let mut free = 0..model.blocks() as u32;
    let row = |prompt: &Vec<u32>| StepRow {
        blocks: free.by_ref().take(blocks(prompt, new)).collect(),
        position: 0,
        tokens: prompt.clone(),
        wants_logits: true,
    };
    let mut rows: Vec<_> = prompts.iter().map(row).collect();
    let mut tokens = vec![Vec::with_capacity(new); rows.len()];
    let begin = Instant::now();
    for (rows, tokens) in rows.chunks_mut(at_once).zip(tokens.chunks_mut(at_once)) {
        advance(model, rows, tokens)?;
    }
    let prefill_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for _ in 1..new {
        advance(model, &mut rows, &mut tokens)?;
    }
    let decode_s = begin.elapsed().as_secs_f64();
    Ok((Run { prefill_s, decode_s }, tokens))
}

/// Rows whose prompts are read in one step: on a processor as many tokens as stay near it from one product to the next, on a card
/// all.
fn rows_of_prefill(device: &Device, prompts: &[Vec<u32>]) -> usize {
    match device {
        Device::Cpu => {
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
            (PREFILL / longest).max(1)
        }
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        _ => prompts.len(),
    }
}

/// Blocks of the cache that a row takes.
fn blocks(prompt: &[u32], new: usize) -> usize {
    (prompt.len() + new).div_ceil(BLOCK)
}

/// One step; the likeliest token of each row is what that row reads next.
fn advance(model: &mut dyn StepModel, rows: &mut [StepRow], tokens: &mut [Vec<u32>]) -> anyhow::Result<()> {
    let vocab_size = model.vocab_size();
    let drawn: Vec<u32> = if model.draws() {
        let drawn = model.draw(rows, &vec![Draw::GREEDY; rows.len()])?;
        let token = |one: &Drawn| match one {
            Drawn::Token(token, _) => *token,
            Drawn::Logits(logits) => likeliest(logits),
        };
        drawn.iter().map(token).collect()
    } else {
        model.step(rows)?.chunks_exact(vocab_size).map(likeliest).collect()
    };
    for ((row, tokens), token) in rows.iter_mut().zip(tokens).zip(drawn) {
        tokens.push(token);
        row.position += row.tokens.len();
        row.tokens.clear();
        row.tokens.push(token);
    }
    Ok(())
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit >= largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Expected {
        prompt: Vec<u32>,
        greedy: Vec<u32>,
    }

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity/plain")
    }

    fn expected() -> Expected {
        serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
    }

    fn spec(expected: &Expected) -> Spec {
        Spec {
            model: folder(),
            prompts: vec![vec![1; expected.prompt.len()], expected.prompt.clone()],
            long_prompt: vec![2; 20],
            new: expected.greedy.len(),
            threads: 2,
            repeats: 2,
        }
    }

    #[test]
    fn the_tokens_are_those_of_transformers_and_every_repeat_has_its_times() {
        let expected = expected();
        let answer = measure(&spec(&expected), Dtype::F32, DeviceChoice::Cpu, Order::Fast).unwrap();
        assert_eq!(answer.tokens[1], expected.greedy);
        assert_eq!(answer.tokens[0].len(), expected.greedy.len());
        assert_eq!((answer.runs.len(), answer.long_prefill_s.len()), (2, 2));
        let times = answer.runs.iter().flat_map(|run| [run.prefill_s, run.decode_s]);
        assert!(
            times
                .chain(answer.long_prefill_s)
                .chain([answer.load_s])
                .all(|time| time > 0.0)
        );
    }

    #[test]
    fn without_a_long_prompt_there_are_no_times_of_one() {
        let mut spec = spec(&expected());
        spec.long_prompt.clear();
        assert!(
            measure(&spec, Dtype::F32, DeviceChoice::Cpu, Order::Fast)
                .unwrap()
                .long_prefill_s
                .is_empty()
        );
    }

    #[test]
    fn what_cannot_be_measured_is_refused_in_words() {
        let changes: [fn(&mut Spec); 8] = [
            |spec| spec.prompts.clear(),
            |spec| spec.prompts[0].clear(),
            |spec| spec.prompts.iter_mut().for_each(Vec::clear),
            |spec| spec.new = 0,
            |spec| spec.repeats = 0,
            |spec| spec.threads = 0,
            |spec| spec.new = 10_000,
            |spec| spec.model = PathBuf::from("no/such/folder"),
        ];
        for (case, change) in changes.iter().enumerate() {
            let mut spec = spec(&expected());
            change(&mut spec);
            assert!(
                measure(&spec, Dtype::F32, DeviceChoice::Cpu, Order::Fast).is_err(),
                "case {case}"
            );
        }
    }
}
