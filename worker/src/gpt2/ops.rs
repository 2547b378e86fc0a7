//! The operations that GPT-2 needs of a backend. `reference.rs` holds them in plain Burn, which own kernels are tested
//! against.

use std::ops::Range;

use claimcheck_common::domain::Dtype;

use super::{Activation, Draw, Drawn, Gpt2Config, StepError};

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

impl CacheShape {
    /// A cache of so many blocks for a model.
    pub const fn of(config: &Gpt2Config, dtype: Dtype, blocks: usize) -> Self {
        Self {
            layers: config.n_layer,
            blocks,
            heads: config.n_head,
            head_dim: config.head_dim(),
            dtype,
        }
    }
}

/// The layer norm of rows `[T, C]`: Ba, Kiros and Hinton, "Layer Normalization" (2016).
pub struct Norm<B: Gpt2Backend + ?Sized> {
    /// Scale `[C]`.
    pub gamma: B::Vector,
    /// Shift `[C]`.
    pub beta: B::Vector,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What is done before a product and after it, in this order.
pub struct Around<'a, B: Gpt2Backend + ?Sized> {
    /// Each row is normalized first.
    pub norm: Option<&'a Norm<B>>,
    /// `[out]`, added to each row of the product.
    pub bias: Option<&'a B::Vector>,
    /// What each number goes through then.
    pub activation: Option<Activation>,
    /// `[T, out]`, added at last.
    pub residual: Option<&'a B::Floats>,
}

impl<B: Gpt2Backend + ?Sized> Clone for Around<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Gpt2Backend + ?Sized> Copy for Around<'_, B> {}

impl<B: Gpt2Backend + ?Sized> Around<'_, B> {
    /// The bare product.
    pub const NOTHING: Self = Self {
        norm: None,
        bias: None,
        activation: None,
        residual: None,
    };
}

/// A backend that GPT-2 runs on. `T` is the number of tokens of a step, all rows packed one after another.
///
/// No more than GPT-2 needs, so that a device takes a handful of kernels and not a whole `burn::tensor::backend::Backend`.
pub trait Gpt2Backend: 'static {
    /// Where it computes.
    type Device: Clone + Send;
    /// `f32` numbers `[rows, columns]` on the device; a clone shares them.
    type Floats: Clone + Send;
    /// `f32` numbers `[columns]` on the device.
    type Vector: Send;
    /// A weight matrix `[in, out]` in the layout that [`Self::project`] likes.
    type Matrix: Send;
    /// Keys and values of all layers and blocks.
    type Cache: Send;

    /// Whether operations are only told to a device, which computes them while the host goes on until it reads something back.
    const QUEUES: bool = false;

    /// Runs a step with about so many multiplications, from its operations to what is read back, where that is done fastest: on the
    /// threads that share it, or on the one that a device is told by.
    fn share<T: Send + 'static>(_device: &Self::Device, _multiplications: usize, step: impl FnOnce() -> T + Send) -> T {
        step()
    }

    /// Brings numbers `[rows, columns]` to the device.
    fn floats(values: Vec<f32>, shape: [usize; 2], device: &Self::Device) -> Self::Floats;

    /// Brings numbers to the device.
    fn vector(values: Vec<f32>, device: &Self::Device) -> Self::Vector;

    /// Brings numbers back, row by row.
    fn values(floats: Self::Floats) -> Result<Vec<f32>, StepError>;

    /// The rows `which`, in that order.
    fn rows(floats: &Self::Floats, which: &[usize]) -> Self::Floats;

    /// Packs a weight matrix `[in, out]` as `dtype`, once at load.
    fn pack(weight: Self::Floats, dtype: Dtype) -> Self::Matrix;

    /// Packs a weight matrix `[in, out]` that is stored `[out, in]`: asks for some of those rows after others, so that the
    /// largest matrix never lies in memory twice.
    fn pack_transposed<E>(
        shape: [usize; 2],
        dtype: Dtype,
        device: &Self::Device,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self::Matrix, E>;

    /// The columns `ids [T]` of a packed matrix `[in, out]`, as rows, each plus the row of `positions [_, in]` that `places [T]`
    /// names. Answers `[T, in]`.
    fn embed(weight: &Self::Matrix, positions: &Self::Floats, ids: &[u32], places: &[u32]) -> Self::Floats;

    /// `x [T, in] × w [in, out]`, with what is to be done `around` it. Answers `[T, out]`.
    fn project(x: &Self::Floats, weight: &Self::Matrix, around: Around<'_, Self>) -> Self::Floats;

    /// Bytes of one block with all its layers.
    fn block_bytes(shape: CacheShape) -> usize;

    /// An empty cache. Memory is best taken where it is first written.
    fn new_cache(shape: CacheShape, device: &Self::Device) -> Self::Cache;

    /// Writes keys and values of `qkv [T, 3 C]` to the cache and attends each token to its own past. Answers `[T, C]`.
    fn attend(qkv: &Self::Floats, cache: &mut Self::Cache, layer: usize, spans: &[Span<'_>]) -> Self::Floats;

    /// Whether [`Self::draw`] draws on this device, so that only what it answers crosses the bus.
    fn draws(_device: &Self::Device) -> bool {
        false
    }

    /// Draws a token of each row of `logits [rows, vocabulary]`, as `draws` ask, or leaves the row as it is. This one, the
    /// reference, leaves all of them.
    fn draw(logits: Self::Floats, draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        let logits = Self::values(logits)?;
        Ok(Drawn::left(&logits, logits.len() / draws.len().max(1)))
    }
}
