//! `bench --scenario`: the whole engine, scheduler and sampler included, on work of the kinds that a fixed batch leaves out.
//!
//! `lengths`: outputs of very different length, with rows that join and leave, against batches that run until their last row
//! has ended. `long-prompt`: what a long prompt does to the rows beside which it is read. Both watch the same model step by step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use claimcheck_common::domain::{GenerationParams, JobId, JobKey, Share};
use claimcheck_common::tokenizer::Tokenizer;
use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{SEED, median};
use crate::engine::{Ending, Engine, EngineConfig, EngineEvent, EngineHandle, EngineJob};
use crate::gpt2::{BLOCK, Draw, Drawn, StepError, StepModel, StepRow};

/// Mean and limit of the new tokens in `lengths`.
const MEAN: f64 = 64.0;
const LONGEST: usize = 512;
/// Requests for each slot in `lengths`.
const REQUESTS: usize = 8;
/// Rows that run when the long prompt comes, and their new tokens.
const BESIDE: usize = 16;
const NEW_BESIDE: usize = 160;
const LONG_PROMPT: usize = 900;
/// Steps in which all rows run before the long prompt comes.
const WARM: usize = 40;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Outputs of geometric length (mean 64, at most 512): rows that join and leave against batches that wait for their last.
    Lengths,
    /// A prompt of 900 tokens among 16 running rows.
    LongPrompt,
}

/// Rows that join and leave, against batches that wait for their last row.
#[derive(Debug, Serialize)]
pub(super) struct Lengths {
    slots: usize,
    requests: usize,
    new_tokens: usize,
    continuous_tokens_per_second: f64,
    static_tokens_per_second: f64,
    /// The first by the second.
    ratio: f64,
    /// Of the slot-steps until the last request was let in, those that drew a token.
    continuous_useful: f64,
    static_useful: f64,
    /// Of the continuous run's time, what the model took; the rest is scheduling, sampling, text.
    model_share: f64,
}

/// What a long prompt does to its neighbours.
#[derive(Debug, Serialize)]
pub(super) struct LongPrompt {
    rows: usize,
    prompt_tokens: usize,
    /// Between two tokens of a running row, in milliseconds: without the long prompt, and at worst while it is read.
    median_gap_ms: f64,
    worst_gap_ms: f64,
    ratio: f64,
    /// From the long prompt's arrival to its first token, in milliseconds.
    time_to_first_token_ms: f64,
}

/// One step as it was seen.
#[derive(Debug, Clone)]
struct Step {
    began: Instant,
    ended: Instant,
    rows: usize,
    tokens: usize,
    /// Rows from which a token is drawn.
    drawn: usize,
    /// Whether a sequence begins.
    admits: bool,
}

/// A model that several can drive one after the other, and that notes its steps.
#[derive(Clone)]
pub(super) struct Watched {
    model: Arc<Mutex<Box<dyn StepModel>>>,
    steps: Arc<Mutex<Vec<Step>>>,
    pause: Arc<Mutex<Option<Pause>>>,
}

/// Holds the model when all rows have run for a while.
struct Pause {
    reached: oneshot::Sender<()>,
    go_on: std::sync::mpsc::Receiver<()>,
}

impl Watched {
    pub(super) fn new(model: Box<dyn StepModel>) -> Self {
        Self {
            model: Arc::new(Mutex::new(model)),
            steps: Arc::default(),
            pause: Arc::default(),
        }
    }

    /// Pauses after [`WARM`] steps of [`BESIDE`] rows: the first end hears of it, and dropping the second one ends the pause.
    fn pause(&self) -> (oneshot::Receiver<()>, std::sync::mpsc::Sender<()>) {
        let (reached, hears) = oneshot::channel();
        let (ends, go_on) = std::sync::mpsc::channel();
        *lock(&self.pause) = Some(Pause { reached, go_on });
        (hears, ends)
    }

    fn is_warm(&self) -> bool {
        lock(&self.steps).iter().filter(|step| step.tokens == BESIDE).count() >= WARM
    }

