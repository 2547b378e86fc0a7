//! Trains `claimcheck-tiny`, the bundled model, from nothing but a seed:
//!
//! ```sh
//! cargo run --release -p claimcheck-worker --features train --example train_tiny -- --out worker/models/tiny
//! ```
//!
//! Tells stories (`story.rs`), learns a tokenizer from them (`tokenizer.rs`), trains a GPT-2 on fresh stories in every step
//! (`model.rs`) and writes Hugging Face files at every checkpoint.

mod model;
mod story;
mod tokenizer;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use burn::backend::flex::FlexDevice;
use burn::backend::{Autodiff, Flex};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use clap::Parser;
use tokenizers::Tokenizer;

use model::{Shape, TinyGpt2};

type Training = Autodiff<Flex>;

/// Stories for the tokenizer and for the held-out text come from seeds that training never reaches.
const TOKENIZER_SEEDS: std::ops::Range<u64> = 1 << 40..(1 << 40) + 3000;
const HELD_OUT_SEEDS: std::ops::Range<u64> = 1 << 41..(1 << 41) + 24;
const BETWEEN_CHECKPOINTS: usize = 100;

/// Trains the bundled model.
#[derive(Parser)]
struct Options {
    /// Where the Hugging Face files go.
    #[arg(long)]
    out: PathBuf,
    /// Steps of `batch` windows.
    #[arg(long, default_value_t = 1800)]
    steps: usize,
    /// Windows of a step.
    #[arg(long, default_value_t = 2)]
    batch: usize,
    /// Greatest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Where everything random begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Windows of tokens: story after story, each followed by the end of text.
struct Stories {
    tokenizer: Tokenizer,
    end_of_text: u32,
    next: u64,
}

impl Stories {
    /// A window of `count` tokens. Every second one begins with a story, as a prompt would; the others somewhere within
    /// one, since a prompt may be any part of a text.
    fn window(&mut self, count: usize) -> Vec<u32> {
        let first = self.story();
        let begin = if self.next.is_multiple_of(2) {
            0
        } else {
            self.next as usize * 31 % first.len()
        };
        let mut tokens = first[begin..].to_vec();
        while tokens.len() < count {
            let story = self.story();
            tokens.extend(story);
        }
        tokens.truncate(count);
        tokens
    }

    fn story(&mut self) -> Vec<u32> {
        let story = story::tell(self.next);
        self.next += 1;
        let mut tokens = self
            .tokenizer
            .encode(story, false)
            .expect("any text can be encoded")
            .get_ids()
            .to_vec();
        tokens.push(self.end_of_text);
        tokens
    }

    /// Inputs and targets, each `[batch, context]`.
    fn batch<B: Backend>(&mut self, batch: usize, context: usize) -> (Tensor<B, 2, Int>, Tensor<B, 2, Int>)
    where
        B::Device: Default,
    {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let window: Vec<i32> = self.window(context + 1).into_iter().map(|id| id as i32).collect();
            inputs.extend_from_slice(&window[..context]);
            targets.extend_from_slice(&window[1..]);
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [batch, context]), &B::Device::default());
        (tensor(inputs), tensor(targets))
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    std::fs::create_dir_all(&options.out)?;
    let shape = Shape {
        vocab: 1024,
        context: 512,
        width: 128,
        layers: 6,
        heads: 4,
    };
    let texts: Vec<String> = TOKENIZER_SEEDS.map(story::tell).collect();
    let tokenizer = tokenizer::learn(&texts, shape.vocab)?;
    let end_of_text = tokenizer
        .token_to_id(tokenizer::END_OF_TEXT)
        .expect("a special token of the vocabulary");
    tokenizer::save(&tokenizer, &options.out, shape.context)?;
    let held_out: Vec<String> = HELD_OUT_SEEDS.map(story::tell).collect();
    std::fs::write(options.out.join("heldout.txt"), held_out.join("\n"))?;

    let device = FlexDevice;
    Training::seed(&device, options.seed);
    let stories = |next| Stories {
        tokenizer: tokenizer.clone(),
        end_of_text,
        next,
    };
    let mut training = stories(options.seed << 20);
    let (held_in, held_to) = stories(HELD_OUT_SEEDS.start).batch::<Flex>(8, shape.context);
    let mut model = TinyGpt2::<Training>::new(&shape, &device);
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.99)
        .with_weight_decay(0.01)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let began = Instant::now();
    for step in 1..=options.steps {
        let (inputs, targets) = training.batch::<Training>(options.batch, shape.context);
        let loss = model.loss(inputs, targets);
        let shown: f32 = loss.clone().into_scalar().elem();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(rate(step, &options), model, gradients);
        if step % 10 == 0 || step < 4 {
            let tokens = (step * options.batch * shape.context) as f64;
            println!(
                "step {step} loss {shown:.4} {:.0} tokens/s",
                tokens / began.elapsed().as_secs_f64()
            );
        }
        if step % BETWEEN_CHECKPOINTS == 0 || step == options.steps {
            let valid = model.valid();
            let held_out: f32 = valid.loss(held_in.clone(), held_to.clone()).into_scalar().elem();
            let parameters = valid.save(&shape, end_of_text, &options.out)?;
            println!("checkpoint at step {step}: {parameters} parameters, held-out loss {held_out:.4}");
        }
    }
    Ok(())
}

/// A short warm-up, then half a cosine down to a tenth.
fn rate(step: usize, options: &Options) -> f64 {
    let warm_up = 40.0_f64.min(options.steps as f64 / 10.0);
    let step = step as f64;
    if step < warm_up {
        return options.rate * step / warm_up;
    }
    let done = (step - warm_up) / (options.steps as f64 - warm_up).max(1.0);
    options.rate * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * done).cos()))
}
