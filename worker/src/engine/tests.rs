//! The engine as its callers see it: through the handle, on a real (small, random) model.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use burn::backend::flex::FlexDevice;
use claimcheck_common::domain::{Class, Completion, Dtype, FinishReason, GenerationParams, JobId, JobKey, Share};
use claimcheck_common::tokenizer::Tokenizer;
use futures::FutureExt;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use super::{Ending, Engine, EngineConfig, EngineEvent, EngineHandle, EngineJob};
use crate::gpt2::{Cpu, Gpt2, Gpt2Config, Gpt2Runner, StepError, StepModel, StepRow, byte_tokenizer_json};

pub(super) const LIMIT: Duration = Duration::from_mins(1);
pub(super) const VOCABULARY: usize = 260;
pub(super) const CONTEXT: usize = 128;
/// Blocks that are enough for what these tests run side by side.
pub(super) const PLENTY: usize = 400;

/// One token for each byte; 256 ends a text.
fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(byte_tokenizer_json(VOCABULARY).as_bytes()).unwrap())
}

/// A cache of so many blocks of 32 tokens, and as many as one sequence needs at least.
pub(super) fn model(blocks: usize) -> Box<dyn StepModel> {
    let config = Gpt2Config {
        vocab_size: VOCABULARY,
        n_positions: CONTEXT,
        n_embd: 32,
        n_layer: 2,
        n_head: 2,
        ..Gpt2Config::named("tiny").unwrap()
    };
    Box::new(Gpt2Runner::new(
        Gpt2::<Cpu>::random(config, 3, Dtype::F32, &FlexDevice),
        blocks,
    ))
}

fn start(model: Box<dyn StepModel>, slots: usize) -> (EngineHandle, mpsc::Receiver<EngineEvent>) {
    start_as(model, config(slots, 128))
}

pub(super) fn start_as(model: Box<dyn StepModel>, config: EngineConfig) -> (EngineHandle, mpsc::Receiver<EngineEvent>) {
    let (events, received) = mpsc::channel(8);
    (Engine::start(model, tokenizer(), config, events), received)
}

pub(super) const fn config(slots: usize, token_budget: usize) -> EngineConfig {
    EngineConfig {
        slots,
        token_budget,
        prefix_cache: true,
    }
}

pub(super) fn job(number: u64) -> EngineJob {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    // Some begin alike.
    let common = 0..[0, 0, 33, 70][random.random_range(0..4)];
    let own: Vec<_> = (0..random.random_range(1..40))
        .map(|_| random.random_range(0..256))
        .collect();
    let prompt = common.chain(own).collect();
    let params = GenerationParams {
        max_tokens: random.random_range(1..30),
        temperature: [0.0, 0.7, 1.0, 1.5][random.random_range(0..4)],
        top_p: [1.0, 0.9][random.random_range(0..2)],
        top_k: [None, Some(20)][random.random_range(0..2)],
        n: random.random_range(1..4),
        stop: [vec![], vec!["e".to_owned()]][random.random_range(0..2)].clone(),
        seed: number.cast_signed(),
        min_p: [0.0, 0.02][random.random_range(0..2)],
        repetition_penalty: [1.0, 1.3][random.random_range(0..2)],
        presence_penalty: [0.0, 0.8, -0.5][random.random_range(0..3)],
        frequency_penalty: [0.0, 0.4][random.random_range(0..2)],
        logit_bias: [vec![], vec![(101, 3.0), (7, -100.0)]][random.random_range(0..2)]
            .iter()
            .copied()
            .collect(),
        logprobs: [None, Some(0), Some(5)][random.random_range(0..3)],
        stop_token_ids: [vec![], vec![104, 3]][random.random_range(0..2)].clone(),
    };
    EngineJob {
        key: JobKey {
            id: JobId::new(),
            fence: 1,
        },
        prompt,
        params,
        share: Share::default(),
    }
}

pub(super) async fn next_ending(events: &mut mpsc::Receiver<EngineEvent>) -> (JobKey, Ending) {
    loop {
        match tokio::time::timeout(LIMIT, events.recv())
            .await
            .expect("an event in time")
            .expect("a living engine")
        {
            EngineEvent::Started(_) => {}
            EngineEvent::Ended(key, ending, _) => return (key, ending),
        }
    }
}

async fn run_all(jobs: &[EngineJob], slots: usize) -> HashMap<JobKey, Completion> {
    run_all_on(model(PLENTY), jobs, config(slots, 128)).await
}