    /// The steps since the last call.
    fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut lock(&self.steps))
    }

    /// Notes a step, and pauses after it if that was asked.
    fn watch<T>(&self, rows: &[StepRow], step: impl FnOnce(&mut dyn StepModel) -> T) -> T {
        let began = Instant::now();
        let outcome = step(lock(&self.model).as_mut());
        lock(&self.steps).push(Step {
            began,
            ended: Instant::now(),
            rows: rows.len(),
            tokens: rows.iter().map(|row| row.tokens.len()).sum(),
            drawn: rows.iter().filter(|row| row.wants_logits).count(),
            admits: rows.iter().any(|row| row.position == 0),
        });
        let mut pause = lock(&self.pause);
        if pause.is_some()
            && self.is_warm()
            && let Some(pause) = pause.take()
        {
            // Who is gone waits for nothing.
            let _ = pause.reached.send(());
            let _ = pause.go_on.recv();
        }
        outcome
    }
}

fn lock<T: ?Sized>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StepModel for Watched {
    fn vocab_size(&self) -> usize {
        lock(&self.model).vocab_size()
    }

    fn context_length(&self) -> usize {
        lock(&self.model).context_length()
    }

    fn blocks(&self) -> usize {
        lock(&self.model).blocks()
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        self.watch(rows, |model| model.step(rows))
    }

    fn waited(&self) -> Option<Duration> {
        lock(&self.model).waited()
    }

    fn draws(&self) -> bool {
        lock(&self.model).draws()
    }

    fn draw(&mut self, rows: &[StepRow], draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        self.watch(rows, |model| model.draw(rows, draws))
    }
}

/// Blocks that a scenario takes of the cache.
pub(super) fn blocks(scenario: Scenario, slots: usize, prompt: usize) -> usize {
    match scenario {
        Scenario::Lengths => slots * (prompt + LONGEST).div_ceil(BLOCK),
        Scenario::LongPrompt => BESIDE * (prompt + NEW_BESIDE).div_ceil(BLOCK) + (LONG_PROMPT + 1).div_ceil(BLOCK),
    }
}

/// An engine with its random requests.
pub(super) struct Bench {
    model: Watched,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
    random: ChaCha8Rng,
}

impl Bench {
    pub(super) fn new(model: Watched, tokenizer: Arc<Tokenizer>, config: EngineConfig) -> Self {
        Self {
            model,
            tokenizer,
            config,
            random: ChaCha8Rng::seed_from_u64(SEED),
        }
    }

    pub(super) fn start(&self) -> (EngineHandle, mpsc::Receiver<EngineEvent>) {
        let (sender, events) = mpsc::channel(64);
        let model = Box::new(self.model.clone());
        (
            Engine::start(model, self.tokenizer.clone(), self.config, sender),
            events,
        )
    }

    /// A greedy job of exactly `new` tokens.
    pub(super) fn job(&mut self, prompt: usize, new: usize) -> EngineJob {
        let vocabulary = self.model.vocab_size() as u32;
        let never = self.tokenizer.end_tokens().iter().map(|token| (*token, -100.0));
        EngineJob {
            key: JobKey {
                id: JobId::new(),
                fence: 1,
            },
            prompt: (0..prompt).map(|_| self.random.random_range(0..vocabulary)).collect(),
            params: GenerationParams {
                max_tokens: new as u32,
                temperature: 0.0,
                logit_bias: never.collect(),
                ..GenerationParams::default()
            },
            share: Share::default(),
        }
    }

    /// New tokens of a request: geometric, at least one.
    fn length(&mut self) -> usize {
        let uniform: f64 = self.random.random();
        let length = (1.0 - uniform).ln() / (1.0 - 1.0 / MEAN).ln();
        (length.ceil() as usize).clamp(1, LONGEST)
    }
}

