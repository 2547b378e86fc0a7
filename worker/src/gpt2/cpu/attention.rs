//! Causal attention over a cache that is written in place.
//!
//! Keys and values lie in panels like weights do, keys with a column for each position and values with a line for each, so
//! that scores and weighted sums are products of the same kernel. A token's sums go over its own past in the order of
//! positions: a chunk of prefill does to each of its tokens what decoding would have done.

use claimcheck_common::domain::Dtype;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::{CacheShape, Span};
use super::float::{Bf16, F32, Word, block};
use super::linear::{ROWS, Strip, with_rows};
use super::lines::{Line, Lines, WIDTH};
use super::math::exp;

/// Keys and values, each `[layer][slot][head]` of a [`Plan`]'s lines.
pub struct Cache {
    shape: CacheShape,
    plan: Plan,
    keys: Lines,
    values: Lines,
}

/// How the past of one head of one slot lies in lines.
#[derive(Debug, Clone, Copy)]
struct Plan {
    head_dim: usize,
    /// Of words: `f32` or `bf16`, two of which share a word, neighbours along the inputs of the product.
    dtype: Dtype,
    /// Lines of a panel of keys, one for each word of `head_dim`; there is such a panel for each 32 positions.
    key_lines: usize,
    /// Lines of a panel of values, one for each word of positions; there is such a panel for each 32 of `head_dim`.
    value_lines: usize,
}

impl Plan {
    fn new(shape: CacheShape) -> Self {
        let inputs = if shape.dtype == Dtype::F32 {
            F32::INPUTS
        } else {
            Bf16::INPUTS
        };
        Self {
            head_dim: shape.head_dim,
            dtype: shape.dtype,
            key_lines: shape.head_dim.div_ceil(inputs),
            value_lines: shape.positions.div_ceil(inputs),
        }
    }

    /// Puts a token's key `[head_dim]` into its column and its value into its line.
    fn write(&self, position: usize, key: &[f32], value: &[f32], keys: &mut [Line], values: &mut [Line]) {
        let panel = &mut keys[position / WIDTH * self.key_lines..][..self.key_lines];
        for (input, key) in key.iter().enumerate() {
            let (line, place) = self.place(input);
            self.put(&mut panel[line][position % WIDTH], place, *key);
        }
        let (line, place) = self.place(position);
        for (column, value) in value.iter().enumerate() {
            let line = &mut values[column / WIDTH * self.value_lines + line];
            self.put(&mut line[column % WIDTH], place, *value);
        }
    }

    /// The line of an input, and its place within the word.
    const fn place(&self, input: usize) -> (usize, usize) {
        match self.dtype {
            Dtype::F32 => (input, 0),
            Dtype::Bf16 | Dtype::Int8 => (input / Bf16::INPUTS, input % Bf16::INPUTS),
        }
    }

    fn put(&self, word: &mut u32, place: usize, value: f32) {
        *word = match (self.dtype, place) {
            (Dtype::F32, _) => value.to_bits(),
            // What an earlier sequence left in the other half must not be read with it.
            (_, 0) => u32::from(bf16::from_f32(value).to_bits()),
            _ => (*word & 0xFFFF) | u32::from(bf16::from_f32(value).to_bits()) << 16,
        };
    }
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Self {
        let plan = Plan::new(shape);
        let heads = shape.layers * shape.slots * shape.heads;
        Self {
            shape,
            plan,
            keys: Lines::zeroed(heads * shape.positions.div_ceil(WIDTH) * plan.key_lines),
            values: Lines::zeroed(heads * shape.head_dim.div_ceil(WIDTH) * plan.value_lines),
        }
    }

