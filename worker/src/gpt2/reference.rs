//! The operations of `ops.rs` in plain Burn: slow, obvious, and what the kernels are tested against.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::{Activation, BLOCK, CacheShape, Span};

/// [`super::Gpt2Backend::project`] in plain Burn.
pub(super) fn plain_linear<B: Backend>(
    x: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
    activation: Option<Activation>,
) -> Tensor<B, 2> {
    let mut y = x.clone().matmul(weight.clone());
    if let Some(bias) = bias {
        y = y + bias.clone().unsqueeze();
    }
    match activation {
        Some(Activation::GeluTanh) => activation::gelu_approximate(y),
        Some(Activation::GeluErf) => activation::gelu(y),
        None => y,
    }
}

/// [`super::Norm`] in plain Burn, with epsilon 1e-5.
pub(super) fn plain_norm<B: Backend>(x: &Tensor<B, 2>, gamma: &Tensor<B, 1>, beta: &Tensor<B, 1>) -> Tensor<B, 2> {
    let centered = x.clone() - x.clone().mean_dim(1);
    let variance = (centered.clone() * centered.clone()).mean_dim(1);
    centered / (variance + 1e-5).sqrt() * gamma.clone().unsqueeze() + beta.clone().unsqueeze()
}

/// The cache of the reference: `[blocks, heads, BLOCK, head_dim]` for each layer.
pub(super) struct PlainCache<B: Backend> {
    shape: CacheShape,
    keys: Vec<Tensor<B, 4>>,
    values: Vec<Tensor<B, 4>>,
}

impl<B: Backend> PlainCache<B> {
    pub(super) fn new(shape: CacheShape, device: &B::Device) -> Self {
        let empty = || Tensor::zeros([shape.blocks, shape.heads, BLOCK, shape.head_dim], device);
        Self {
            shape,
            keys: (0..shape.layers).map(|_| empty()).collect(),
            values: (0..shape.layers).map(|_| empty()).collect(),
        }
    }
}

/// [`super::Gpt2Backend::attend`] in plain Burn, row by row.
pub(super) fn plain_attend<B: Backend>(
    qkv: &Tensor<B, 2>,
    cache: &mut PlainCache<B>,
    layer: usize,
    spans: &[Span<'_>],
) -> Tensor<B, 2> {
    let CacheShape { heads, head_dim, .. } = cache.shape;
    let width = heads * head_dim;
    let mut outputs = Vec::with_capacity(spans.len());
    let mut first = 0;
    for span in spans {
        // [len, 3 C] -> three of [1, heads, len, head_dim]
        let part = |which: usize| {
            qkv.clone()
                .slice([first..first + span.len, which * width..(which + 1) * width])
                .reshape([1, span.len, heads, head_dim])
                .swap_dims(1, 2)
        };
        write(&mut cache.keys[layer], span, &part(1));
        write(&mut cache.values[layer], span, &part(2));
        let keys = past(&cache.keys[layer], span);
        let values = past(&cache.values[layer], span);
        let scores = part(0).matmul(keys.swap_dims(2, 3)) / (head_dim as f32).sqrt() + future(span, &qkv.device());
        let mixed = activation::softmax(scores, 3).matmul(values);
        outputs.push(mixed.swap_dims(1, 2).reshape([span.len, width]));
        first += span.len;
    }
    Tensor::cat(outputs, 0)
}

/// Puts `new [1, heads, len, head_dim]` to the places of a span's tokens, one after the other.
fn write<B: Backend>(cache: &mut Tensor<B, 4>, span: &Span<'_>, new: &Tensor<B, 4>) {
    let [_, heads, _, head_dim] = new.dims();
    for token in 0..span.len {
        let (block, place) = ((span.position + token) / BLOCK, (span.position + token) % BLOCK);
        let block = span.blocks[block] as usize;
        let here = [block..block + 1, 0..heads, place..place + 1, 0..head_dim];
        let one = new.clone().slice([0..1, 0..heads, token..token + 1, 0..head_dim]);
        *cache = cache.clone().slice_assign(here, one);
    }
}

/// What a span's last token sees: `[1, heads, position + len, head_dim]`.
fn past<B: Backend>(cache: &Tensor<B, 4>, span: &Span<'_>) -> Tensor<B, 4> {
    let [_, heads, _, head_dim] = cache.dims();
    let blocks: Vec<i32> = span.blocks.iter().map(|block| *block as i32).collect();
    let len = blocks.len();
    let blocks = Tensor::<B, 1, Int>::from_data(TensorData::new(blocks, [len]), &cache.device());
    cache
        .clone()
        .select(0, blocks)
        .swap_dims(0, 1)
        .reshape([1, heads, len * BLOCK, head_dim])
        .slice([0..1, 0..heads, 0..span.position + span.len, 0..head_dim])
}

/// Minus infinity where a token would look at its future: `[1, 1, len, position + len]`.
fn future<B: Backend>(span: &Span<'_>, device: &B::Device) -> Tensor<B, 4> {
    let end = span.position + span.len;
    let mask: Vec<f32> = (span.position..end)
        .flat_map(|at| (0..end).map(move |past| if past > at { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_data(TensorData::new(mask, [1, 1, span.len, end]), device)
}
