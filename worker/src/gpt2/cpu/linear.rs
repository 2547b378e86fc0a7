//! Matrix products over packed weights.
//!
//! A weight matrix `[in, out]` is cut into panels of 16 columns, each stored row after row, so that the kernel streams
//! through memory once. Each output element adds its products in the order of `in`, whatever the number of rows: a block
//! of four rows does the same operations to each of them as a block of one.

// What runs under `Arch::dispatch` must be inlined into it to be compiled for the chosen vector instructions.
#![allow(clippy::inline_always)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::Activation;

/// Columns of a panel: two AVX2 or one AVX-512 register.
const WIDTH: usize = 16;
/// Rows that share one pass over a panel: their sums fill half of the vector registers.
const ROWS: usize = 4;

/// A packed weight matrix.
#[derive(Debug, Clone)]
pub struct Panels {
    inputs: usize,
    outputs: usize,
    /// `[outputs / 16, inputs, 16]`, the last panel filled up with zeros.
    weights: Vec<f32>,
}

impl Panels {
    /// Packs `weight [inputs, outputs]`.
    pub(super) fn pack(weight: &[f32], inputs: usize, outputs: usize) -> Self {
        let panels = outputs.div_ceil(WIDTH);
        let mut weights = vec![0.0; panels * inputs * WIDTH];
        for (panel, packed) in weights.chunks_exact_mut(inputs * WIDTH).enumerate() {
            let columns = panel * WIDTH..outputs.min((panel + 1) * WIDTH);
            for (row, packed) in packed.chunks_exact_mut(WIDTH).enumerate() {
                let source = &weight[row * outputs..][columns.clone()];
                packed[..source.len()].copy_from_slice(source);
            }
        }
        Self {
            inputs,
            outputs,
            weights,
        }
    }

    /// `x [T, inputs] × self + bias`, then the activation. Answers `[T, outputs]`.
    pub(super) fn multiply(&self, x: &[f32], bias: Option<&[f32]>, activation: Option<Activation>) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        // One strip `[T, 16]` a panel, so that threads write apart from each other.
        let mut strips = vec![0.0; self.weights.len() / self.inputs * rows];
        let arch = Arch::new();
        strips
            .par_chunks_exact_mut(rows * WIDTH)
            .zip(self.weights.par_chunks_exact(self.inputs * WIDTH))
            .enumerate()
            .with_min_len(self.panels_per_task(rows))
            .for_each(|(panel, (strip, weights))| {
                arch.dispatch(PanelProduct {
                    strip: &mut *strip,
                    x,
                    weights,
                    inputs: self.inputs,
                });
                let columns = panel * WIDTH..self.outputs.min((panel + 1) * WIDTH);
                finish(strip, bias.map(|bias| &bias[columns]), activation);
            });
        self.interleave(&strips, rows)
    }

    /// A task should be worth its hand-over: some 100,000 multiplications.
    fn panels_per_task(&self, rows: usize) -> usize {
        100_000 / (self.inputs * WIDTH * rows) + 1
    }

    /// From strips `[panel][T][16]` to rows `[T][outputs]`.
    fn interleave(&self, strips: &[f32], rows: usize) -> Vec<f32> {
        let mut y = vec![0.0; rows * self.outputs];
        for (row, y) in y.chunks_exact_mut(self.outputs).enumerate() {
            for (panel, y) in y.chunks_mut(WIDTH).enumerate() {
                let at = (panel * rows + row) * WIDTH;
                y.copy_from_slice(&strips[at..at + y.len()]);
            }
        }
        y
    }
}

/// A panel's part of the product. A type and no closure: only what is sure to be inlined into `dispatch` is compiled for the
/// chosen instructions, and a multiply-add that is not is a call into the C library, ten times slower.
struct PanelProduct<'a> {
    /// `[T, 16]`
    strip: &'a mut [f32],
    x: &'a [f32],
    weights: &'a [f32],
    inputs: usize,
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        panel_product(self.strip, self.x, self.weights, self.inputs);
    }
}

#[inline(always)]
fn panel_product(strip: &mut [f32], x: &[f32], weights: &[f32], inputs: usize) {
    let blocks = strip.chunks_mut(ROWS * WIDTH).zip(x.chunks(ROWS * inputs));
    for (strip, x) in blocks {
        match x.len() / inputs {
            ROWS => block_product::<ROWS>(strip, x, weights, inputs),
            3 => block_product::<3>(strip, x, weights, inputs),
            2 => block_product::<2>(strip, x, weights, inputs),
            _ => block_product::<1>(strip, x, weights, inputs),
        }
    }
}

#[inline(always)]
fn block_product<const R: usize>(strip: &mut [f32], x: &[f32], weights: &[f32], inputs: usize) {
    let mut sums = [[0.0_f32; WIDTH]; R];
    let rows: [&[f32]; R] = std::array::from_fn(|row| &x[row * inputs..(row + 1) * inputs]);
    for (input, weights) in weights.chunks_exact(WIDTH).take(inputs).enumerate() {
        for row in 0..R {
            let value = rows[row][input];
            for column in 0..WIDTH {
                sums[row][column] = value.mul_add(weights[column], sums[row][column]);
            }
        }
    }
    for (strip, sums) in strip.chunks_exact_mut(WIDTH).zip(&sums) {
        strip.copy_from_slice(sums);
    }
}

fn finish(strip: &mut [f32], bias: Option<&[f32]>, activation: Option<Activation>) {
    for strip in strip.chunks_exact_mut(WIDTH) {
        if let Some(bias) = bias {
            strip.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        match activation {
            Some(Activation::GeluTanh) => strip.iter_mut().for_each(|value| *value = gelu_tanh(*value)),
            Some(Activation::GeluErf) => strip.iter_mut().for_each(|value| *value = gelu_erf(*value)),
            None => {}
        }
    }
}

/// Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), the approximation.
fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (0.044_715 * x * x).mul_add(x, x);
    0.5 * x * (1.0 + inner.tanh())
}

/// The same source, exactly.
fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))) as f32
}
