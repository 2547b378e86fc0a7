//! The model itself: embeddings, blocks, head. See Radford et al., "Language Models are Unsupervised Multitask Learners"
//! (2019); layer norms stand before each half of a block and once more before the head.

use claimcheck_common::domain::Dtype;

use super::{Around, CacheShape, Gpt2Backend, Gpt2Config, Norm, Span};

/// A packed matrix `[in, out]` with its bias `[out]`.
pub(super) struct Linear<B: Gpt2Backend> {
    pub(super) weight: B::Matrix,
    pub(super) bias: B::Vector,
}

impl<B: Gpt2Backend> Linear<B> {
    fn project(&self, x: &B::Floats, around: Around<'_, B>) -> B::Floats {
        let bias = Some(&self.bias);
        B::project(x, &self.weight, Around { bias, ..around })
    }

    /// Its product with `x`, on top of `residual`.
    fn add(&self, x: &B::Floats, residual: &B::Floats) -> B::Floats {
        let residual = Some(residual);
        self.project(
            x,
            Around {
                residual,
                ..Around::NOTHING
            },
        )
    }
}

/// One transformer block.
pub(super) struct Block<B: Gpt2Backend> {
    pub(super) attention_norm: Norm<B>,
    /// `[n_embd, 3 n_embd]`: queries, keys, values.
    pub(super) qkv: Linear<B>,
    /// `[n_embd, n_embd]`
    pub(super) attention_out: Linear<B>,
    pub(super) feed_forward_norm: Norm<B>,
    /// `[n_embd, inner]`
    pub(super) up: Linear<B>,
    /// `[inner, n_embd]`
    pub(super) down: Linear<B>,
}

/// A GPT-2 with its weights.
pub struct Gpt2<B: Gpt2Backend> {
    pub(super) config: Gpt2Config,
    pub(super) dtype: Dtype,
    /// `[n_embd, vocab_size]`: a token is embedded as its column, and the head is the same matrix where it is tied.
    pub(super) tokens: B::Matrix,
    /// `[n_positions, n_embd]`
    pub(super) positions: B::Floats,
    pub(super) blocks: Vec<Block<B>>,
    pub(super) last_norm: Norm<B>,
    /// `[n_embd, vocab_size]`, where it is not tied.
    pub(super) head: Option<B::Matrix>,
    pub(super) device: B::Device,
}

impl<B: Gpt2Backend> Gpt2<B> {
    /// The model's shape.
    pub const fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// Where it computes.
    pub const fn device(&self) -> &B::Device {
        &self.device
    }

    /// An empty cache of so many blocks.
    pub fn new_cache(&self, blocks: usize) -> B::Cache {
        B::new_cache(self.cache_shape(blocks), &self.device)
    }

    /// Bytes of one block of the cache.
    pub fn block_bytes(&self) -> usize {
        B::block_bytes(self.cache_shape(1))
    }

    const fn cache_shape(&self, blocks: usize) -> CacheShape {
        CacheShape::of(&self.config, self.dtype, blocks)
    }

    /// Runs `tokens [T]`, the concatenation of `spans`, and answers the logits `[wanted.len(), vocab_size]` of the tokens
    /// whose places in the step are `wanted`.
    pub fn forward(&self, tokens: &[u32], spans: &[Span<'_>], wanted: &[usize], cache: &mut B::Cache) -> B::Floats {
        let places = spans.iter().flat_map(|span| span.position..span.position + span.len);
        let places: Vec<u32> = places.map(|place| place as u32).collect();
        let mut x = B::embed(&self.tokens, &self.positions, tokens, &places);
        for (layer, block) in self.blocks.iter().enumerate() {
            let qkv = block.qkv.project(
                &x,
                Around {
                    norm: Some(&block.attention_norm),
                    ..Around::NOTHING
                },
            );
            let mut mixed = B::attend(&qkv, cache, layer, spans);
            // All tokens have left their keys and values: the rest is for those alone whose logits are wanted.
            if layer + 1 == self.blocks.len() && wanted.len() < tokens.len() {
                mixed = B::rows(&mixed, wanted);
                x = B::rows(&x, wanted);
            }
            x = block.attention_out.add(&mixed, &x);
            let inner = block.up.project(
                &x,
                Around {
                    norm: Some(&block.feed_forward_norm),
                    activation: Some(self.config.activation_function),
                    ..Around::NOTHING
                },
            );
            x = block.down.add(&inner, &x);
        }
        B::project(
            &x,
            self.head.as_ref().unwrap_or(&self.tokens),
            Around {
                norm: Some(&self.last_norm),
                ..Around::NOTHING
            },
        )
    }
}