    /// See [`super::super::Gpt2Backend::attend`].
    pub(super) fn attend(&mut self, arch: Arch, qkv: &[f32], layer: usize, spans: &[Span]) -> Vec<f32> {
        let CacheShape {
            slots, heads, head_dim, ..
        } = self.shape;
        let width = heads * head_dim;
        // Where the span of each slot begins within the step.
        let mut of_slot = vec![None; slots];
        let mut tokens = 0;
        for span in spans {
            of_slot[span.slot] = Some((tokens, *span));
            tokens += span.len;
        }
        let plan = self.plan;
        let (keys, values) = (self.keys.get_mut(), self.values.get_mut());
        let heads_of_layer = slots * heads;
        let (key_lines, value_lines) = (
            keys.len() / (self.shape.layers * heads_of_layer),
            values.len() / (self.shape.layers * heads_of_layer),
        );
        let mixed: Vec<Vec<f32>> = keys[layer * heads_of_layer * key_lines..][..heads_of_layer * key_lines]
            .par_chunks_exact_mut(key_lines)
            .zip(
                values[layer * heads_of_layer * value_lines..][..heads_of_layer * value_lines]
                    .par_chunks_exact_mut(value_lines),
            )
            .enumerate()
            .with_min_len(heads_of_task(spans, head_dim, slots))
            .filter_map(|(index, (keys, values))| {
                let (slot, head) = (index / heads, index % heads);
                let (first, span) = of_slot[slot]?;
                let qkv = &qkv[first * 3 * width..][..span.len * 3 * width];
                Some(arch.dispatch(Head {
                    plan,
                    span,
                    index: head,
                    qkv,
                    width,
                    keys,
                    values,
                }))
            })
            .collect();
        // From `[slot][head][token of the span][head_dim]` to `[T][C]`.
        let mut y = vec![0.0; tokens * width];
        let active = of_slot.iter().flatten();
        for ((first, span), mixed) in active.zip(mixed.chunks_exact(heads)) {
            let rows = &mut y[first * width..][..span.len * width];
            for (head, mixed) in mixed.iter().enumerate() {
                for (row, mixed) in rows.chunks_exact_mut(width).zip(mixed.chunks_exact(head_dim)) {
                    row[head * head_dim..][..head_dim].copy_from_slice(mixed);
                }
            }
        }
        y
    }
}

/// A task should be worth its hand-over: some 200,000 multiplications.
fn heads_of_task(spans: &[Span], head_dim: usize, slots: usize) -> usize {
    let looked_at: usize = spans.iter().map(|span| span.len * (span.position + span.len)).sum();
    200_000 * slots / (2 * looked_at * head_dim).max(1) + 1
}

/// One head's part of a span. A type and no closure, so that it is sure to be inlined (`float.rs` says why).
struct Head<'a> {
    plan: Plan,
    span: Span,
    index: usize,
    /// Of the span's tokens, `[len, 3 C]`.
    qkv: &'a [f32],
    /// C.
    width: usize,
    keys: &'a mut [Line],
    values: &'a mut [Line],
}

impl WithSimd for Head<'_> {
    /// `[len, head_dim]`
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let head_dim = self.plan.head_dim;
        for (token, qkv) in self.qkv.chunks_exact(3 * self.width).enumerate() {
            let part = |which: usize| &qkv[which * self.width + self.index * head_dim..][..head_dim];
            let position = self.span.position + token;
            self.plan.write(position, part(1), part(2), self.keys, self.values);
        }
        let mut mixed = vec![0.0; self.span.len * head_dim];
        let mut scratch = Scratch::default();
        let blocks = mixed
            .chunks_mut(ROWS * head_dim)
            .zip(self.qkv.chunks(ROWS * 3 * self.width));
        for (index, (mixed, qkv)) in blocks.enumerate() {
            let look = Look {
                plan: self.plan,
                first: self.span.position + index * ROWS,
                queries: &qkv[self.index * head_dim..],
                stride: 3 * self.width,
                keys: self.keys,
                values: self.values,
            };
            let rows = mixed.len() / head_dim;
            match self.plan.dtype {
                Dtype::F32 => with_rows!(rows, R => look.mix::<S, F32, R>(simd, &mut scratch, mixed)),
                _ => with_rows!(rows, R => look.mix::<S, Bf16, R>(simd, &mut scratch, mixed)),
            }
        }
        mixed
    }
}

/// Memory that blocks use one after another.
#[derive(Default)]
struct Scratch {
    /// `[inputs][R]`
    x: Vec<f32>,
    /// `[panel][R][32]`
    strips: Vec<Strip>,
}

