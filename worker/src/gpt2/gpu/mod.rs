//! GPT-2's operations on a GPU: kernels in `CubeCL`, written once for every device that it compiles for.
//!
//! `words.rs` says how numbers lie in memory, `layout.rs` how weights do, `sums.rs` adds up over a cube, `linear.rs`, `tensor/`, `tiles.rs`,
//! `norm.rs`, `attention.rs`, `rows.rs` and `draw/` are the kernels, `launch.rs` starts them. Must never let a row's result depend on its
//! company: every element is reduced in one order, whatever the number of rows; `tiles.rs` alone, which `--order fast` allows, has another.
//! Built with the feature `cuda` or `vulkan` alone.

// What is decided when a kernel is built stands apart from what is decided when it runs, and a kernel is one function.
#![allow(clippy::collapsible_if, clippy::single_match_else, clippy::too_many_lines)]

mod attention;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
mod draw;
mod launch;
mod layout;
mod linear;
mod norm;
mod rows;
mod sums;
mod tensor;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
mod tests;
mod tiles;
mod words;

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use claimcheck_common::domain::{Dtype, Order};
use cubecl::Runtime;

use super::{Around, BLOCK, CacheShape, Draw, Drawn, Gpt2Backend, Norm, Span, StepError};
pub(in crate::gpt2) use launch::Site;
use launch::{Counts, Matrix, Numbers, Table};

#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
pub(crate) use tests::{CARD, drawn};
use words::Word;

/// See [`Gpu::warm`].
const WARM: [usize; 11] = [1, 2, 4, linear::TILE, tiles::FROM, 64, 128, 256, 512, 1024, 2048];
/// So many of them without tensor cores.
const WARM_PLAIN: usize = 5;

/// The backend of a GPU: `f32` activations; weights, keys and values as their [`Dtype`] says.
pub(super) struct Gpu<R>(PhantomData<R>);

/// The backend of `--device cuda`.
#[cfg(feature = "cuda")]
pub(super) type Cuda = Gpu<cubecl::cuda::CudaRuntime>;

/// The backend of `--device vulkan`.
#[cfg(feature = "vulkan")]
pub(super) type Vulkan = Gpu<cubecl::wgpu::WgpuRuntime>;

/// Numbers of a run of the largest matrix that is uploaded at once.
const RUN: usize = 1 << 22;

/// Keys and values of all layers.
pub(in crate::gpt2) struct Cache<R: Runtime> {
    plan: attention::Plan,
    blocks: usize,
    layers: Vec<Numbers<R>>,
    /// The step's table, which all layers share, and the numbers that it was made of.
    table: Option<(Vec<u32>, Table<R>)>,
}

impl<R: Runtime> Gpt2Backend for Gpu<R> {
    type Device = Site<R>;
    type Floats = Numbers<R>;
    type Vector = Numbers<R>;
    type Matrix = Matrix<R>;
    type Cache = Cache<R>;

    const QUEUES: bool = true;