/// Measures `lengths` with `config.slots` slots and prompts of `prompt` tokens.
pub(super) async fn lengths(
    model: Box<dyn StepModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
    prompt: usize,
) -> anyhow::Result<Lengths> {
    let slots = config.slots;
    ensure!(
        prompt + LONGEST <= model.context_length(),
        "--prompt-tokens {prompt} and {LONGEST} new tokens are more than the model's context"
    );
    let mut bench = Bench::new(Watched::new(model), tokenizer, config);
    let lengths: Vec<usize> = (0..REQUESTS * slots).map(|_| bench.length()).collect();
    let jobs: Vec<_> = lengths.iter().map(|new| bench.job(prompt, *new)).collect();
    let tokens: usize = lengths.iter().sum();

    let (engine, mut events) = bench.start();
    let begin = Instant::now();
    let submit = async {
        for job in &jobs {
            engine.submit(job.clone()).await?;
        }
        anyhow::Ok(())
    };
    let (submitted, ended) = tokio::join!(submit, endings(&mut events, jobs.len()));
    submitted.and(ended)?;
    let continuous = begin.elapsed();
    let steps = bench.model.take_steps();
    let until = steps.iter().rposition(|step| step.admits).map_or(0, |last| last + 1);
    let drawn: usize = steps[..until].iter().map(|step| step.drawn).sum();
    let in_model: Duration = steps.iter().map(|step| step.ended - step.began).sum();

    let begin = Instant::now();
    let mut slot_steps = 0;
    for (jobs, lengths) in jobs.chunks(slots).zip(lengths.chunks(slots)) {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        slot_steps += longest * slots;
        run_batch(&mut bench.model, jobs, longest)?;
    }
    let by_batches = begin.elapsed();
    let rate = |time: Duration| tokens as f64 / time.as_secs_f64();
    Ok(Lengths {
        slots,
        requests: jobs.len(),
        new_tokens: tokens,
        continuous_tokens_per_second: rate(continuous),
        static_tokens_per_second: rate(by_batches),
        ratio: rate(continuous) / rate(by_batches),
        continuous_useful: drawn as f64 / (until * slots) as f64,
        static_useful: tokens as f64 / slot_steps as f64,
        model_share: in_model.as_secs_f64() / continuous.as_secs_f64(),
    })
}

/// All prompts at once and then `longest` tokens of every row, whether it still needs them or not. What is read after the
/// prompt does not matter to the time.
fn run_batch(model: &mut Watched, jobs: &[EngineJob], longest: usize) -> anyhow::Result<()> {
    let mut free = 0..model.blocks() as u32;
    let row = |job: &EngineJob| StepRow {
        blocks: free
            .by_ref()
            .take((job.prompt.len() + longest).div_ceil(BLOCK))
            .collect(),
        position: 0,
        tokens: job.prompt.clone(),
        wants_logits: true,
    };
    let mut rows: Vec<_> = jobs.iter().map(row).collect();
    for _ in 0..longest {
        std::hint::black_box(model.step(&rows)?);
        for row in &mut rows {
            row.position += row.tokens.len();
            row.tokens.truncate(1);
        }
    }
    Ok(())
}

