//! Weight matrices, packed once at load into what the kernels stream through.
//!
//! A matrix `[in, out]` is cut into panels of 32 columns. A panel is a run of lines: a line holds a word of each column,
//! and a word holds one weight (f32) or those of two (bf16) or four (int8) inputs one after another.

use claimcheck_common::domain::Dtype;
use half::bf16;
use rayon::prelude::*;

use super::lines::{Line, Lines, WIDTH};

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
    lines: Lines,
    /// Of int8, what an integer 1 in a column stands for: `[outputs]` rounded up to panels. Empty otherwise.
    pub(super) scales: Vec<f32>,
}

impl Panels {
    /// Packs `weight [inputs, outputs]`.
    pub(super) fn pack(weight: &[f32], inputs: usize, outputs: usize, dtype: Dtype) -> Self {
        let panels = outputs.div_ceil(WIDTH);
        let lines_of_panel = inputs.div_ceil(inputs_of_word(dtype));
        let scales = match dtype {
            Dtype::Int8 => scales(weight, outputs, panels * WIDTH),
            Dtype::F32 | Dtype::Bf16 => Vec::new(),
        };
        let mut lines = Lines::zeroed_huge(panels * lines_of_panel);
        let packing = lines.get_mut().par_chunks_exact_mut(lines_of_panel).enumerate();
        packing.for_each(|(panel, lines)| {
            let columns = panel * WIDTH..outputs.min((panel + 1) * WIDTH);
            for (line, rows) in lines.iter_mut().zip(weight.chunks(outputs * inputs_of_word(dtype))) {
                for (place, row) in rows.chunks_exact(outputs).enumerate() {
                    for ((word, weight), column) in line.iter_mut().zip(&row[columns.clone()]).zip(columns.clone()) {
                        *word |= match dtype {
                            Dtype::F32 => weight.to_bits(),
                            Dtype::Bf16 => u32::from(bf16::from_f32(*weight).to_bits()) << (16 * place),
                            Dtype::Int8 => byte(*weight / scales[column]) << (8 * place),
                        };
                    }
                }
            }
        });
        Self {
            inputs,
            outputs,
            dtype,
            lines,
            scales,
        }
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

/// A value between −127 and 127 as the eight bits of the nearest integer.
pub(super) fn byte(value: f32) -> u32 {
    u32::from((value.round_ties_even() as i8).cast_unsigned())
}

fn scales(weight: &[f32], outputs: usize, len: usize) -> Vec<f32> {
    let mut greatest = vec![0.0_f32; len];
    for row in weight.chunks_exact(outputs) {
        for (greatest, weight) in greatest.iter_mut().zip(row) {
            *greatest = greatest.max(weight.abs());
        }
    }
    // A column of zeros has any scale.
    greatest
        .into_iter()
        .map(|one| if one > 0.0 { one / GREATEST } else { 1.0 })
        .collect()
}
