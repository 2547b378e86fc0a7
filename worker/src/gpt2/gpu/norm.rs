//! The layer norm of rows: [`LANES`] units a row, of which each takes the numbers that it would give to tensor cores, so that
//! `tensor/few.rs` normalizes by the same sums.

use cubecl::prelude::*;

use super::layout::SIDE;
use super::sums::UNITS;

/// Units of a row.
pub(super) const LANES: usize = 32;
/// Rows of a cube.
pub(super) const ROWS: usize = UNITS / LANES;
/// Numbers that a unit has of a fragment's width: two pairs, half the width apart.
const NUMBERS: usize = 4;
/// Units that share a fragment's width.
const ACROSS: usize = SIDE / NUMBERS;
/// Fragments that a row's units take side by side.
const FRAGMENTS: usize = LANES / ACROSS;
/// Sums that the first round leaves to the second.
const PARTS: usize = 8;

/// Numbers that a unit has of a row.
pub(super) const fn of_lane(width: usize) -> usize {
    width.div_ceil(SIDE * FRAGMENTS) * NUMBERS
}

/// The place of a unit's number in the row.
#[cube]
pub(super) fn place(lane: usize, #[comptime] one: usize) -> usize {
    let fragment = lane / ACROSS + comptime!(one / NUMBERS * FRAGMENTS);
    fragment * SIDE + lane % ACROSS * 2 + comptime!(one % 2 + one / 2 % 2 * (SIDE / 2))
}

/// Normalizes rows `x [rows, width]`, [`ROWS`] a cube.
#[cube(launch_unchecked)]
pub(super) fn layer_norm(
    x: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    epsilon: f32,
    #[comptime] width: usize,
) {
    let of_lane = comptime!(of_lane(width));
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let lane = unit % LANES;
    let row = CUBE_POS_X as usize * ROWS + unit / LANES;
    // Beyond the last row the last one is normalized again and thrown away.
    let start = min(row, rows - 1) * width;
    // All that a unit needs is on its way before the first wait.
    let mut values = Array::<f32>::new(of_lane);
    let mut scales = Array::<f32>::new(of_lane);
    let mut shifts = Array::<f32>::new(of_lane);
    #[unroll]
    for one in 0..of_lane {
        let at = place(lane, one);
        values[one] = 0.0f32;
        if at < width {
            values[one] = x[start + at];
            scales[one] = gamma[at];
            shifts[one] = beta[at];
        }
    }
    let (mean, scale) = moments(&mut shared, &values, lane, epsilon, width, false);
    if row < rows {
        #[unroll]
        for one in 0..of_lane {
            let at = place(lane, one);
            if at < width {
                y[start + at] = fma((values[one] - mean) * scale, scales[one], shifts[one]);
            }
        }
    }
}

/// The mean of the row whose numbers the units of a row hold, zeros beyond its width, and what its distances from there are to be
/// multiplied by. All units of the cube have to ask; `shared` has a place for each. With `planes` the units of a row are a plane.
#[cube]
pub(super) fn moments(
    shared: &mut SharedMemory<f32>,
    values: &Array<f32>,
    lane: usize,
    epsilon: f32,
    #[comptime] width: usize,
    #[comptime] planes: bool,
) -> (f32, f32) {
    let of_lane = comptime!(of_lane(width));
    let mut part = 0.0f32;
    #[unroll]
    for one in 0..of_lane {
        part += values[one];
    }
    let mean = total(shared, part, planes) / width as f32;
    part = 0.0f32;
    #[unroll]
    for one in 0..of_lane {
        if place(lane, one) < width {
            let distance = values[one] - mean;
            part = fma(distance, distance, part);
        }
    }
    let variance = total(shared, part, planes) / width as f32;
    (mean, 1.0f32 / (variance + epsilon).sqrt())
}

/// The sum of the values of a row's units, the same for all of them.
#[cube]
fn total(shared: &mut SharedMemory<f32>, value: f32, #[comptime] planes: bool) -> f32 {
    let unit = UNIT_POS as usize;
    wait(planes);
    shared[unit] = value;
    wait(planes);
    if unit % LANES < PARTS {
        // Only this unit reads the places of its residue, so it may write to the first of them.
        let mut sum = shared[unit];
        #[unroll]
        for other in 1..comptime!(LANES / PARTS) {
            sum += shared[unit + other * PARTS];
        }
        shared[unit] = sum;
    }
    wait(planes);
    let first = unit / LANES * LANES;
    let mut sum = shared[first];
    #[unroll]
    for part in 1..PARTS {
        sum += shared[first + part];
    }
    sum
}

/// For the units of a row.
#[cube]
fn wait(#[comptime] planes: bool) {
    if comptime!(planes) {
        sync_plane();
    } else {
        sync_cube();
    }
}