/// Measures `long-prompt` with prompts of `prompt` tokens beside.
pub(super) async fn long_prompt(
    model: Box<dyn StepModel>,
    tokenizer: Arc<Tokenizer>,
    config: EngineConfig,
    prompt: usize,
) -> anyhow::Result<LongPrompt> {
    ensure!(
        LONG_PROMPT.max(prompt + NEW_BESIDE) < model.context_length(),
        "the model's context is too short for this"
    );
    let slots = config.slots.max(BESIDE + 1);
    let mut bench = Bench::new(Watched::new(model), tokenizer, EngineConfig { slots, ..config });
    let (warm, pause) = bench.model.pause();
    let (engine, mut events) = bench.start();
    for _ in 0..BESIDE {
        engine.submit(bench.job(prompt, NEW_BESIDE)).await?;
    }
    warm.await.context("the engine stopped")?;
    let arrived = Instant::now();
    engine.submit(bench.job(LONG_PROMPT, 1)).await?;
    drop(pause);
    endings(&mut events, BESIDE + 1).await?;
    let steps = bench.model.take_steps();
    let gaps = |wanted: &dyn Fn(&Step) -> bool| -> Vec<Duration> {
        let pairs = steps
            .windows(2)
            .filter(|pair| pair[0].drawn >= BESIDE && wanted(&pair[1]));
        pairs.map(|pair| pair[1].ended - pair[0].ended).collect()
    };
    let alone = gaps(&|step| step.tokens == BESIDE && step.rows == BESIDE);
    let beside = gaps(&|step| step.rows == BESIDE + 1);
    let worst = beside
        .into_iter()
        .max()
        .context("the rows had ended before the long prompt came")?;
    let first_token = steps.iter().find(|step| step.drawn == BESIDE + 1);
    let first_token = first_token.context("the rows had ended before the long prompt was read")?;
    let (millis, usual) = (|time: Duration| time.as_secs_f64() * 1e3, median(alone));
    Ok(LongPrompt {
        rows: BESIDE,
        prompt_tokens: LONG_PROMPT,
        median_gap_ms: millis(usual),
        worst_gap_ms: millis(worst),
        ratio: millis(worst) / millis(usual),
        time_to_first_token_ms: millis(first_token.ended - arrived),
    })
}

/// Waits until so many jobs have completed.
pub(super) async fn endings(events: &mut mpsc::Receiver<EngineEvent>, count: usize) -> anyhow::Result<()> {
    let mut left = count;
    while left > 0 {
        match events.recv().await.context("the engine stopped")? {
            EngineEvent::Ended(_, Ending::Completed(_), _) => left -= 1,
            EngineEvent::Ended(_, other, _) => bail!("a request did not complete: {other:?}"),
            EngineEvent::Started(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use burn::backend::flex::FlexDevice;
    use claimcheck_common::domain::Dtype;

    use super::*;
    use crate::gpt2::{Cpu, Gpt2, Gpt2Config, Gpt2Runner, byte_tokenizer_json};

    pub(in super::super) fn small(scenario: Scenario, slots: usize) -> (Box<dyn StepModel>, Arc<Tokenizer>) {
        let config = Gpt2Config {
            n_positions: 1024,
            ..Gpt2Config::named("tiny").unwrap()
        };
        let tokenizer = Tokenizer::from_bytes(byte_tokenizer_json(config.vocab_size).as_bytes()).unwrap();
        let model = Gpt2::<Cpu>::random(config, SEED, Dtype::F32, &FlexDevice);
        let runner = Gpt2Runner::new(model, blocks(scenario, slots, 8));
        (Box::new(runner), Arc::new(tokenizer))
    }

    const fn config(slots: usize) -> EngineConfig {
        EngineConfig {
            slots,
            token_budget: 128,
            prefix_cache: true,
        }
    }

    #[tokio::test]
    async fn rows_that_join_and_leave_waste_fewer_steps_than_batches_that_wait() {
        let (model, tokenizer) = small(Scenario::Lengths, 4);
        let seen = lengths(model, tokenizer, config(4), 8).await.unwrap();
        assert_eq!(seen.requests, 32);
        assert!(
            seen.continuous_useful > 0.9 && seen.continuous_useful <= 1.0,
            "{seen:?}"
        );
        assert!(seen.static_useful < seen.continuous_useful, "{seen:?}");
        assert!(seen.model_share > 0.0 && seen.model_share <= 1.0, "{seen:?}");
    }

    #[tokio::test]
    async fn a_long_prompt_is_read_beside_running_rows() {
        let (model, tokenizer) = small(Scenario::LongPrompt, 17);
        let seen = long_prompt(model, tokenizer, config(17), 8).await.unwrap();
        assert!(seen.median_gap_ms > 0.0 && seen.worst_gap_ms > 0.0 && seen.time_to_first_token_ms > 0.0);
    }
}
