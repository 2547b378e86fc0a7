//! Weight matrices, packed once at load into what the kernels stream through.
//!
//! A matrix `[in, out]` is cut into panels of 32 columns. A panel is a run of lines: a line holds a word of each column,
//! and a word holds one weight (f32) or those of two (bf16) or four (int8) inputs one after another.

use std::ops::Range;

use claimcheck_common::domain::Dtype;
use half::bf16;
use rayon::prelude::*;

use super::lines::{FixedLines, Line, Lines, WIDTH};

/// The greatest magnitude of an eight-bit weight or input.
pub(super) const GREATEST: f32 = 127.0;

/// Inputs of a word of eight-bit weights.
pub(super) const INPUTS_OF_INT8: usize = 4;

/// A packed weight matrix.
pub struct Panels {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) dtype: Dtype,
    /// `[outputs / 32, inputs / inputs of a word]`, both rounded up, filled up with zeros.
    lines: FixedLines,
    /// Of int8, what an integer 1 in a column stands for: `[outputs]` rounded up to panels. Empty otherwise.
    pub(super) scales: Vec<f32>,
}

/// Rows that are read at once of a matrix that is stored the other way round: a few megabytes.
const ROWS_AT_ONCE: usize = 64 * WIDTH;

impl Panels {
    /// Panels of lines and scales that were packed before: so many as [`Self::bytes_of`] and [`Self::len_of_scales`] say.
    pub(super) const fn of(inputs: usize, outputs: usize, dtype: Dtype, lines: FixedLines, scales: Vec<f32>) -> Self {
        Self {
            inputs,
            outputs,
            dtype,
            lines,
            scales,
        }
    }

    /// Lines of a matrix, all together.
    const fn len_of_lines(inputs: usize, outputs: usize, dtype: Dtype) -> usize {
        outputs.div_ceil(WIDTH) * inputs.div_ceil(inputs_of_word(dtype))
    }

    /// Bytes of the lines of a matrix.
    pub(super) const fn bytes_of(inputs: usize, outputs: usize, dtype: Dtype) -> usize {
        Self::len_of_lines(inputs, outputs, dtype) * size_of::<Line>()
    }

    /// How many scales a matrix has.
    pub(super) const fn len_of_scales(outputs: usize, dtype: Dtype) -> usize {
        match dtype {
            Dtype::Int8 => outputs.next_multiple_of(WIDTH),
            Dtype::F32 | Dtype::Bf16 => 0,
        }
    }

    /// The lines as they lie in memory.
    pub(super) fn bytes(&self) -> &[u8] {
        self.lines.bytes()
    }

    /// Packs `weight [inputs, outputs]`.
    pub(super) fn pack(weight: &[f32], inputs: usize, outputs: usize, dtype: Dtype) -> Self {
        let mut packed = Lines::zeroed_huge(Self::len_of_lines(inputs, outputs, dtype));
        let mut scales = vec![1.0; Self::len_of_scales(outputs, dtype)];
        if dtype == Dtype::Int8 {
            scales[..outputs].copy_from_slice(&scales_of_columns(weight, outputs));
        }
        let per_word = inputs_of_word(dtype);
        let panels = packed
            .get_mut()
            .par_chunks_exact_mut(inputs.div_ceil(per_word))
            .enumerate();
        panels.for_each(|(panel, lines)| {
            let columns = panel * WIDTH..outputs.min((panel + 1) * WIDTH);
            for (line, rows) in lines.iter_mut().zip(weight.chunks(outputs * per_word)) {
                for (place, row) in rows.chunks_exact(outputs).enumerate() {
                    for ((word, weight), column) in line.iter_mut().zip(&row[columns.clone()]).zip(columns.clone()) {
                        *word |= part_of_word(dtype, *weight, scales.get(column), place);
                    }
                }
            }
        });
        Self::of(inputs, outputs, dtype, packed.fixed(), scales)
    }

