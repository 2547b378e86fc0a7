//! The operations that GPT-2 needs of a backend. `reference.rs` holds them in plain Burn, which own kernels are tested
//! against.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use claimcheck_common::domain::Dtype;

use super::Activation;

/// Tokens of a block, the unit in which the cache is given out: as many as a panel of the CPU's kernels has columns.
pub const BLOCK: usize = 32;

/// Consecutive tokens of one sequence within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'a> {
    /// The blocks of the cache that hold the sequence, [`BLOCK`] tokens each, from its first token on: enough of them for the
    /// last token of the span. Blocks before the one of `position` may belong to other sequences as well; those from there on
    /// are written, and no other span of the step names them.
    pub blocks: &'a [u32],
    /// Position of the first token in its sequence.
    pub position: usize,
    /// How many.
    pub len: usize,
}

/// How large a cache is.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    /// Transformer blocks.
    pub layers: usize,
    /// How many blocks of [`BLOCK`] tokens.
    pub blocks: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What the weights are kept in; the cache of other weights than `f32` may be kept in 16 bits.
    pub dtype: Dtype,
}

/// A backend that GPT-2 runs on. `T` is the number of tokens of a step, all rows packed one after another.
pub trait Gpt2Backend: Backend {
    /// A weight matrix `[in, out]` in the layout that [`Self::project`] likes.
    type Matrix: Send;
    /// Keys and values of all layers and blocks.
    type Cache: Send;

    /// Packs a weight matrix `[in, out]` as `dtype`, once at load.
    fn pack(weight: Tensor<Self, 2>, dtype: Dtype) -> Self::Matrix;

    /// Packs a weight matrix `[in, out]` that is stored `[out, in]`: asks for some of those rows after others, so that the
    /// largest matrix never lies in memory twice.
    fn pack_transposed<E>(
        shape: [usize; 2],
        dtype: Dtype,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self::Matrix, E>;

    /// The columns `ids [T]` of a packed matrix `[in, out]`, as rows `[T, in]`.
    fn embed(weight: &Self::Matrix, ids: &[u32], device: &Self::Device) -> Tensor<Self, 2>;

    /// `x [T, in] × w [in, out] + bias [out]`, then the activation, if any. Answers `[T, out]`.
    fn project(
        x: &Tensor<Self, 2>,
        weight: &Self::Matrix,
        bias: Option<&Tensor<Self, 1>>,
        activation: Option<Activation>,
    ) -> Tensor<Self, 2>;

    /// Adds `residual [T, C]` to `x [T, C]` if there is one, and normalizes each row. Answers the sum and its norm.
    fn add_norm(
        x: Tensor<Self, 2>,
        residual: Option<Tensor<Self, 2>>,
        gamma: &Tensor<Self, 1>,
        beta: &Tensor<Self, 1>,
        epsilon: f32,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>);

    /// Bytes of one block with all its layers.
    fn block_bytes(shape: CacheShape) -> usize;

    /// An empty cache. Memory is best taken where it is first written.
    fn new_cache(shape: CacheShape, device: &Self::Device) -> Self::Cache;

    /// Writes keys and values of `qkv [T, 3 C]` to the cache and attends each token to its own past. Answers `[T, C]`.
    fn attend(qkv: &Tensor<Self, 2>, cache: &mut Self::Cache, layer: usize, spans: &[Span<'_>]) -> Tensor<Self, 2>;
}
