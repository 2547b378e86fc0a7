//! The micro-kernel over weights of floating point.

use std::iter::once;
use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};

use super::linear::{Blocks, ROWS, Strip, with_rows};
use super::lines::{Line, WIDTH};
use super::panels::{Panels, inputs_of_word};

/// Vector registers that hold sums of one row.
const VECTORS: usize = 2;

/// How a word becomes weights.
pub(super) trait Word: Send + Sync {
    /// How many weights a word holds.
    const INPUTS: usize;
    /// The weights in that place of each word.
    fn weights<S: Simd>(simd: S, words: S::u32s, place: usize) -> S::f32s;
}

/// A word is a weight.
pub(super) struct F32;

/// A word holds two weights, the lower half the first.
pub(super) struct Bf16;

impl Word for F32 {
    const INPUTS: usize = 1;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, words: S::u32s, _place: usize) -> S::f32s {
        simd.transmute_f32s_u32s(words)
    }
}

impl Word for Bf16 {
    const INPUTS: usize = 2;

    #[inline(always)]
    fn weights<S: Simd>(simd: S, words: S::u32s, place: usize) -> S::f32s {
        simd.transmute_f32s_u32s(if place == 0 {
            simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16))
        } else {
            simd.and_u32s(words, simd.splat_u32s(0xFFFF_0000))
        })
    }
}

/// Packs `x [T, inputs]` into blocks of as many rows as the registers have room for, filled up to whole words.
pub(super) fn pack(arch: Arch, x: &[f32], weights: &Panels) -> Blocks<f32> {
    let rows = arch.dispatch(RowsOfBlock);
    let inputs = weights.lines_of_panel() * inputs_of_word(weights.dtype);
    if inputs == weights.inputs {
        return Blocks::pack(x, inputs, rows);
    }
    let mut filled = vec![0.0; x.len() / weights.inputs * inputs];
    for (filled, x) in filled.chunks_exact_mut(inputs).zip(x.chunks_exact(weights.inputs)) {
        filled[..x.len()].copy_from_slice(x);
    }
    Blocks::pack(&filled, inputs, rows)
}

struct RowsOfBlock;

impl WithSimd for RowsOfBlock {
    type Output = usize;

    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        // Two registers of sums a row, and some for weights and an input.
        if S::REGISTER_COUNT >= 32 { ROWS } else { ROWS / 2 }
    }
}

/// A panel's part of the product. A type and no closure: only what is sure to be inlined into `dispatch` is compiled for the
/// chosen instructions, and a multiply-add that is not is a call into the C library, ten times slower.
pub(super) struct PanelProduct<'a, W> {
    x: &'a Blocks<f32>,
    lines: &'a [Line],
    strips: &'a mut [Strip],
    word: PhantomData<W>,
}

impl<'a, W: Word> PanelProduct<'a, W> {
    pub(super) const fn new(x: &'a Blocks<f32>, lines: &'a [Line], strips: &'a mut [Strip]) -> Self {
        Self {
            x,
            lines,
            strips,
            word: PhantomData,
        }
    }
}

impl<W: Word> WithSimd for PanelProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (strips, x) in self.strips.chunks_mut(self.x.rows).zip(self.x.iter()) {
            with_rows!(strips.len(), R => block::<S, W, R>(simd, &once(self.lines), x, strips));
        }
    }
}

/// The product of `R` rows with a panel, whose sums stay in registers: `x [inputs][R]`, `strips [R][32]`. The panel's lines
/// come in one run or in several.
#[inline(always)]
pub(super) fn block<'a, S: Simd, W: Word, const R: usize>(
    simd: S,
    runs: &(impl Iterator<Item = &'a [Line]> + Clone),
    x: &[f32],
    strips: &mut [Strip],
) {
    let x = x.as_chunks::<R>().0;
    for group in 0..WIDTH / (VECTORS * S::F32_LANES) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; R];
        let mut x = x;
        for lines in runs.clone() {
            let (here, rest) = x.split_at(lines.len() * W::INPUTS);
            x = rest;
            for (line, x) in lines.iter().zip(here.chunks_exact(W::INPUTS)) {
                let words = &S::as_simd_u32s(line).0[group * VECTORS..][..VECTORS];
                for (place, x) in x.iter().enumerate() {
                    let weights = [W::weights(simd, words[0], place), W::weights(simd, words[1], place)];
                    for (sums, x) in sums.iter_mut().zip(x) {
                        let x = simd.splat_f32s(*x);
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = simd.mul_add_e_f32s(x, weights, *sum);
                        }
                    }
                }
            }
        }
        for (strip, sums) in strips.iter_mut().zip(sums) {
            S::as_mut_simd_f32s(strip).0[group * VECTORS..][..VECTORS].copy_from_slice(&sums);
        }
    }
}
