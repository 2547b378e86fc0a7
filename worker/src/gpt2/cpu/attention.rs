//! Causal attention over a cache that is written in place.
//!
//! Each (token, head) is computed by itself over its own past, in the order of positions: a chunk of prefill does to each
//! of its tokens what decoding would have done.

// What runs under `Arch::dispatch` must be inlined into it to be compiled for the chosen vector instructions.
#![allow(clippy::inline_always)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::{CacheShape, Span};

/// Partial sums of a dot product.
const LANES: usize = 8;

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
    pub(super) fn attend(&mut self, qkv: &[f32], layer: usize, spans: &[Span]) -> Vec<f32> {
        let CacheShape { heads, head_dim, .. } = self.shape;
        let width = heads * head_dim;
        // (slot, position) of each token of the step
        let places: Vec<_> = spans
            .iter()
            .flat_map(|span| (0..span.len).map(|token| (span.slot, span.position + token)))
            .collect();
        self.write(qkv, layer, &places);
        let mut mixed = vec![0.0; places.len() * width];
        let arch = Arch::new();
        mixed
            .par_chunks_exact_mut(head_dim)
            .enumerate()
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

// A type and no closure, so that it is sure to be inlined (`linear.rs` says why).
impl WithSimd for Look<'_> {
    type Output = ();

    /// Softmax of the scaled scores, times the values.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let width = self.query.len();
        let scale = 1.0 / (width as f32).sqrt();
        let mut weights: Vec<f32> = self
            .keys
            .chunks_exact(width)
            .map(|key| dot(self.query, key) * scale)
            .collect();
        let greatest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for weight in &mut weights {
            *weight = (*weight - greatest).exp();
            total += *weight;
        }
        for (weight, value) in weights.iter().zip(self.values.chunks_exact(width)) {
            let weight = weight / total;
            for (mixed, value) in self.mixed.iter_mut().zip(value) {
                *mixed = weight.mul_add(*value, *mixed);
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    for (a, b) in a.zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    lanes.iter().sum()
}