pub(super) async fn run_all_on(
    model: Box<dyn StepModel>,
    jobs: &[EngineJob],
    config: EngineConfig,
) -> HashMap<JobKey, Completion> {
    let (engine, mut events) = start_as(model, config);
    complete_all(&engine, &mut events, jobs).await
}

/// Hands all jobs in and waits until each has completed.
pub(super) async fn complete_all(
    engine: &EngineHandle,
    events: &mut mpsc::Receiver<EngineEvent>,
    jobs: &[EngineJob],
) -> HashMap<JobKey, Completion> {
    let submit = async {
        for job in jobs {
            engine.submit(job.clone()).await.unwrap();
        }
    };
    let collect = async {
        let mut done = HashMap::new();
        while done.len() < jobs.len() {
            let (key, ending) = next_ending(events).await;
            let Ending::Completed(completion) = ending else {
                panic!("{ending:?}")
            };
            assert!(done.insert(key, completion).is_none(), "{key} ended twice");
        }
        done
    };
    tokio::join!(submit, collect).1
}

/// A model whose steps somebody looks at, and may refuse, before they are computed.
struct Watched<F> {
    inner: Box<dyn StepModel>,
    look: F,
}

impl<F: FnMut(&[StepRow]) -> Result<(), StepError> + Send> StepModel for Watched<F> {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn blocks(&self) -> usize {
        self.inner.blocks()
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        (self.look)(rows)?;
        self.inner.step(rows)
    }
}

/// Counts the tokens that are computed.
fn counting(blocks: usize) -> (Arc<AtomicUsize>, Box<dyn StepModel>) {
    let tokens = Arc::<AtomicUsize>::default();
    let counted = tokens.clone();
    let look = move |rows: &[StepRow]| {
        counted.fetch_add(rows.iter().map(|row| row.tokens.len()).sum(), Ordering::Relaxed);
        Ok(())
    };
    let inner = model(blocks);
    (tokens, Box::new(Watched { inner, look }))
}

#[tokio::test]
async fn sixty_jobs_give_the_same_output_alone_in_company_after_preemption_and_with_a_cached_prefix() {
    let mut jobs: Vec<_> = (0..60).map(job).collect();
    let mut alone = HashMap::new();
    for job in &jobs {
        let without = EngineConfig {
            prefix_cache: false,
            ..config(5, 128)
        };
        alone.extend(run_all_on(model(PLENTY), std::slice::from_ref(job), without).await);
    }
    assert!(alone.values().any(|completion| completion.choices.len() > 1));
    let listed = |completion: &Completion| completion.choices.iter().any(|choice| choice.logprobs.is_some());
    assert!(alone.values().any(listed) && !alone.values().all(listed));
    let usage = |completion: &Completion| {
        let choices = completion.choices.len();
        completion.usage.completion_tokens as usize + choices * (completion.usage.prompt_tokens as usize - 1)
    };
    let each_once: usize = alone.values().map(usage).sum();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    // Blocks for all; for all but without what was computed before; for fewer than want to run.
    for (slots, budget, blocks, prefix_cache) in [
        (4, 20, PLENTY, true),
        (16, 128, PLENTY, false),
        (64, 32, PLENTY, true),
        (16, 128, 7, false),
        (16, 128, 10, true),
    ] {
        jobs.shuffle(&mut random);
        let (computed, model) = counting(blocks);
        let config = EngineConfig {
            prefix_cache,
            ..config(slots, budget)
        };
        let what = format!("{slots} slots, budget {budget}, {blocks} blocks, prefix cache {prefix_cache}");
        assert_eq!(run_all_on(model, &jobs, config).await, alone, "{what}");
        let computed = computed.load(Ordering::Relaxed);
        match (blocks, prefix_cache) {
            (PLENTY, true) => assert!(computed < each_once, "{what}: nothing was found"),
            (PLENTY, false) => assert_eq!(computed, each_once, "{what}"),
            (_, true) => {}
            (_, false) => assert!(computed > each_once, "{what}: nobody had to make room"),
        }
    }
}

