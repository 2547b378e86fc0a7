//! A job's answer is its own: 500 jobs, each alone on an idle engine and then in shuffled crowds, answer the same to the bit,
//! also where some have to make room for others and where what was computed for one serves the next.

use std::collections::HashMap;
use std::sync::Arc;

use burn::backend::flex::FlexDevice;
use claimcheck_common::domain::{Completion, Dtype, GenerationParams, JobId, JobKey, Share};
use claimcheck_common::tokenizer::Tokenizer;
use claimcheck_worker::engine::{Ending, Engine, EngineConfig, EngineEvent, EngineJob};
use claimcheck_worker::gpt2::{BLOCK, Cpu, Gpt2, Gpt2Runner, ModelFiles};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use crate::parity::bundled_folder;

const JOBS: usize = 500;

struct Model {
    files: ModelFiles,
    tokenizer: Arc<Tokenizer>,
}

impl Model {
    fn bundled() -> Self {
        let files = ModelFiles::open(&bundled_folder()).unwrap();
        let tokenizer = Tokenizer::from_bytes(&std::fs::read(&files.tokenizer).unwrap()).unwrap();
        Self {
            files,
            tokenizer: Arc::new(tokenizer),
        }
    }

    /// Runs jobs on an engine of its own with a cache for `full` sequences of full length, at most `together` of them at a
    /// time.
    async fn run(
        &self,
        jobs: &[EngineJob],
        dtype: Dtype,
        config: EngineConfig,
        full: usize,
        together: usize,
    ) -> Answers {
        let model = Gpt2::<Cpu>::load(&self.files, dtype, &FlexDevice).unwrap();
        let (sender, mut events) = mpsc::channel(64);
        let blocks = full * model.config().n_positions.div_ceil(BLOCK);
        let runner = Box::new(Gpt2Runner::new(model, blocks));
        let engine = Engine::start(runner, self.tokenizer.clone(), config, sender);
        let mut answers = Answers::new();
        for group in jobs.chunks(together) {
            let submitted = async {
                for job in group {
                    engine.submit(job.clone()).await.unwrap();
                }
            };
            let ended = async {
                let mut left = group.len();
                while left > 0 {
                    if let EngineEvent::Ended(key, ending, _) = events.recv().await.unwrap() {
                        let Ending::Completed(completion) = ending else {
                            panic!("{ending:?}")
                        };
                        answers.insert(key, completion);
                        left -= 1;
                    }
                }
            };
            tokio::join!(submitted, ended);
        }
        answers
    }
}

type Answers = HashMap<JobKey, Completion>;

/// Jobs of every kind: short and long prompts, greedy and drawn, one choice and several, with and without log probabilities.
fn jobs(model: &Model, random: &mut ChaCha8Rng) -> Vec<EngineJob> {
    let text = std::fs::read_to_string(bundled_folder().join("heldout.txt")).unwrap();
    let tokens = model.tokenizer.encode(&text).unwrap();
    let job = |_| {
        let len = random.random_range(1..100);
        // Every third one begins as the others do.
        let from = random.random_range(0..tokens.len() - len) * usize::from(random.random_range(0..3) > 0);
        EngineJob {
            key: JobKey {
                id: JobId::new(),
                fence: 1,
            },
            prompt: tokens[from..from + len].to_vec(),
            params: GenerationParams {
                max_tokens: random.random_range(1..20),
                temperature: [0.0, 0.7, 1.0, 1.5][random.random_range(0..4)],
                top_p: [1.0, 0.9][random.random_range(0..2)],
                top_k: [None, Some(40)][random.random_range(0..2)],
                n: random.random_range(1..3),
                logprobs: [None, Some(5)][random.random_range(0..2)],
                seed: random.random_range(0..1 << 40),
                ..GenerationParams::default()
            },
            share: Share::default(),
        }
    };
    (0..JOBS).map(job).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_jobs_answer_alone_as_in_any_crowd() {
    let model = Model::bundled();
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut jobs = jobs(&model, &mut random);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        let config = |slots, token_budget, prefix_cache| EngineConfig {
            slots,
            token_budget,
            prefix_cache,
        };
        let alone = model.run(&jobs, dtype, config(2, 128, false), 2, 1).await;
        for (config, full) in [
            (config(32, 128, true), 32),
            (config(5, 16, false), 5),
            (config(16, 128, true), 3),
            (config(16, 64, false), 2),
        ] {
            jobs.shuffle(&mut random);
            let crowd = model.run(&jobs, dtype, config, full, JOBS).await;
            for job in &jobs {
                assert_eq!(
                    alone[&job.key], crowd[&job.key],
                    "{dtype}, {config:?}, blocks for {full}: {job:?}"
                );
            }
        }
    }
}
