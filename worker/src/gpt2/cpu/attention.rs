//! Causal attention over a cache that is written in place.
//!
//! Keys and values lie in panels like weights do, keys with a column for each position and values with a line for each, so
//! that scores and weighted sums are products of the same kernel. A block of the cache is one such panel of keys, and a run of
//! lines of each panel of values. A token's sums go over its own past in the order of positions: a chunk of prefill does to
//! each of its tokens what decoding would have done, and which blocks hold the past makes no difference.

use std::iter::once;

use claimcheck_common::domain::Dtype;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::{BLOCK, CacheShape, Span};
use super::float::{Bf16, F32, Word, block};
use super::linear::{ROWS, Strip, with_rows};
use super::lines::{Line, Lines, WIDTH};
use super::math::exp;
use super::threads;

const _: () = assert!(BLOCK == WIDTH, "a block is a panel of keys");

/// Keys and values, each `[layer][head][block]` of a [`Plan`]'s lines.
pub struct Cache {
    shape: CacheShape,
    plan: Plan,
    keys: Lines,
    values: Lines,
}

/// How one head's part of a block lies in lines.
#[derive(Debug, Clone, Copy)]
struct Plan {
    head_dim: usize,
    /// Of words: `f32` or `bf16`, two of which share a word, neighbours along the inputs of the product.
    dtype: Dtype,
    /// Of keys, one line for each word of `head_dim`.
    key_lines: usize,
    /// Panels of values, one for each 32 of `head_dim`.
    value_panels: usize,
    /// Lines of a panel of values, one for each word of the block's positions.
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
            value_panels: shape.head_dim.div_ceil(WIDTH),
            value_lines: BLOCK / inputs,
        }
    }

    /// Lines of values in a block.
    const fn lines_of_values(&self) -> usize {
        self.value_panels * self.value_lines
    }

    /// A block's keys.
    fn keys<'a>(&self, keys: &'a [Line], block: u32) -> &'a [Line] {
        &keys[block as usize * self.key_lines..][..self.key_lines]
    }

    /// The first lines of one panel of a block's values.
    fn values<'a>(&self, values: &'a [Line], block: u32, panel: usize, lines: usize) -> &'a [Line] {
        let first = block as usize * self.lines_of_values() + panel * self.value_lines;
        &values[first..][..lines.min(self.value_lines)]
    }

    /// Puts a token's key `[head_dim]` into its column and its value into its line.
    fn write(&self, block: u32, place: usize, token: [&[f32]; 2], keys: &mut [Line], values: &mut [Line]) {
        let [key, value] = token;
        let panel = &mut keys[block as usize * self.key_lines..][..self.key_lines];
        for (input, key) in key.iter().enumerate() {
            let (line, part) = self.part(input);
            self.put(&mut panel[line][place], part, *key);
        }
        let (line, part) = self.part(place);
        let panels = &mut values[block as usize * self.lines_of_values()..][..self.lines_of_values()];
        for (panel, value) in panels.chunks_exact_mut(self.value_lines).zip(value.chunks(WIDTH)) {
            for (word, value) in panel[line].iter_mut().zip(value) {
                self.put(word, part, *value);
            }
        }
    }

    /// The line of an input, and its part of the word.
    const fn part(&self, input: usize) -> (usize, usize) {
        match self.dtype {
            Dtype::F32 => (input, 0),
            Dtype::Bf16 | Dtype::Int8 => (input / Bf16::INPUTS, input % Bf16::INPUTS),
        }
    }

    fn put(&self, word: &mut u32, part: usize, value: f32) {
        *word = match (self.dtype, part) {
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
        let heads = shape.layers * shape.heads;
        Self {
            shape,
            plan,
            keys: Lines::zeroed(heads * shape.blocks * plan.key_lines),
            values: Lines::zeroed(heads * shape.blocks * plan.lines_of_values()),
        }
    }

    /// See [`super::super::Gpt2Backend::block_bytes`].
    pub(super) fn block_bytes(shape: CacheShape) -> usize {
        let plan = Plan::new(shape);
        shape.layers * shape.heads * (plan.key_lines + plan.lines_of_values()) * size_of::<Line>()
    }

    /// See [`super::super::Gpt2Backend::attend`].
    pub(super) fn attend(&mut self, arch: Arch, qkv: &[f32], layer: usize, spans: &[Span<'_>]) -> Vec<f32> {
        let CacheShape {
            blocks,
            heads,
            head_dim,
            ..
        } = self.shape;
        let (plan, width) = (self.plan, heads * head_dim);
        let tokens = qkv.len() / (3 * width);
        let (key_lines, value_lines) = (blocks * plan.key_lines, blocks * plan.lines_of_values());
        let keys = &mut self.keys.get_mut()[layer * heads * key_lines..][..heads * key_lines];
        let values = &mut self.values.get_mut()[layer * heads * value_lines..][..heads * value_lines];
        // `[head][T][head_dim]`: each head writes its own keys, values and sums.
        let mut mixed = vec![0.0; tokens * width];
        keys.par_chunks_exact_mut(key_lines)
            .zip(values.par_chunks_exact_mut(value_lines))
            .zip(mixed.par_chunks_exact_mut(tokens * head_dim))
            .enumerate()
            .with_min_len(threads::task(of_task(spans, head_dim, 1)))
            .for_each(|(index, ((keys, values), mixed))| {
                let head = Head {
                    plan,
                    index,
                    qkv,
                    width,
                    spans,
                };
                head.write(keys, values);
                head.look(arch, keys, values, mixed);
            });
        let mut y = vec![0.0; tokens * width];
        y.par_chunks_exact_mut(width)
            .enumerate()
            .with_min_len(threads::task_of(width))
            .for_each(|(token, y)| {
                for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
                    y.copy_from_slice(&mixed[(head * tokens + token) * head_dim..][..head_dim]);
                }
            });
        y
    }
}