#[tokio::test]
async fn a_device_without_room_for_all_gets_smaller_steps_and_all_jobs_the_same_answers() {
    let jobs: Vec<_> = (0..40).map(job).collect();
    let expected = run_all(&jobs, 16).await;
    let refused = Arc::<AtomicUsize>::default();
    let counted = refused.clone();
    let look = move |rows: &[StepRow]| {
        if rows.len() > 3 {
            counted.fetch_add(1, Ordering::Relaxed);
            return Err(StepError::Device("out of memory".to_owned()));
        }
        Ok(())
    };
    let inner = model(PLENTY);
    let small = Box::new(Watched { inner, look });
    assert_eq!(run_all_on(small, &jobs, config(16, 128)).await, expected);
    // Some hundreds of steps: a few find out, and one of many tries again.
    let refused = refused.load(Ordering::Relaxed);
    assert!((1..20).contains(&refused), "{refused} steps were refused");
}

#[tokio::test]
async fn choices_are_drawn_from_one_prefill() {
    let mut job = plain_job(1, 2);
    job.prompt = (0..100).collect();
    (job.params.n, job.params.temperature) = (3, 1.0);
    let (computed, model) = counting(PLENTY);
    run_all_on(model, std::slice::from_ref(&job), config(8, 128)).await;
    // The prompt once; what is no whole block for the other two; a second token each.
    assert_eq!(computed.load(Ordering::Relaxed), 100 + 2 * 4 + 3);
}

#[tokio::test]
async fn a_job_says_when_it_starts_and_counts_its_tokens() {
    let (engine, mut events) = start(model(PLENTY), 2);
    let mut job = job(1);
    (
        job.params.max_tokens,
        job.params.n,
        job.params.temperature,
        job.params.stop,
    ) = (5, 2, 0.0, vec![]);
    job.params.stop_token_ids.clear();
    engine.submit(job.clone()).await.unwrap();
    assert_eq!(events.recv().await, Some(EngineEvent::Started(job.key)));
    let (key, ending) = next_ending(&mut events).await;
    let Ending::Completed(completion) = ending else {
        panic!("{ending:?}")
    };
    assert_eq!(key, job.key);
    assert_eq!(completion.usage.prompt_tokens as usize, job.prompt.len());
    assert_eq!(completion.usage.completion_tokens, 10);
    assert_eq!(completion.choices.len(), 2);
    assert!(
        completion
            .choices
            .iter()
            .all(|choice| choice.finish_reason == Some(FinishReason::Length))
    );
}

#[tokio::test]
async fn a_stop_token_ends_the_text_and_is_counted_but_not_shown() {
    let mut first = plain_job(1, 8);
    first.params.logprobs = Some(0);
    let free = run_all(std::slice::from_ref(&first), 1)
        .await
        .remove(&first.key)
        .unwrap();
    let names = free.choices[0].logprobs.as_ref().unwrap().tokens.clone();
    let id = (0..VOCABULARY as u32)
        .find(|id| tokenizer().token_name(*id) == names[3])
        .unwrap();
    let before = names.iter().position(|name| *name == names[3]).unwrap();
    first.params.stop_token_ids = vec![id];
    let stopped = run_all(std::slice::from_ref(&first), 1)
        .await
        .remove(&first.key)
        .unwrap();
    assert_eq!(stopped.usage.completion_tokens as usize, before + 1);
    assert_eq!(stopped.choices[0].finish_reason, Some(FinishReason::Stop));
    let listed = stopped.choices[0].logprobs.as_ref().unwrap();
    assert_eq!(listed.tokens, names[..=before]);
    let shown: Vec<u8> = free.choices[0].text.bytes().collect();
    assert!(
        shown.starts_with(
            stopped.choices[0]
                .text
                .trim_end_matches(char::REPLACEMENT_CHARACTER)
                .as_bytes()
        )
    );
}

#[tokio::test]
async fn log_probabilities_are_listed_for_every_token_and_do_not_change_the_text() {
    let mut job = job(4);
    (
        job.params.temperature,
        job.params.n,
        job.params.stop,
        job.params.stop_token_ids,
    ) = (1.0, 1, vec![], vec![]);
    job.params.logprobs = None;
    let bare = run_all(std::slice::from_ref(&job), 1).await.remove(&job.key).unwrap();
    job.params.logprobs = Some(3);
    let listing = run_all(std::slice::from_ref(&job), 1).await.remove(&job.key).unwrap();
    let (bare, choice) = (&bare.choices[0], &listing.choices[0]);
    assert_eq!((bare.logprobs.as_ref(), &bare.text), (None, &choice.text));
    let listed = choice.logprobs.as_ref().unwrap();
    let count = listing.usage.completion_tokens as usize;
    assert_eq!((listed.tokens.len(), listed.token_logprobs.len()), (count, count));
    assert_eq!((listed.top_logprobs.len(), listed.text_offset.len()), (count, count));
    for (place, top) in listed.top_logprobs.iter().enumerate() {
        assert!(
            (3..=4).contains(&top.len()),
            "three, and the drawn one if it is not among them"
        );
        assert_eq!(
            top[&listed.tokens[place]].to_bits(),
            listed.token_logprobs[place].to_bits()
        );
        assert!(listed.token_logprobs[place] <= 0.0);
    }
    assert_eq!(listed.text_offset[0], 0);
    assert!(listed.text_offset.is_sorted());
    assert!(*listed.text_offset.last().unwrap() as usize <= choice.text.chars().count());
}

