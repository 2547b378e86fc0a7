//! Causal attention over a cache that is written in place.
//!
//! Each (token, head) is computed by itself over its own past, in the order of positions: a chunk of prefill does to each
//! of its tokens what decoding would have done.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::{CacheShape, Span};
use super::math::exp;

/// Keys and values, each `[layer][slot][head][position][head_dim]`.
pub struct Cache {
    shape: CacheShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One head's past within the cache, and the token that looks at it.
struct Look<'a> {
    query: &'a [f32],
    /// `[position + 1, head_dim]`
    keys: &'a [f32],
    values: &'a [f32],
    /// What comes of it, `[head_dim]`, zero at first.
    mixed: &'a mut [f32],
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Self {
        let len = shape.layers * shape.slots * shape.heads * shape.positions * shape.head_dim;
        Self {
            shape,
            keys: vec![0.0; len],
            values: vec![0.0; len],
        }
    }

    /// See [`super::super::Gpt2Backend::attend`].
    pub(super) fn attend(&mut self, arch: Arch, qkv: &[f32], layer: usize, spans: &[Span]) -> Vec<f32> {
        let CacheShape { heads, head_dim, .. } = self.shape;
        let width = heads * head_dim;
        // (slot, position) of each token of the step
        let places: Vec<_> = spans
            .iter()
            .flat_map(|span| (0..span.len).map(|token| (span.slot, span.position + token)))
            .collect();
        self.write(qkv, layer, &places);
        let mut mixed = vec![0.0; places.len() * width];
        // A task should be worth its hand-over: some 100,000 multiplications.
        let looked_at: usize = places.iter().map(|(_, position)| position + 1).sum();
        let heads_of_task = 50_000 * places.len() / (looked_at * head_dim) + 1;
        mixed
            .par_chunks_exact_mut(head_dim)
            .enumerate()
            .with_min_len(heads_of_task)
            .for_each(|(index, mixed)| {
                let (token, head) = (index / heads, index % heads);
                let (slot, position) = places[token];
                let past = self.start(layer, slot, head)..;
                let len = (position + 1) * head_dim;
                let look = Look {
                    query: &qkv[token * 3 * width + head * head_dim..][..head_dim],
                    keys: &self.keys[past.clone()][..len],
                    values: &self.values[past][..len],
                    mixed,
                };
                arch.dispatch(look);
            });
        mixed
    }

    fn write(&mut self, qkv: &[f32], layer: usize, places: &[(usize, usize)]) {
        let CacheShape { heads, head_dim, .. } = self.shape;
        let width = heads * head_dim;
        for (qkv, (slot, position)) in qkv.chunks_exact(3 * width).zip(places) {
            for head in 0..heads {
                let at = self.start(layer, *slot, head) + position * head_dim;
                let here = head * head_dim..(head + 1) * head_dim;
                self.keys[at..at + head_dim].copy_from_slice(&qkv[width..2 * width][here.clone()]);
                self.values[at..at + head_dim].copy_from_slice(&qkv[2 * width..][here]);
            }
        }
    }

    const fn start(&self, layer: usize, slot: usize, head: usize) -> usize {
        let CacheShape {
            slots,
            heads,
            positions,
            head_dim,
            ..
        } = self.shape;
        ((layer * slots + slot) * heads + head) * positions * head_dim
    }
}

// A type and no closure, so that it is sure to be inlined (`float.rs` says why).
impl WithSimd for Look<'_> {
    type Output = ();

    /// Softmax of the scaled scores, times the values.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.query.len();
        let scale = 1.0 / (width as f32).sqrt();
        let scores = self
            .keys
            .chunks_exact(width)
            .map(|key| dot(simd, self.query, key) * scale);
        let mut weights: Vec<f32> = scores.collect();
        let total = exponentials(simd, &mut weights);
        let (mixed, rest) = S::as_mut_simd_f32s(self.mixed);
        let whole = mixed.len() * S::F32_LANES;
        for (group, mixed) in mixed.chunks_mut(REGISTERS).enumerate() {
            let at = group * REGISTERS * S::F32_LANES;
            match mixed.len() {
                REGISTERS => mix::<S, REGISTERS>(simd, &weights, total, &self.values[at..], width, mixed),
                _ => mixed.chunks_mut(1).enumerate().for_each(|(vector, mixed)| {
                    mix::<S, 1>(
                        simd,
                        &weights,
                        total,
                        &self.values[at + vector * S::F32_LANES..],
                        width,
                        mixed,
                    );
                }),
            }
        }
        for (place, mixed) in rest.iter_mut().enumerate() {
            let values = self.values[whole + place..].iter().step_by(width);
            *mixed = weights
                .iter()
                .zip(values)
                .map(|(weight, value)| weight / total * value)
                .sum();
        }
    }
}

/// Sums of values that are held in registers while the positions pass.
const REGISTERS: usize = 4;

/// The weighted sum of `V` vectors of each position's value.
#[inline(always)]
fn mix<S: Simd, const V: usize>(
    simd: S,
    weights: &[f32],
    total: f32,
    values: &[f32],
    width: usize,
    mixed: &mut [S::f32s],
) {
    let mut sums = [simd.splat_f32s(0.0); V];
    for (weight, value) in weights.iter().zip(values.chunks(width)) {
        let weight = simd.splat_f32s(*weight);
        for (sum, value) in sums.iter_mut().zip(S::as_simd_f32s(value).0) {
            *sum = simd.mul_add_e_f32s(weight, *value, *sum);
        }
    }
    let share = simd.splat_f32s(1.0 / total);
    for (mixed, sum) in mixed.iter_mut().zip(sums) {
        *mixed = simd.mul_f32s(sum, share);
    }
}

/// Makes each score e to the power of its distance to the greatest, and answers their sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> f32 {
    let greatest = simd.splat_f32s(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (whole, rest) = S::as_mut_simd_f32s(scores);
    let mut sums = simd.splat_f32s(0.0);
    for scores in whole {
        *scores = exp(simd, simd.sub_f32s(*scores, greatest));
        sums = simd.add_f32s(sums, *scores);
    }
    let mut total = simd.reduce_sum_f32s(sums);
    if !rest.is_empty() {
        let last = exp(simd, simd.sub_f32s(simd.partial_load_f32s(rest), greatest));
        simd.partial_store_f32s(rest, last);
        total += rest.iter().sum::<f32>();
    }
    total
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, rest_of_a) = S::as_simd_f32s(a);
    let (b, rest_of_b) = S::as_simd_f32s(b);
    let mut sums = simd.splat_f32s(0.0);
    for (a, b) in a.iter().zip(b) {
        sums = simd.mul_add_e_f32s(*a, *b, sums);
    }
    let rest: f32 = rest_of_a.iter().zip(rest_of_b).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sums) + rest
}