/// Some consecutive tokens that look at their past.
struct Look<'a> {
    plan: Plan,
    /// Position of the first of them.
    first: usize,
    /// From the first one's query on.
    queries: &'a [f32],
    /// From one query to the next.
    stride: usize,
    keys: &'a [Line],
    values: &'a [Line],
}

impl Look<'_> {
    /// Softmax of the scaled scores, times the values: `mixed [R, head_dim]`.
    #[inline(always)]
    fn mix<S: Simd, W: Word, const R: usize>(&self, simd: S, scratch: &mut Scratch, mixed: &mut [f32]) {
        let Plan {
            head_dim,
            key_lines,
            value_lines,
            ..
        } = self.plan;
        let positions = self.first + R;
        let Scratch { x, strips } = scratch;
        let scale = 1.0 / (head_dim as f32).sqrt();
        x.clear();
        x.resize(key_lines * W::INPUTS * R, 0.0);
        for (input, x) in x.chunks_exact_mut(R).enumerate().take(head_dim) {
            for (row, x) in x.iter_mut().enumerate() {
                *x = self.queries[row * self.stride + input] * scale;
            }
        }
        let panels = positions.div_ceil(WIDTH);
        strips.clear();
        strips.resize(panels * R, [0.0; WIDTH]);
        for (strips, keys) in strips.chunks_exact_mut(R).zip(self.keys.chunks_exact(key_lines)) {
            block::<S, W, R>(simd, keys, x, strips);
        }
        // Weights for each position that the last of the tokens sees, none beyond a token's own.
        let lines = positions.div_ceil(W::INPUTS);
        x.clear();
        x.resize(lines * W::INPUTS * R, 0.0);
        let mut shares = [0.0; R];
        for row in 0..R {
            let sees = self.first + row + 1;
            shares[row] = 1.0 / exponentials::<S, R>(simd, strips, row, sees);
            for panel in 0..panels {
                let weights = &strips[panel * R + row];
                let x = x[panel * WIDTH * R..].chunks_exact_mut(R);
                for (x, weight) in x.zip(weights) {
                    x[row] = *weight;
                }
            }
        }
        for (panel, values) in self.values.chunks_exact(value_lines).enumerate() {
            let mut sums = [[0.0; WIDTH]; R];
            block::<S, W, R>(simd, &values[..lines], x, &mut sums);
            for row in 0..R {
                let mixed = &mut mixed[row * head_dim..][..head_dim];
                for (mixed, sum) in mixed[panel * WIDTH..].iter_mut().zip(&sums[row]) {
                    *mixed = sum * shares[row];
                }
            }
        }
    }
}

/// Makes each score of a row e to the power of its distance to the greatest, nothing where the row does not look, and
/// answers their sum. `strips [panel][R][32]`.
#[inline(always)]
fn exponentials<S: Simd, const R: usize>(simd: S, strips: &mut [Strip], row: usize, sees: usize) -> f32 {
    let last = (sees - 1) / WIDTH;
    let hidden = sees - last * WIDTH;
    let mut greatest = simd.splat_f32s(f32::NEG_INFINITY);
    strips[last * R + row][hidden..].fill(f32::NEG_INFINITY);
    for panel in 0..=last {
        for scores in S::as_simd_f32s(&strips[panel * R + row]).0 {
            greatest = simd.max_f32s(*scores, greatest);
        }
    }
    let greatest = simd.splat_f32s(simd.reduce_max_f32s(greatest));
    let mut sums = simd.splat_f32s(0.0);
    for panel in 0..=last {
        let strip = &mut strips[panel * R + row];
        for scores in S::as_mut_simd_f32s(strip).0 {
            *scores = exp(simd, simd.sub_f32s(*scores, greatest));
        }
        if panel == last {
            strip[hidden..].fill(0.0);
        }
        for scores in S::as_simd_f32s(strip).0 {
            sums = simd.add_f32s(sums, *scores);
        }
    }
    for strip in strips.iter_mut().skip((last + 1) * R + row).step_by(R) {
        strip.fill(0.0);
    }
    simd.reduce_sum_f32s(sums)
}