#[tokio::test]
async fn generation_ends_where_the_context_does() {
    let mut job = job(2);
    (
        job.params.max_tokens,
        job.params.n,
        job.params.temperature,
        job.params.stop,
    ) = (4096, 1, 0.0, vec![]);
    job.params.stop_token_ids.clear();
    let done = run_all(std::slice::from_ref(&job), 1).await;
    assert_eq!(done[&job.key].usage.total_tokens as usize, CONTEXT);
    assert_eq!(done[&job.key].choices[0].finish_reason, Some(FinishReason::Length));
}

#[tokio::test]
async fn a_prompt_that_this_model_cannot_take_fails_alone() {
    let (engine, mut events) = start(model(PLENTY), 2);
    let mut biased = job(3);
    biased.params.logit_bias = [(9999, 1.0)].into();
    for prompt in [Some(vec![]), Some(vec![1; CONTEXT]), Some(vec![9999]), None] {
        let bad = match prompt {
            Some(prompt) => EngineJob { prompt, ..job(3) },
            None => biased.clone(),
        };
        engine.submit(bad.clone()).await.unwrap();
        let (key, ending) = next_ending(&mut events).await;
        assert_eq!(key, bad.key);
        assert!(matches!(ending, Ending::Failed(error) if error.kind == "invalid_request_error"));
    }
}

/// A model that waits before each step until the test lets it, and breaks on one token.
struct Scripted {
    inner: Box<dyn StepModel>,
    gate: std::sync::mpsc::Receiver<()>,
}

const POISON: u32 = 13;
const NAN: u32 = 14;
/// The model leaves out logits that it owes: a bug that shows outside of it.
const SHORT: u32 = 15;

impl StepModel for Scripted {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn blocks(&self) -> usize {
        self.inner.blocks()
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        // A gate whose sender is gone stands open.
        let _ = self.gate.recv();
        assert!(!rows.iter().any(|row| row.tokens.contains(&POISON)), "poison");
        let mut logits = self.inner.step(rows)?;
        for (row, logits) in rows
            .iter()
            .filter(|row| row.wants_logits)
            .zip(logits.chunks_exact_mut(VOCABULARY))
        {
            if row.tokens.contains(&NAN) {
                logits[7] = f32::NAN;
            }
        }
        if rows.iter().any(|row| row.tokens.contains(&SHORT)) {
            logits.clear();
        }
        Ok(logits)
    }
}

fn scripted() -> (std::sync::mpsc::Sender<()>, Box<Scripted>) {
    let (open, gate) = std::sync::mpsc::channel();
    (
        open,
        Box::new(Scripted {
            inner: model(PLENTY),
            gate,
        }),
    )
}

pub(super) fn plain_job(token: u32, max_tokens: u32) -> EngineJob {
    let mut job = job(5);
    job.prompt = vec![token];
    job.params = GenerationParams {
        max_tokens,
        temperature: 0.0,
        n: 1,
        stop: vec![],
        top_k: None,
        top_p: 1.0,
        seed: 0,
        ..GenerationParams::default()
    };
    job
}

#[tokio::test]
async fn a_poisoned_and_a_non_numeric_row_fail_alone_and_their_neighbours_finish() {
    let (open, model) = scripted();
    let (engine, mut events) = start(model, 8);
    let jobs: Vec<_> = [1, POISON, 2, NAN, 3]
        .into_iter()
        .map(|token| plain_job(token, 1))
        .collect();
    for job in &jobs {
        engine.submit(job.clone()).await.unwrap();
    }
    drop(open);
    let mut codes = HashMap::new();
    for _ in &jobs {
        let (key, ending) = next_ending(&mut events).await;
        codes.insert(
            key,
            if let Ending::Failed(error) = ending {
                error.code
            } else {
                "fine".to_owned()
            },
        );
    }
    let codes: Vec<_> = jobs.iter().map(|job| codes[&job.key].as_str()).collect();
    assert_eq!(codes, ["fine", "engine_error", "fine", "numerical_error", "fine"]);
}