/// A task should be worth its hand-over, some 50,000 multiplications: so many of the things of which a head has `parts`.
fn of_task(spans: &[Span<'_>], head_dim: usize, parts: usize) -> usize {
    let looked_at: usize = spans.iter().map(|span| span.len * (span.position + span.len)).sum();
    50_000 * parts / (2 * looked_at * head_dim).max(1) + 1
}

/// One head's part of a step.
struct Head<'a> {
    plan: Plan,
    index: usize,
    /// Of all the step's tokens, `[T, 3 C]`.
    qkv: &'a [f32],
    /// C.
    width: usize,
    spans: &'a [Span<'a>],
}

impl Head<'_> {
    /// Puts the keys and values of all tokens into their blocks.
    fn write(&self, keys: &mut [Line], values: &mut [Line]) {
        let mut tokens = self.qkv.chunks_exact(3 * self.width);
        for span in self.spans {
            for (position, qkv) in (span.position..).zip(tokens.by_ref().take(span.len)) {
                let part =
                    |which: usize| &qkv[which * self.width + self.index * self.plan.head_dim..][..self.plan.head_dim];
                let (block, place) = (span.blocks[position / BLOCK], position % BLOCK);
                self.plan.write(block, place, [part(1), part(2)], keys, values);
            }
        }
    }

    /// Lets each token look at its past: `mixed [T, head_dim]`.
    fn look(&self, arch: Arch, keys: &[Line], values: &[Line], mut mixed: &mut [f32]) {
        let mut first = 0;
        let mut rows = Vec::with_capacity(self.spans.len());
        for span in self.spans {
            let (of_span, rest) = mixed.split_at_mut(span.len * self.plan.head_dim);
            mixed = rest;
            rows.push(Row {
                plan: self.plan,
                span: *span,
                queries: &self.qkv[first * 3 * self.width + self.index * self.plan.head_dim..],
                stride: 3 * self.width,
                keys,
                values,
                mixed: of_span,
            });
            first += span.len;
        }
        rows.into_par_iter()
            .with_min_len(threads::task(of_task(self.spans, self.plan.head_dim, self.spans.len())))
            .for_each(|row| arch.dispatch(row));
    }
}

/// One head's part of a span. A type and no closure, so that it is sure to be inlined (`float.rs` says why).
struct Row<'a> {
    plan: Plan,
    span: Span<'a>,
    /// From the first token's query on.
    queries: &'a [f32],
    /// From one query to the next.
    stride: usize,
    /// The head's, of all blocks.
    keys: &'a [Line],
    values: &'a [Line],
    /// `[len, head_dim]`
    mixed: &'a mut [f32],
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let head_dim = self.plan.head_dim;
        let mut scratch = Scratch::default();
        for (index, mixed) in self.mixed.chunks_mut(ROWS * head_dim).enumerate() {
            let look = Look {
                plan: self.plan,
                first: self.span.position + index * ROWS,
                queries: &self.queries[index * ROWS * self.stride..],
                stride: self.stride,
                blocks: self.span.blocks,
                keys: self.keys,
                values: self.values,
            };
            let rows = mixed.len() / head_dim;
            match self.plan.dtype {
                Dtype::F32 => with_rows!(rows, R => look.mix::<S, F32, R>(simd, &mut scratch, mixed)),
                _ => with_rows!(rows, R => look.mix::<S, Bf16, R>(simd, &mut scratch, mixed)),
            }
        }
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
    /// Where the past lies.
    blocks: &'a [u32],
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
            value_panels,
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
        let blocks = &self.blocks[..panels];
        for (strips, one) in strips.chunks_exact_mut(R).zip(blocks) {
            block::<S, W, R>(simd, &once(self.plan.keys(self.keys, *one)), x, strips);
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
        for panel in 0..value_panels {
            let runs = blocks.iter().zip((0..lines).step_by(value_lines));
            let runs = runs.map(|(one, before)| self.plan.values(self.values, *one, panel, lines - before));
            let mut sums = [[0.0; WIDTH]; R];
            block::<S, W, R>(simd, &runs, x, &mut sums);
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
