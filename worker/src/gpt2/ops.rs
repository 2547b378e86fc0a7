//! The operations that GPT-2 needs of a backend. `reference.rs` holds them in plain Burn, which own kernels are tested
//! against.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use claimcheck_common::domain::Dtype;

use super::Activation;

/// Consecutive tokens of one slot within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The slot they belong to.
    pub slot: usize,
    /// Position of the first one in its sequence.
    pub position: usize,
    /// How many.
    pub len: usize,
}

/// How large a cache is.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    /// Transformer blocks.
    pub layers: usize,
    /// Sequences side by side.
    pub slots: usize,
    /// Tokens of one sequence.
    pub positions: usize,
    /// Heads of a block.
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
    /// Keys and values of all layers and slots.
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

    /// An empty cache.
    fn new_cache(shape: CacheShape, device: &Self::Device) -> Self::Cache;

    /// Writes keys and values of `qkv [T, 3 C]` to the cache and attends each token to its own past. Answers `[T, C]`.
    fn attend(qkv: &Tensor<Self, 2>, cache: &mut Self::Cache, layer: usize, spans: &[Span]) -> Tensor<Self, 2>;
}
