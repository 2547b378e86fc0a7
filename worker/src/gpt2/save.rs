//! Random weights of a given shape, in memory or as Hugging Face files: for tests and for measuring without a download.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::path::Path;

use claimcheck_common::domain::Dtype;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::load::{Packing, assemble, tensors};
use super::{Gpt2, Gpt2Backend, Gpt2Config, LoadError, byte_tokenizer};

/// GPT-2's own initialization: normal, of this standard deviation.
const DEVIATION: f32 = 0.02;

/// Draws the same weights for the same seed.
struct Weights {
    generator: ChaCha8Rng,
    normal: Normal<f32>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        let normal = Normal::new(0.0, DEVIATION).expect("a finite deviation");
        Self {
            generator: ChaCha8Rng::seed_from_u64(seed),
            normal,
        }
    }

    fn draw(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let len = shape.iter().product();
        // Norms start at one, everything else around zero: biases too, so that a test notices a missing one.
        let center = if name.contains("ln_") && name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        (0..len)
            .map(|_| center + self.normal.sample(&mut self.generator))
            .collect()
    }
}

impl<B: Gpt2Backend> Gpt2<B> {
    /// A model with random weights.
    pub fn random(config: Gpt2Config, seed: u64, dtype: Dtype, device: &B::Device) -> Self {
        let mut weights = Weights::new(seed);
        let mut draw = |name: &str, shape: &[usize], rows: Range<usize>| {
            let shape = [&[rows.len()], &shape[1..]].concat();
            Ok::<_, Infallible>(weights.draw(name, &shape))
        };
        let mut tensors = Packing {
            read: &mut draw,
            dtype,
            device,
        };
        match assemble(config, dtype, device, &mut tensors) {
            Ok(model) => model,
        }
    }
}

/// Writes the weights of [`Gpt2::random`] as `config.json` and `model.safetensors` into `folder`, which is made, and a
/// `tokenizer.json` whose tokens are bytes.
pub fn save_random(config: &Gpt2Config, seed: u64, folder: &Path) -> Result<(), LoadError> {
    let unwritable = |path: &Path, cause| LoadError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    std::fs::create_dir_all(folder).map_err(|cause| unwritable(folder, cause))?;
    let texts = [
        ("config.json", config_json(config)),
        ("tokenizer.json", byte_tokenizer::json(config.vocab_size)),
    ];
    for (name, text) in texts {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|cause| unwritable(&path, cause))?;
    }
    let mut weights = Weights::new(seed);
    let drawn: Vec<(String, Vec<usize>, Vec<u8>)> = tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let bytes = weights
                .draw(&name, &shape)
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            let name = if name.starts_with("lm_head") {
                name
            } else {
                format!("transformer.{name}")
            };
            (name, shape, bytes)
        })
        .collect();
    let path = folder.join("model.safetensors");
    let views = drawn.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(FileDtype::F32, shape.clone(), bytes).expect("as many bytes as the shape has"),
        )
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(format), &path).map_err(|error| LoadError::Malformed {
        path,
        complaint: error.to_string(),
    })
}

fn config_json(config: &Gpt2Config) -> String {
    let value = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": config.activation_function.name(),
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
    });
    format!("{value:#}\n")
}
