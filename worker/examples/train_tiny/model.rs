//! GPT-2 as a trainable Burn module, and its way into Hugging Face files.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor, activation};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The shape of the tiny model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub vocab: usize,
    pub context: usize,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
}

const DEVIATION: f64 = 0.02;
const EPSILON: f64 = 1e-5;

#[derive(Module, Debug)]
struct Block<B: Backend> {
    ln_1: LayerNorm<B>,
    c_attn: Linear<B>,
    attn_proj: Linear<B>,
    ln_2: LayerNorm<B>,
    c_fc: Linear<B>,
    mlp_proj: Linear<B>,
}

/// The whole model; the head is the token embedding.
#[derive(Module, Debug)]
pub struct TinyGpt2<B: Backend> {
    wte: Embedding<B>,
    wpe: Embedding<B>,
    blocks: Vec<Block<B>>,
    ln_f: LayerNorm<B>,
    heads: usize,
}

impl<B: Backend> TinyGpt2<B> {
    pub fn new(shape: &Shape, device: &B::Device) -> Self {
        let normal = |deviation: f64| Initializer::Normal {
            mean: 0.0,
            std: deviation,
        };
        let linear = |from: usize, to: usize, deviation: f64| {
            let mut linear = LinearConfig::new(from, to)
                .with_initializer(normal(deviation))
                .init(device);
            linear.bias = Some(Param::from_tensor(Tensor::zeros([to], device)));
            linear
        };
        let norm = || LayerNormConfig::new(shape.width).with_epsilon(EPSILON).init(device);
        let embedding = |count| {
            EmbeddingConfig::new(count, shape.width)
                .with_initializer(normal(DEVIATION))
                .init(device)
        };
        // Residual projections start smaller, by the number of residual additions (Radford et al., 2019).
        let residual = DEVIATION / (2.0 * shape.layers as f64).sqrt();
        let blocks = (0..shape.layers).map(|_| Block {
            ln_1: norm(),
            c_attn: linear(shape.width, 3 * shape.width, DEVIATION),
            attn_proj: linear(shape.width, shape.width, residual),
            ln_2: norm(),
            c_fc: linear(shape.width, 4 * shape.width, DEVIATION),
            mlp_proj: linear(4 * shape.width, shape.width, residual),
        });
        Self {
            wte: embedding(shape.vocab),
            wpe: embedding(shape.context),
            blocks: blocks.collect(),
            ln_f: norm(),
            heads: shape.heads,
        }
    }

    /// Mean cross entropy of predicting `targets [batch, len]` from `inputs [batch, len]`.
    pub fn loss(&self, inputs: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        let [batch, len] = inputs.dims();
        let logits = self.forward(inputs);
        let vocab = logits.dims()[2];
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        loss.forward(logits.reshape([batch * len, vocab]), targets.reshape([batch * len]))
    }