    /// On the thread that the device is told by, which otherwise would be handed each operation, and sleep between two. Models on one
    /// device take turns.
    fn share<T: Send + 'static>(site: &Self::Device, _multiplications: usize, step: impl FnOnce() -> T + Send) -> T {
        let step = || Counts::of(|| catch_unwind(AssertUnwindSafe(step)));
        let (answer, counts) = site.client().exclusive(step).expect("the device's thread");
        counts.tell();
        answer.unwrap_or_else(|panic| {
            // There may have been too little memory: a smaller step is to find all that this one took.
            site.clear();
            resume_unwind(panic)
        })
    }

    fn floats(values: Vec<f32>, shape: [usize; 2], device: &Self::Device) -> Self::Floats {
        Numbers::floats(device, values, shape)
    }

    fn vector(values: Vec<f32>, device: &Self::Device) -> Self::Vector {
        let shape = [1, values.len()];
        Numbers::floats(device, values, shape)
    }

    fn values(floats: Self::Floats) -> Result<Vec<f32>, StepError> {
        floats.read().map_err(StepError::Device)
    }

    fn rows(floats: &Self::Floats, which: &[usize]) -> Self::Floats {
        floats.rows(which)
    }

    fn pack(weight: Self::Floats, dtype: Dtype) -> Self::Matrix {
        let mut matrix = Matrix::reserve(weight.site(), weight.shape(), Word::of(dtype));
        matrix.pack(&weight, 0, false);
        matrix
    }

    fn pack_transposed<E>(
        [inputs, outputs]: [usize; 2],
        dtype: Dtype,
        device: &Self::Device,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self::Matrix, E> {
        let mut matrix = Matrix::reserve(device, [inputs, outputs], Word::of(dtype));
        let run = (RUN / inputs).max(1).next_multiple_of(matrix.columns_at_once());
        for first in (0..outputs).step_by(run) {
            let columns = first..(first + run).min(outputs);
            let shape = [columns.len(), inputs];
            matrix.pack(&Numbers::floats(device, read(columns)?, shape), first, true);
        }
        Ok(matrix)
    }

    fn embed(weight: &Self::Matrix, positions: &Self::Floats, ids: &[u32], places: &[u32]) -> Self::Floats {
        weight.columns(positions, ids, places)
    }

    fn project(x: &Self::Floats, weight: &Self::Matrix, around: Around<'_, Self>) -> Self::Floats {
        weight.project(x, &around)
    }

    fn block_bytes(shape: CacheShape) -> usize {
        shape.layers * plan(shape).of_block() * size_of::<u32>()
    }

    fn new_cache(shape: CacheShape, device: &Self::Device) -> Self::Cache {
        let plan = plan(shape);
        let layer = |_| Numbers::reserve(device, [shape.blocks, plan.of_block()]);
        Cache {
            plan,
            blocks: shape.blocks,
            layers: (0..shape.layers).map(layer).collect(),
            table: None,
        }
    }

    fn attend(qkv: &Self::Floats, cache: &mut Self::Cache, layer: usize, spans: &[Span<'_>]) -> Self::Floats {
        let table = cache.table(spans, qkv.site());
        let mixed = launch::attend(qkv, &cache.layers[layer], &table.1, cache.plan);
        cache.table = Some(table);
        mixed
    }

    fn draws(device: &Self::Device) -> bool {
        launch::draws(device)
    }

    fn draw(logits: Self::Floats, draws: &[Draw]) -> Result<Vec<Drawn>, StepError> {
        if !launch::draws(logits.site()) {
            let [_, width] = logits.shape();
            return Ok(Drawn::left(&Self::values(logits)?, width));
        }
        launch::draw(&logits, draws).map_err(StepError::Device)
    }
}

impl<R: Runtime> Gpu<R> {
    /// Logs what `--order fast` brings on this device with such weights.
    pub(super) fn tell_order(site: &Site<R>, dtype: Dtype) {
        if site.order() == Order::Fast {
            if has_tensor_cores(site, dtype) {
                tracing::info!("tensor cores multiply in the fixed order: --order fast changes nothing");
            } else {
                tracing::info!("many rows at once are multiplied in tiles");
            }
        }
    }

    /// Numbers of rows, and of tokens of prompts, with which every kernel has run: the tiles of `linear.rs`, `tiles.rs`, and the shapes
    /// of `tensor/`, if they are used.
    pub(super) fn warm(site: &Site<R>, dtype: Dtype) -> &'static [usize] {
        if has_tensor_cores(site, dtype) {
            &WARM
        } else {
            &WARM[..WARM_PLAIN]
        }
    }
}

fn has_tensor_cores<R: Runtime>(site: &Site<R>, dtype: Dtype) -> bool {
    tensor::fits(site.client(), Word::of(dtype), layout::SIDE)
}

impl<R: Runtime> Cache<R> {
    /// The step's table: the last one if it is the same, as it is in all layers but the first.
    fn table(&mut self, spans: &[Span<'_>], site: &Site<R>) -> (Vec<u32>, Table<R>) {
        let numbers = self.numbers(spans);
        match self.table.take() {
            Some((same, table)) if same == numbers => (same, table),
            _ => {
                let tokens = spans.iter().map(|span| span.len).sum();
                let single = spans.iter().all(|span| span.len == 1);
                let table = Table::new(site, numbers.clone(), tokens, single);
                (numbers, table)
            }
        }
    }

    /// What `attention.rs` is to know of each token, then the block tables.
    fn numbers(&self, spans: &[Span<'_>]) -> Vec<u32> {
        let tokens: usize = spans.iter().map(|span| span.len).sum();
        let mut numbers = Vec::with_capacity(tokens * (attention::OF_TOKEN + 1));
        let mut blocks = tokens * attention::OF_TOKEN;
        for span in spans {
            for position in span.position..span.position + span.len {
                let place = span.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
                numbers.extend([position, blocks, place].map(|number| number as u32));
            }
            blocks += span.blocks.len();
        }
        for span in spans {
            let there = span.blocks.iter().all(|block| (*block as usize) < self.blocks);
            assert!(there, "blocks that the cache has");
            numbers.extend_from_slice(span.blocks);
        }
        numbers
    }
}

fn plan(shape: CacheShape) -> attention::Plan {
    attention::Plan {
        word: Word::of(shape.dtype),
        heads: shape.heads,
        head_dim: shape.head_dim,
    }
}
