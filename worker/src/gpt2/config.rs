//! `config.json` of a GPT-2, as Hugging Face writes it.

use serde::Deserialize;

/// The activation between the two halves of the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
pub enum Activation {
    /// The tanh approximation that GPT-2 was trained with (`gelu_new`, `gelu_pytorch_tanh`).
    #[default]
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// The exact one (`gelu`).
    #[serde(rename = "gelu")]
    GeluErf,
}

impl Activation {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::GeluTanh => "gelu_new",
            Self::GeluErf => "gelu",
        }
    }
}

/// The shape of a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gpt2Config {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Most tokens of one sequence.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads; `n_embd` is a multiple of it.
    pub n_head: usize,
    /// Width of the feed-forward layer; four times `n_embd` unless given.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// The activation of the feed-forward layer.
    #[serde(default)]
    pub activation_function: Activation,
    /// Added to the variance before its root is taken.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f32,
    /// Whether the head shares the token embedding's weights.
    #[serde(default = "default_true")]
    pub tie_word_embeddings: bool,
    /// Scores are divided by the root of the head's width; the only kind that is computed.
    #[serde(default = "default_true")]
    pub scale_attn_weights: bool,
    /// Scores are divided by the layer's number as well, which some descendants of GPT-2 do. Not computed, so refused.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
}

const fn default_epsilon() -> f32 {
    1e-5
}

const fn default_true() -> bool {
    true
}

impl Gpt2Config {
    /// Weights of the matrices that each token is multiplied with: the blocks' four and the head's.
    pub fn matrix_weights(&self) -> usize {
        let of_block = 4 * self.n_embd * self.n_embd + 2 * self.n_embd * self.inner();
        self.n_layer * of_block + self.vocab_size * self.n_embd
    }

    /// The shape of a named model: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, `distilgpt2` or `tiny`.
    pub fn named(name: &str) -> Option<Self> {
        let (vocab_size, n_positions, n_embd, n_layer, n_head) = match name {
            "gpt2" => (50_257, 1024, 768, 12, 12),
            "gpt2-medium" => (50_257, 1024, 1024, 24, 16),
            "gpt2-large" => (50_257, 1024, 1280, 36, 20),
            "gpt2-xl" => (50_257, 1024, 1600, 48, 25),
            "distilgpt2" => (50_257, 1024, 768, 6, 12),
            "tiny" => (512, 128, 64, 2, 4),
            _ => return None,
        };
        Some(Self {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: None,
            activation_function: Activation::default(),
            layer_norm_epsilon: default_epsilon(),
            tie_word_embeddings: true,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
        })
    }

    /// Width of the feed-forward layer.
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Width of one head.
    pub const fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What is wrong with the shape, if anything.
    pub(super) fn complaint(&self) -> Option<String> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 20),
            ("n_positions", self.n_positions, 1 << 17),
            ("n_embd", self.n_embd, 1 << 14),
            ("n_layer", self.n_layer, 1 << 8),
            ("n_head", self.n_head, 1 << 8),
            ("n_inner", self.inner(), 1 << 16),
        ];
        if let Some((name, value, limit)) = sizes.into_iter().find(|(_, value, limit)| *value == 0 || value > limit) {
            return Some(format!("`{name}` is {value}, outside 1 to {limit}"));
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Some(format!(
                "`n_embd` {} is no multiple of `n_head` {}",
                self.n_embd, self.n_head
            ));
        }
        // Without it a row of equal values has no norm.
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return Some(format!(
                "`layer_norm_epsilon` is {}, which is not above 0",
                self.layer_norm_epsilon
            ));
        }
        // Such a model has the same tensors: without this it would load and answer nonsense.
        if !self.scale_attn_weights {
            return Some("`scale_attn_weights` is false, which is not supported".to_owned());
        }
        if self.scale_attn_by_inverse_layer_idx {
            return Some("`scale_attn_by_inverse_layer_idx` is true, which is not supported".to_owned());
        }
        None
    }
}