#[tokio::test]
async fn after_a_panic_the_engine_gives_up_the_jobs_that_it_had_and_takes_others() {
    let (open, model) = scripted();
    let (engine, mut events) = start(model, 8);
    let jobs = [plain_job(1, 50), plain_job(SHORT, 50), plain_job(2, 50)];
    for job in &jobs {
        engine.submit(job.clone()).await.unwrap();
    }
    drop(open);
    let mut lost: Vec<_> = jobs.iter().map(|job| job.key).collect();
    for _ in &jobs {
        let (key, ending) = next_ending(&mut events).await;
        assert_eq!(ending, Ending::Lost);
        lost.retain(|other| *other != key);
    }
    assert_eq!(lost, []);
    let after = plain_job(3, 2);
    engine.submit(after.clone()).await.unwrap();
    assert!(matches!(next_ending(&mut events).await, (key, Ending::Completed(_)) if key == after.key));
}

#[tokio::test]
async fn a_step_that_does_not_end_is_noticed_and_an_idle_engine_does_not_hang() {
    let (open, model) = scripted();
    let (engine, _events) = start(model, 1);
    assert!(engine.hung(Duration::from_millis(20)).now_or_never().is_none());
    engine.submit(plain_job(1, 50)).await.unwrap();
    tokio::time::timeout(LIMIT, engine.hung(Duration::from_millis(20)))
        .await
        .expect("the gate is shut");
    drop(open);
}

#[tokio::test]
async fn a_cancelled_job_stops_at_the_next_step_and_keeps_its_tokens() {
    let (open, model) = scripted();
    let (engine, mut events) = start(model, 1);
    let (running, waiting) = (plain_job(1, 50), plain_job(2, 50));
    engine.submit(running.clone()).await.unwrap();
    engine.submit(waiting.clone()).await.unwrap();
    for _ in 0..3 {
        open.send(()).unwrap();
    }
    assert_eq!(events.recv().await, Some(EngineEvent::Started(running.key)));
    engine.cancel(running.key);
    engine.cancel(waiting.key);
    drop(open);
    let mut tokens = HashMap::new();
    for _ in 0..2 {
        let (key, ending) = next_ending(&mut events).await;
        let Ending::Stopped(completion) = ending else {
            panic!("{ending:?}")
        };
        tokens.insert(key, completion.usage.completion_tokens);
    }
    assert!(tokens[&running.key] < 50);
    assert_eq!(tokens[&waiting.key], 0);
    let after = plain_job(3, 2);
    engine.submit(after.clone()).await.unwrap();
    assert!(
        matches!(next_ending(&mut events).await, (key, Ending::Completed(_)) if key == after.key),
        "the slot is free"
    );
}

/// With one slot, in which a job stands before a shut gate: the job, the gate, the engine.
async fn occupied() -> (
    JobKey,
    std::sync::mpsc::Sender<()>,
    EngineHandle,
    mpsc::Receiver<EngineEvent>,
) {
    let (open, model) = scripted();
    let (engine, mut events) = start(model, 1);
    let first = of_class(Class::Batch);
    engine.submit(first.clone()).await.unwrap();
    assert_eq!(events.recv().await, Some(EngineEvent::Started(first.key)));
    (first.key, open, engine, events)
}

fn of_class(class: Class) -> EngineJob {
    let mut job = plain_job(1, 3);
    job.share.class = class;
    job
}

#[tokio::test]
async fn an_interactive_job_passes_by_all_batch_jobs_that_wait() {
    let (first, open, engine, mut events) = occupied().await;
    let jobs = [Class::Batch, Class::Batch, Class::Interactive].map(of_class);
    let keys: Vec<_> = jobs.iter().map(|job| job.key).collect();
    let submitting = tokio::spawn(async move {
        for job in jobs {
            engine.submit(job).await.unwrap();
        }
        engine
    });
    // It runs until all are with the engine, or until the engine takes no more.
    tokio::task::yield_now().await;
    drop(open);
    let mut ended = Vec::new();
    for _ in 0..=keys.len() {
        ended.push(next_ending(&mut events).await.0);
    }
    assert_eq!(ended, [first, keys[2], keys[0], keys[1]]);
    submitting.await.unwrap();
}