    /// Logits `[batch, len, vocab]`.
    fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, len] = tokens.dims();
        let device = tokens.device();
        let places = Tensor::arange(0..len as i64, &device).unsqueeze::<2>();
        let mut x = self.wte.forward(tokens) + self.wpe.forward(places);
        let future = Tensor::<B, 2, Bool>::tril_mask([len, len], 0, &device);
        for block in &self.blocks {
            x = x.clone() + self.attend(block, block.ln_1.forward(x), &future);
            let inner = activation::gelu_approximate(block.c_fc.forward(block.ln_2.forward(x.clone())));
            x = x + block.mlp_proj.forward(inner);
        }
        let width = x.dims()[2];
        let x = self.ln_f.forward(x).reshape([batch * len, width]);
        let logits = x.matmul(self.wte.weight.val().transpose());
        let vocab = logits.dims()[1];
        logits.reshape([batch, len, vocab])
    }

    fn attend(&self, block: &Block<B>, x: Tensor<B, 3>, future: &Tensor<B, 2, Bool>) -> Tensor<B, 3> {
        let [batch, len, width] = x.dims();
        let head = width / self.heads;
        let qkv = block.c_attn.forward(x);
        let part = |which: usize| {
            let part = qkv
                .clone()
                .slice([0..batch, 0..len, which * width..(which + 1) * width]);
            part.reshape([batch, len, self.heads, head]).swap_dims(1, 2)
        };
        let scores = part(0).matmul(part(1).swap_dims(2, 3)) / (head as f64).sqrt();
        let scores = scores.mask_fill(future.clone().unsqueeze(), f32::NEG_INFINITY);
        let mixed = activation::softmax(scores, 3).matmul(part(2));
        block
            .attn_proj
            .forward(mixed.swap_dims(1, 2).reshape([batch, len, width]))
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors`. Answers the number of parameters.
    pub fn save(&self, shape: &Shape, end_of_text: u32, folder: &Path) -> Result<usize> {
        let mut tensors = Vec::new();
        let mut add = |name: String, dims: Vec<usize>, values: Vec<f32>| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((name, dims, bytes));
        };
        let values = |tensor: Tensor<B, 2>| tensor.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        let row = |tensor: Tensor<B, 1>| tensor.into_data().convert::<f32>().into_vec::<f32>().expect("f32");
        add(
            "transformer.wte.weight".into(),
            vec![shape.vocab, shape.width],
            values(self.wte.weight.val()),
        );
        add(
            "transformer.wpe.weight".into(),
            vec![shape.context, shape.width],
            values(self.wpe.weight.val()),
        );
        let mut norm = |name: String, norm: &LayerNorm<B>| {
            add(format!("{name}.weight"), vec![shape.width], row(norm.gamma.val()));
            let beta = norm.beta.as_ref().expect("a layer norm has a bias").val();
            add(format!("{name}.bias"), vec![shape.width], row(beta));
        };
        norm("transformer.ln_f".into(), &self.ln_f);
        for (layer, block) in self.blocks.iter().enumerate() {
            norm(format!("transformer.h.{layer}.ln_1"), &block.ln_1);
            norm(format!("transformer.h.{layer}.ln_2"), &block.ln_2);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let parts = [
                ("attn.c_attn", &block.c_attn),
                ("attn.c_proj", &block.attn_proj),
                ("mlp.c_fc", &block.c_fc),
                ("mlp.c_proj", &block.mlp_proj),
            ];
            for (part, linear) in parts {
                let name = format!("transformer.h.{layer}.{part}");
                let dims = linear.weight.val().dims().to_vec();
                add(
                    format!("{name}.bias"),
                    vec![dims[1]],
                    row(linear.bias.as_ref().expect("a bias").val()),
                );
                add(format!("{name}.weight"), dims, values(linear.weight.val()));
            }
        }
        let parameters = tensors.iter().map(|(_, dims, _)| dims.iter().product::<usize>()).sum();
        let views = tensors.iter().map(|(name, dims, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, dims.clone(), bytes).expect("as many bytes as the shape has"),
            )
        });
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(format), &folder.join("model.safetensors"))?;
        save_config(shape, end_of_text, folder)?;
        Ok(parameters)
    }
}

fn save_config(shape: &Shape, end_of_text: u32, folder: &Path) -> Result<()> {
    let config = serde_json::json!({
        "_name_or_path": "claimcheck-tiny",
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text,
        "layer_norm_epsilon": EPSILON,
        "n_ctx": shape.context, "n_positions": shape.context,
        "n_embd": shape.width, "n_head": shape.heads, "n_layer": shape.layers,
        "tie_word_embeddings": true,
        "vocab_size": shape.vocab,
    });
    std::fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
    let generation = serde_json::json!({"bos_token_id": end_of_text, "eos_token_id": end_of_text});
    std::fs::write(folder.join("generation_config.json"), format!("{generation:#}\n"))?;
    Ok(())
}
