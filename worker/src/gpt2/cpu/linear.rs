//! Matrix products over packed weights: blocks of rows, one task a few panels, bias and activation at the end.
//!
//! Each output element adds its products in the order of the inputs, whatever the number of rows: a block of eight rows
//! does the same operations to each of them as a block of one.

use claimcheck_common::domain::Dtype;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::Activation;
use super::float::{self, Bf16, F32};
use super::int8;
use super::lines::{Line, WIDTH};
use super::math::activate;
use super::panels::Panels;
use super::threads;

/// A row's part of a panel.
pub(super) type Strip = [f32; WIDTH];

/// Most rows of a block.
pub(super) const ROWS: usize = 8;

/// Runs an expression with its number of rows as a constant, so that their sums can stay in registers.
macro_rules! with_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        match $rows {
            1 => {
                const $R: usize = 1;
                $body
            }
            2 => {
                const $R: usize = 2;
                $body
            }
            3 => {
                const $R: usize = 3;
                $body
            }
            4 => {
                const $R: usize = 4;
                $body
            }
            5 => {
                const $R: usize = 5;
                $body
            }
            6 => {
                const $R: usize = 6;
                $body
            }
            7 => {
                const $R: usize = 7;
                $body
            }
            _ => {
                const $R: usize = super::linear::ROWS;
                $body
            }
        }
    };
}
pub(super) use with_rows;

/// Rows in blocks, so that a kernel finds the values that it needs together side by side.
pub(super) struct Blocks<T> {
    len: usize,
    /// Rows of a block, but for the last one.
    pub(super) rows: usize,
    /// Block by block, `[len][rows of the block]`.
    values: Vec<T>,
}

impl<T: Copy + Default + Send + Sync> Blocks<T> {
    /// Packs `x [T, len]`.
    pub(super) fn pack(x: &[T], len: usize, rows: usize) -> Self {
        let mut values = vec![T::default(); x.len()];
        let blocks = values
            .par_chunks_mut(rows * len)
            .zip(x.par_chunks(rows * len))
            .with_min_len(threads::task_of(rows * len));
        blocks.for_each(|(block, x)| {
            let rows = x.len() / len;
            for (row, x) in x.chunks_exact(len).enumerate() {
                for (block, x) in block.chunks_exact_mut(rows).zip(x) {
                    block[row] = *x;
                }
            }
        });
        Self { len, rows, values }
    }

    /// Each block, `[len][rows]`.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[T]> {
        self.values.chunks(self.rows * self.len)
    }
}

impl Panels {
    /// `x [T, inputs] × self + bias`, then the activation. Answers `[T, outputs]`.
    pub(super) fn multiply(
        &self,
        arch: Arch,
        x: &[f32],
        bias: Option<&[f32]>,
        activation: Option<Activation>,
    ) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        match self.dtype {
            Dtype::F32 | Dtype::Bf16 => {
                let x = float::pack(arch, x, self);
                let is_f32 = self.dtype == Dtype::F32;
                self.products(arch, rows, bias, activation, |_, lines, strips| {
                    if is_f32 {
                        arch.dispatch(float::PanelProduct::<F32>::new(&x, lines, strips));
                    } else {
                        arch.dispatch(float::PanelProduct::<Bf16>::new(&x, lines, strips));
                    }
                })
            }
            Dtype::Int8 => {
                let product = int8::Product::new(arch, x, self);
                self.products(arch, rows, bias, activation, |panel, lines, strips| {
                    product.panel(panel, lines, strips);
                })
            }
        }
    }

    fn products(
        &self,
        arch: Arch,
        rows: usize,
        bias: Option<&[f32]>,
        activation: Option<Activation>,
        product: impl Fn(usize, &[Line], &mut [Strip]) + Sync,
    ) -> Vec<f32> {
        let lines_of_panel = self.lines_of_panel();
        // A strip `[T, 32]` a panel, so that threads write apart from each other.
        let mut strips = vec![[0.0; WIDTH]; self.lines().len() / lines_of_panel * rows];
        strips
            .par_chunks_exact_mut(rows)
            .zip(self.lines().par_chunks_exact(lines_of_panel))
            .enumerate()
            .with_min_len(threads::task(self.panels_per_task(rows)))
            .for_each(|(panel, (strips, lines))| {
                product(panel, lines, strips);
                let mut panel_bias = [0.0; WIDTH];
                if let Some(bias) = bias {
                    let columns = &bias[panel * WIDTH..self.outputs.min((panel + 1) * WIDTH)];
                    panel_bias[..columns.len()].copy_from_slice(columns);
                }
                arch.dispatch(Finish {
                    strips,
                    bias: panel_bias,
                    activation,
                });
            });
        self.interleave(&strips, rows)
    }

    /// A task should be worth its hand-over: some 100,000 multiplications.
    fn panels_per_task(&self, rows: usize) -> usize {
        100_000 / (self.inputs * WIDTH * rows) + 1
    }

    /// From strips `[panel][T][32]` to rows `[T][outputs]`.
    fn interleave(&self, strips: &[Strip], rows: usize) -> Vec<f32> {
        let mut y = vec![0.0; rows * self.outputs];
        let by_row = y.par_chunks_exact_mut(self.outputs).enumerate();
        let by_row = by_row.with_min_len(threads::task_of(self.outputs));
        by_row.for_each(|(row, y)| {
            for (panel, y) in y.chunks_mut(WIDTH).enumerate() {
                y.copy_from_slice(&strips[panel * rows + row][..y.len()]);
            }
        });
        y
    }
}

/// Adds the bias and applies the activation.
struct Finish<'a> {
    strips: &'a mut [Strip],
    bias: Strip,
    activation: Option<Activation>,
}

impl WithSimd for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let bias = S::as_simd_f32s(&self.bias).0;
        for strip in self.strips {
            for (value, bias) in S::as_mut_simd_f32s(strip).0.iter_mut().zip(bias) {
                let sum = simd.add_f32s(*value, *bias);
                *value = match self.activation {
                    Some(activation) => activate(simd, activation, sum),
                    None => sum,
                };
            }
        }
    }
}