#[tokio::test]
async fn a_job_is_cancelled_wherever_it_waits() {
    let (first, open, engine, mut events) = occupied().await;
    let waiting: Vec<_> = (1..EngineConfig::most_jobs(1))
        .map(|_| of_class(Class::Batch))
        .collect();
    for job in &waiting {
        let taken = engine.submit(job.clone()).now_or_never();
        assert_eq!(taken, Some(Ok(())), "there is room for all that a worker has in hand");
    }
    let last = waiting.last().unwrap().key;
    engine.cancel(last);
    open.send(()).unwrap();
    let (key, ending) = next_ending(&mut events).await;
    assert!(key == last && matches!(ending, Ending::Stopped(_)), "{ending:?}");
    drop(open);
    assert_eq!(next_ending(&mut events).await.0, first);
}

#[tokio::test]
async fn the_engine_takes_no_more_jobs_than_it_has_places_for() {
    let (_, open, engine, mut events) = occupied().await;
    let submit = || tokio::time::timeout(LIMIT, engine.submit(of_class(Class::Batch)));
    let inside = EngineConfig::most_jobs(1);
    // As many may stand at the door while a step goes on.
    for _ in 0..inside {
        submit().await.expect("there is room at the door").unwrap();
    }
    // It ends, and those come in for whom there is a place.
    open.send(()).unwrap();
    for _ in 1..inside {
        submit().await.expect("there is room again").unwrap();
    }
    assert!(submit().now_or_never().is_none(), "and now there is none");
    drop(open);
    let next = submit();
    let (submitted, ended) = tokio::join!(next, next_ending(&mut events));
    submitted.expect("a job that ends makes room").unwrap();
    assert!(matches!(ended.1, Ending::Completed(_)), "{ended:?}");
}

#[tokio::test]
async fn a_text_ends_with_any_of_the_tokens_that_the_model_names() {
    let tokenizer = Arc::new(tokenizer().as_ref().clone().with_end_tokens(vec![7, 9]));
    let (sender, mut events) = mpsc::channel(8);
    let engine = Engine::start(model(PLENTY), tokenizer, config(2, 128), sender);
    let stop = (FinishReason::Stop, 1);
    let length = (FinishReason::Length, 5);
    // The last one is what ends a text of a model that names nothing.
    for (token, expected) in [(7, stop), (9, stop), (8, length), (256, length)] {
        let mut job = plain_job(1, 5);
        job.params.logit_bias = [(token, 100.0)].into();
        engine.submit(job).await.unwrap();
        let (_, ending) = next_ending(&mut events).await;
        let Ending::Completed(completion) = ending else {
            panic!("{ending:?}")
        };
        let choice = &completion.choices[0];
        assert_eq!(
            (choice.finish_reason, choice.tokens.len()),
            (Some(expected.0), expected.1),
            "{token}"
        );
        assert_eq!(choice.text.is_empty(), expected == stop || token == 256, "{token}");
    }
}

#[tokio::test]
async fn the_thread_ends_when_its_last_handle_is_dropped_however_many_jobs_wait() {
    let (open, model) = scripted();
    let (engine, mut events) = start(model, 1);
    // One runs, one waits inside, one at the door.
    engine.submit(plain_job(1, 50)).await.unwrap();
    engine.submit(plain_job(2, 50)).await.unwrap();
    open.send(()).unwrap();
    engine.submit(plain_job(3, 50)).await.unwrap();
    drop(engine);
    drop(open);
    let ended = async {
        let mut ended = 0;
        while let Some(event) = events.recv().await {
            ended += usize::from(matches!(event, EngineEvent::Ended(..)));
        }
        ended
    };
    let ended = tokio::time::timeout(LIMIT, ended).await.expect("the engine ends");
    assert_eq!(ended, 0, "nobody is left to hear of these jobs");
}

#[tokio::test]
async fn a_handle_hears_of_the_threads_end() {
    let (engine, events) = start(model(PLENTY), 1);
    drop(events);
    engine.submit(plain_job(1, 50)).await.unwrap();
    tokio::time::timeout(LIMIT, engine.stopped())
        .await
        .expect("nobody reads the events, so the engine ends");
    assert!(engine.submit(plain_job(1, 1)).await.is_err());
}
