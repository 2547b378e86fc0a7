//! Our numbers are those of `transformers`: `fixtures/make_parity.py` writes what is compared here.

use std::path::{Path, PathBuf};

use burn::backend::flex::FlexDevice;
use claimcheck_common::config::{HubConfig, WeightsCacheConfig};
use claimcheck_common::domain::{DeviceChoice, Dtype, GenerationParams, JobId, JobKey, Order, Share};
use claimcheck_common::tokenizer::Tokenizer;
use claimcheck_worker::engine::{Ending, Engine, EngineConfig, EngineEvent, EngineJob};
use claimcheck_worker::gpt2::{BLOCK, Cpu, Gpt2, Gpt2Runner, ModelFiles, StepModel, StepRow};
use claimcheck_worker::served_model::ModelChoice;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    /// Of the last positions.
    logits: Vec<Vec<f32>>,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Bundled {
    prompts: Vec<BundledPrompt>,
    texts: Vec<Encoded>,
}

#[derive(Deserialize)]
struct BundledPrompt {
    prompt: String,
    ids: Vec<u32>,
    logits: Vec<f32>,
    text: String,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The files of a random model; it has no tokenizer.
pub(crate) fn files_in(folder: &Path) -> ModelFiles {
    ModelFiles {
        name: "random".to_owned(),
        commit: None,
        config: folder.join("config.json"),
        weights: folder.join("model.safetensors"),
        tokenizer: folder.join("tokenizer.json"),
    }
}

pub(crate) fn bundled_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/models/tiny")
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

pub(crate) fn runner(files: &ModelFiles) -> impl StepModel + use<> {
    let model = Gpt2::<Cpu>::load(files, Dtype::F32, &FlexDevice).unwrap();
    let context = model.config().n_positions;
    Gpt2Runner::new(model, 2 * context.div_ceil(BLOCK))
}

/// Every other block, from the last to the first, so that a mistake in the addressing of the cache shows.
fn blocks(model: &impl StepModel) -> Vec<u32> {
    (0..model.blocks() as u32).rev().step_by(2).collect()
}

fn step(model: &mut impl StepModel, position: usize, tokens: &[u32]) -> Vec<f32> {
    let row = StepRow {
        blocks: blocks(model),
        position,
        tokens: tokens.to_vec(),
        wants_logits: true,
    };
    model.step(&[row]).unwrap()
}

/// Feeds `tokens` in chunks of `size` and answers the last logits.
pub(crate) fn prefill(model: &mut impl StepModel, tokens: &[u32], size: usize) -> Vec<f32> {
    let mut logits = Vec::new();
    for (at, chunk) in tokens.chunks(size).enumerate() {
        logits = step(model, at * size, chunk);
    }
    logits
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.unwrap() as u32
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{what}: off by {worst}");
}

fn check_random(name: &str) {
    let folder = fixtures().join("parity").join(name);
    let expected: Expected = read(&folder.join("expected.json"));
    let mut model = runner(&files_in(&folder));
    let first = expected.ids.len() - expected.logits.len();
    prefill(&mut model, &expected.ids[..first], 7);
    for (offset, theirs) in expected.logits.iter().enumerate() {
        let at = first + offset;
        let ours = step(&mut model, at, &expected.ids[at..=at]);
        assert_close(&ours, theirs, &format!("{name}, position {at} by a step"));
    }
    let ours = prefill(&mut model, &expected.ids, expected.ids.len());
    assert_close(&ours, expected.logits.last().unwrap(), &format!("{name}, at once"));

    let mut text = expected.prompt.clone();
    let mut token = argmax(&prefill(&mut model, &text, 5));
    let mut greedy = vec![token];
    while greedy.len() < expected.greedy.len() {
        let logits = step(&mut model, text.len(), &[token]);
        text.push(token);
        token = argmax(&logits);
        greedy.push(token);
    }
    assert_eq!(greedy, expected.greedy, "{name}");
}

#[test]
fn a_random_model_computes_what_transformers_computes() {
    check_random("plain");
}

#[test]
fn tensors_without_the_prefix_are_the_same_model() {
    check_random("without_prefix");
}

#[test]
fn weights_in_half_precision_are_read_exactly() {
    check_random("half");
}

#[test]
fn the_exact_gelu_is_not_the_approximation() {
    check_random("exact_gelu");
}

#[test]
fn a_head_of_its_own_and_a_narrow_feed_forward_layer_are_used() {
    check_random("untied");
}

#[test]
fn texts_become_the_ids_that_the_published_tokenizer_gives() {
    let expected: Bundled = read(&fixtures().join("tiny_expected.json"));
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(bundled_folder().join("tokenizer.json")).unwrap()).unwrap();
    for Encoded { text, ids } in &expected.texts {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn the_bundled_model_computes_what_transformers_computes() {
    let expected: Bundled = read(&fixtures().join("tiny_expected.json"));
    let mut model = runner(&ModelFiles::open(&bundled_folder()).unwrap());
    for one in &expected.prompts {
        assert_close(&prefill(&mut model, &one.ids, 3), &one.logits, &one.prompt);
    }
}

#[tokio::test]
async fn the_bundled_model_writes_the_text_that_transformers_writes() {
    let expected: Bundled = read(&fixtures().join("tiny_expected.json"));
    let choice = ModelChoice {
        source: bundled_folder().to_str().unwrap().to_owned(),
        revision: None,
        name: None,
        dtype: Dtype::F32,
        device: DeviceChoice::Cpu,
        order: Order::Fixed,
        slots: 3,
        kv_cache_mib: 64,
        hub: HubConfig::default(),
        weights_cache: WeightsCacheConfig::default(),
    };
    let served = choice.load().await.unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let tokenizer = served.tokenizer.clone();
    let engine = Engine::start(served.model, served.tokenizer, EngineConfig::default(), sender);
    let mut texts = std::collections::HashMap::new();
    for one in &expected.prompts {
        let key = JobKey {
            id: JobId::new(),
            fence: 1,
        };
        let prompt = tokenizer.encode(&one.prompt).unwrap();
        assert_eq!(prompt, one.ids);
        texts.insert(key, one);
        let params = GenerationParams {
            max_tokens: 40,
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            n: 1,
            stop: Vec::new(),
            seed: 1,
            ..GenerationParams::default()
        };
        engine
            .submit(EngineJob {
                key,
                prompt,
                params,
                share: Share::default(),
            })
            .await
            .unwrap();
    }
    while !texts.is_empty() {
        if let EngineEvent::Ended(key, ending, _) = events.recv().await.expect("the engine runs") {
            let one = texts.remove(&key).unwrap();
            let Ending::Completed(completion) = ending else {
                panic!("{}: {ending:?}", one.prompt);
            };
            assert_eq!(completion.choices[0].text, one.text, "after {:?}", one.prompt);
        }
    }
}
