//! Products of eight-bit weights with inputs that are rounded to eight bits as well.
//!
//! Each row of inputs has a scale of its own (its greatest magnitude is 127), so that a row does not feel its neighbours.
//! The sums are exact integers: their order cannot matter, and every instruction set computes the same.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::linear::{Blocks, ROWS, Strip, with_rows};
use super::lines::{Line, WIDTH};
use super::panels::{GREATEST, INPUTS_OF_INT8, Panels, rounded};
use super::threads;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Vnni};

/// A row's exact sums, one a column of the panel.
pub(super) type Sums = [i32; WIDTH];

/// What computes the sums.
#[derive(Debug, Clone, Copy)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable,
}

impl Instructions {
    /// The best within what `arch` stands for.
    fn within(arch: Arch) -> Self {
        match arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(v4) => Vnni::detect().map_or(Self::Avx2(Avx2(*v4)), Self::Vnni),
            #[cfg(target_arch = "x86_64")]
            Arch::V3(v3) => Self::Avx2(Avx2(v3)),
            _ => Self::Portable,
        }
    }
}

/// A row of inputs is its integers times this.
#[derive(Debug, Clone, Copy)]
struct Row {
    scale: f32,
    /// Of its integers.
    sum: i32,
}

/// Rows of inputs, rounded, and the scales of the weights.
pub(super) struct Product<'a> {
    instructions: Instructions,
    /// Four inputs a word.
    x: Blocks<u32>,
    rows: Vec<Row>,
    scales: &'a [f32],
}

impl<'a> Product<'a> {
    /// Rounds `x [T, inputs]`.
    pub(super) fn new(arch: Arch, x: &[f32], weights: &'a Panels) -> Self {
        let len = weights.lines_of_panel();
        let mut words = vec![0; x.len() / weights.inputs * len];
        let rows = words
            .par_chunks_exact_mut(len)
            .zip(x.par_chunks_exact(weights.inputs))
            .with_min_len(threads::task_of(weights.inputs))
            .map(|(words, x)| arch.dispatch(Round { x, words }))
            .collect();
        let instructions = Instructions::within(arch);
        let block = match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni(_) => ROWS,
            _ => ROWS / 2,
        };
        Self {
            instructions,
            x: Blocks::pack(&words, len, block),
            rows,
            scales: &weights.scales,
        }
    }

    /// `strips [T, 32]` of a panel.
    pub(super) fn panel(&self, panel: usize, lines: &[Line], strips: &mut [Strip]) {
        let scales = &self.scales[panel * WIDTH..][..WIDTH];
        let blocks = strips.chunks_mut(self.x.rows).zip(self.rows.chunks(self.x.rows));
        for ((strips, rows), x) in blocks.zip(self.x.iter()) {
            with_rows!(strips.len(), R => self.block::<R>(lines, x, rows, scales, strips));
        }
    }

    fn block<const R: usize>(&self, lines: &[Line], x: &[u32], rows: &[Row], scales: &[f32], strips: &mut [Strip]) {
        let x = x.as_chunks::<R>().0;
        let sums: [Sums; R] = match self.instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni(vnni) => vnni.sums(lines, x, std::array::from_fn(|row| rows[row].sum)),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(avx2) => avx2.sums(lines, x),
            Instructions::Portable => portable(lines, x),
        };
        for ((strip, sums), row) in strips.iter_mut().zip(&sums).zip(rows) {
            for ((value, sum), scale) in strip.iter_mut().zip(sums).zip(scales) {
                *value = *sum as f32 * (scale * row.scale);
            }
        }
    }
}

fn portable<const R: usize>(lines: &[Line], x: &[[u32; R]]) -> [Sums; R] {
    let mut sums = [[0; WIDTH]; R];
    for (line, x) in lines.iter().zip(x) {
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, word) in sums.iter_mut().zip(line) {
                let products = integers(*x).into_iter().zip(integers(*word));
                *sum += products.map(|(x, weight)| x * weight).sum::<i32>();
            }
        }
    }
    sums
}

fn integers(word: u32) -> [i32; INPUTS_OF_INT8] {
    word.to_le_bytes().map(|byte| i32::from(byte.cast_signed()))
}

/// Rounds a row to integers, four a word.
struct Round<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
}

impl WithSimd for Round<'_> {
    type Output = Row;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Row {
        let mut greatest = 0.0_f32;
        let mut finite = true;
        for x in self.x {
            greatest = if x.abs() > greatest { x.abs() } else { greatest };
            finite &= x.is_finite();
        }
        let by = if greatest > 0.0 { GREATEST / greatest } else { 0.0 };
        let mut sum = 0;
        for (word, x) in self.words.iter_mut().zip(self.x.chunks(INPUTS_OF_INT8)) {
            for (place, x) in x.iter().enumerate() {
                let integer = rounded(x * by);
                sum += integer;
                *word |= (integer.cast_unsigned() & 0xFF) << (8 * place);
            }
        }
        // What is no number has no integer: the whole row is none.
        let scale = if finite { greatest / GREATEST } else { f32::NAN };
        Row { scale, sum }
    }
}
