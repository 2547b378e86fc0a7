//! A row's sum with its residual, and its layer norm, by one cube a row.

use cubecl::prelude::*;

use super::sums::{UNITS, total};

/// See [`super::super::Gpt2Backend::add_norm`]. Without `adds` the residual is not read.
#[cube(launch_unchecked)]
pub(super) fn add_norm(
    x: &Array<f32>,
    residual: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    sum: &mut Array<f32>,
    norm: &mut Array<f32>,
    epsilon: f32,
    #[comptime] width: usize,
    #[comptime] adds: bool,
) {
    let of_unit = comptime!(width.div_ceil(UNITS));
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let row = CUBE_POS_X as usize * width;
    let unit = UNIT_POS as usize;
    // All that a unit needs is on its way before the first wait.
    let mut values = Array::<f32>::new(of_unit);
    let mut scales = Array::<f32>::new(of_unit);
    let mut shifts = Array::<f32>::new(of_unit);
    #[unroll]
    for one in 0..of_unit {
        let at = unit + one * UNITS;
        values[one] = 0.0f32;
        if at < width {
            values[one] = x[row + at];
            if comptime!(adds) {
                values[one] += residual[row + at];
            }
            scales[one] = gamma[at];
            shifts[one] = beta[at];
        }
    }
    let mut part = 0.0f32;
    #[unroll]
    for one in 0..of_unit {
        part += values[one];
    }
    let mean = total(&mut shared, part) / width as f32;
    part = 0.0f32;
    #[unroll]
    for one in 0..of_unit {
        if unit + one * UNITS < width {
            let distance = values[one] - mean;
            part = fma(distance, distance, part);
        }
    }
    let variance = total(&mut shared, part) / width as f32;
    let scale = 1.0f32 / (variance + epsilon).sqrt();
    #[unroll]
    for one in 0..of_unit {
        let at = unit + one * UNITS;
        if at < width {
            sum[row + at] = values[one];
            norm[row + at] = fma((values[one] - mean) * scale, scales[one], shifts[one]);
        }
    }
}
