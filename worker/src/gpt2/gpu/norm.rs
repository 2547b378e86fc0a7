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
    width: usize,
    epsilon: f32,
    #[comptime] adds: bool,
) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let row = CUBE_POS_X as usize * width;
    let unit = UNIT_POS as usize;
    let mut part = 0.0f32;
    let mut at = unit;
    while at < width {
        let mut value = x[row + at];
        if comptime!(adds) {
            value += residual[row + at];
        }
        sum[row + at] = value;
        part += value;
        at += UNITS;
    }
    let mean = total(&mut shared, part) / width as f32;
    part = 0.0f32;
    at = unit;
    while at < width {
        // Each unit reads what it wrote itself.
        let distance = sum[row + at] - mean;
        part = fma(distance, distance, part);
        at += UNITS;
    }
    let variance = total(&mut shared, part) / width as f32;
    let scale = 1.0f32 / (variance + epsilon).sqrt();
    at = unit;
    while at < width {
        norm[row + at] = fma((sum[row + at] - mean) * scale, gamma[at], beta[at]);
        at += UNITS;
    }
}
