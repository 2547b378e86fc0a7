//! Layer norm of rows: Ba, Kiros and Hinton, "Layer Normalization" (2016).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::threads;

/// Normalizes each row of `x [T, C]` and applies scale and shift.
pub(super) fn rows(arch: Arch, x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) -> Vec<f32> {
    let width = gamma.len();
    let mut y = vec![0.0; x.len()];
    let rows = x.par_chunks_exact(width).zip(y.par_chunks_exact_mut(width));
    rows.with_min_len(threads::task_of(width)).for_each(|(x, y)| {
        arch.dispatch(Row {
            x,
            y,
            gamma,
            beta,
            epsilon,
        });
    });
    y
}

struct Row<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let width = self.x.len() as f32;
        let mean = sum(self.x, |value| value) / width;
        let variance = sum(self.x, |value| (value - mean) * (value - mean)) / width;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for (((y, x), gamma), beta) in self.y.iter_mut().zip(self.x).zip(self.gamma).zip(self.beta) {
            *y = (x - mean) * scale * gamma + beta;
        }
    }
}

/// Partial sums, so that a row's sum is vectorized in one fixed order.
const LANES: usize = 32;

#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += term(*value);
    }
    lanes.iter().sum()
}