    /// Packs the matrix `[inputs, outputs]` that `read` gives as `[outputs, inputs]`, some rows at a time.
    pub(super) fn pack_transposed<E>(
        inputs: usize,
        outputs: usize,
        dtype: Dtype,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut packed = Lines::zeroed_huge(Self::len_of_lines(inputs, outputs, dtype));
        let mut all_scales = Vec::new();
        let per_word = inputs_of_word(dtype);
        let lines_of_panel = inputs.div_ceil(per_word);
        let runs = packed.get_mut().chunks_mut(ROWS_AT_ONCE / WIDTH * lines_of_panel);
        for (run, lines) in runs.enumerate() {
            let columns = run * ROWS_AT_ONCE..outputs.min((run + 1) * ROWS_AT_ONCE);
            let weight = read(columns)?;
            let scales: Vec<f32> = match dtype {
                Dtype::Int8 => weight
                    .chunks_exact(inputs)
                    .map(|column| scale(greatest(column)))
                    .collect(),
                Dtype::F32 | Dtype::Bf16 => Vec::new(),
            };
            let panels = lines
                .par_chunks_exact_mut(lines_of_panel)
                .zip(weight.par_chunks(WIDTH * inputs));
            panels.enumerate().for_each(|(panel, (lines, columns))| {
                for (column, weights) in columns.chunks_exact(inputs).enumerate() {
                    let scale = scales.get(panel * WIDTH + column);
                    for (line, weights) in lines.iter_mut().zip(weights.chunks(per_word)) {
                        for (place, weight) in weights.iter().enumerate() {
                            line[column] |= part_of_word(dtype, *weight, scale, place);
                        }
                    }
                }
            });
            all_scales.extend(scales);
        }
        all_scales.resize(Self::len_of_scales(outputs, dtype), 1.0);
        Ok(Self::of(inputs, outputs, dtype, packed.fixed(), all_scales))
    }

    /// The weights `[inputs]` of an output.
    pub(super) fn column(&self, column: usize) -> impl Iterator<Item = f32> {
        let lines_of_panel = self.lines_of_panel();
        let panel = &self.lines()[column / WIDTH * lines_of_panel..][..lines_of_panel];
        let (dtype, scale) = (self.dtype, self.scales.get(column).copied());
        let weights = panel.iter().flat_map(move |line| {
            let word = line[column % WIDTH];
            (0..inputs_of_word(dtype)).map(move |place| match (dtype, scale) {
                (Dtype::Int8, Some(scale)) => f32::from(word.to_le_bytes()[place].cast_signed()) * scale,
                (Dtype::Bf16, _) => f32::from_bits((word >> (16 * place)) << 16),
                _ => f32::from_bits(word),
            })
        });
        weights.take(self.inputs)
    }

    /// `[panels][lines of a panel]`
    pub(super) fn lines(&self) -> &[Line] {
        self.lines.get()
    }

    /// Lines of a panel.
    pub(super) const fn lines_of_panel(&self) -> usize {
        self.inputs.div_ceil(inputs_of_word(self.dtype))
    }
}

/// How many inputs share a word.
pub(super) const fn inputs_of_word(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 1,
        Dtype::Bf16 => 2,
        Dtype::Int8 => INPUTS_OF_INT8,
    }
}

/// A weight's bits of the word that it shares. `scale` is there for int8.
fn part_of_word(dtype: Dtype, weight: f32, scale: Option<&f32>, place: usize) -> u32 {
    match (dtype, scale) {
        (Dtype::Int8, Some(scale)) => (rounded(weight / scale).cast_unsigned() & 0xFF) << (8 * place),
        (Dtype::Bf16, _) => u32::from(bf16::from_f32(weight).to_bits()) << (16 * place),
        _ => weight.to_bits(),
    }
}

/// The nearest integer of a small number: a sum with 1.5 · 2²³ is rounded to one, which then stands in its low bits.
#[inline(always)]
pub(super) fn rounded(value: f32) -> i32 {
    const INTEGER: f32 = 12_582_912.0;
    (value + INTEGER).to_bits().cast_signed() - INTEGER.to_bits().cast_signed()
}

/// What an integer 1 stands for where 127 stands for `greatest`.
fn scale(greatest: f32) -> f32 {
    // Zeros have any scale.
    if greatest > 0.0 { greatest / GREATEST } else { 1.0 }
}

fn greatest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |greatest, value| value.abs().max(greatest))
}

fn scales_of_columns(weight: &[f32], outputs: usize) -> Vec<f32> {
    let mut greatest = vec![0.0_f32; outputs];
    for row in weight.chunks_exact(outputs) {
        for (greatest, weight) in greatest.iter_mut().zip(row) {
            *greatest = greatest.max(weight.abs());
        }
    }
    greatest.into_iter().map(scale).collect()
}
