//! The product with weights in panels, for every device and every number of rows.
//!
//! Each unit of a cube sums every `slices`-th input of one group's columns, for up to [`TILE`] rows at once; the cube then adds
//! the slices up. The order depends on the matrix alone: a row's sums are the same in a tile of one and of many.

use cubecl::prelude::*;

use super::layout::{Panels, WORDS};
use super::sums::UNITS;
use super::words::number;
use crate::gpt2::Activation;

/// Most rows that pass over a panel at once.
pub(super) const TILE: usize = 8;
/// Slices that the first round of the last sum leaves to the second.
const FOLD: usize = 8;

/// Inputs that a cube takes side by side.
const fn slices(panels: Panels) -> usize {
    UNITS / panels.groups
}

/// What becomes of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    pub(super) bias: bool,
    pub(super) activation: Option<Activation>,
    pub(super) residual: bool,
}

/// `y [rows, outputs]` of `x [rows, inputs]`: a cube for each panel and each tile of rows.
#[cube(launch_unchecked)]
pub(super) fn project(
    x: &Array<f32>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    bias: &Array<f32>,
    residual: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] panels: Panels,
    #[comptime] tile: usize,
    #[comptime] epilogue: Epilogue,
) {
    let groups = comptime!(panels.groups);
    let slices = comptime!(slices(panels));
    let numbers = comptime!(panels.word.numbers());
    let of_vector = comptime!(panels.of_vector());
    let columns = comptime!(panels.columns());
    let unit = UNIT_POS as usize;
    let (group, slice) = (unit % groups, unit / groups);
    let (panel, first) = (CUBE_POS_X as usize, CUBE_POS_Y as usize * tile);

    let mut sums = Array::<f32>::new(comptime!(tile * of_vector));
    let mut places = Array::<usize>::new(tile);
    #[unroll]
    for row in 0..tile {
        // Beyond the last row the last one is computed again and thrown away.
        places[row] = min(first + row, rows - 1) * inputs;
        #[unroll]
        for column in 0..of_vector {
            sums[row * of_vector + column] = 0.0f32;
        }
    }
    let mut input = slice;
    while input < inputs {
        let words = weight[(panel * inputs + input) * groups + group];
        #[unroll]
        for row in 0..tile {
            let value = x[places[row] + input];
            #[unroll]
            for word in 0..WORDS {
                #[unroll]
                for place in 0..numbers {
                    let at = comptime!(row * of_vector + word * numbers + place);
                    sums[at] = fma(value, number(words[word], place, numbers), sums[at]);
                }
            }
        }
        input += slices;
    }

    // `[row][column of the panel][slice]`
    let elements = comptime!(tile * columns);
    let mut shared = SharedMemory::<f32>::new(comptime!(tile * columns * slices));
    #[unroll]
    for row in 0..tile {
        #[unroll]
        for column in 0..of_vector {
            let element = row * columns + group * of_vector + column;
            shared[element * slices + slice] = sums[row * of_vector + column];
        }
    }
    sync_cube();
    let parts = comptime!(slices / FOLD);
    let mut task = unit;
    while task < elements * parts {
        // Only this task reads the places of its residue.
        let at = task / parts * slices + task % parts;
        let mut sum = shared[at];
        #[unroll]
        for other in 1..FOLD {
            sum += shared[at + other * parts];
        }
        shared[at] = sum;
        task += UNITS;
    }
    sync_cube();
    let mut element = unit;
    while element < elements {
        let mut sum = shared[element * slices];
        #[unroll]
        for part in 1..parts {
            sum += shared[element * slices + part];
        }
        let (row, column) = (first + element / columns, panel * columns + element % columns);
        if row < rows && column < outputs {
            let at = row * outputs + column;
            y[at] = finish(sum, bias, residual, column, at, epilogue);
        }
        element += UNITS;
    }
}

/// The number at the place `at` of the result, of a sum in that column.
#[cube]
pub(super) fn finish(
    sum: f32,
    bias: &Array<f32>,
    residual: &Array<f32>,
    column: usize,
    at: usize,
    #[comptime] epilogue: Epilogue,
) -> f32 {
    let mut number = sum;
    if comptime!(epilogue.bias) {
        number += bias[column];
    }
    number = activate(number, comptime!(epilogue.activation));
    if comptime!(epilogue.residual) {
        number += residual[at];
    }
    number
}

#[cube]
fn activate(x: f32, #[comptime] activation: Option<Activation>) -> f32 {
    if comptime!(activation == Some(Activation::GeluTanh)) {
        // (1 + tanh u) / 2 is 1 / (1 + exp -2u), and u is √(2/π) (x + 0.044715 x³).
        let twice = x * fma(0.071_354_814_f32 * x, x, 1.595_769_2_f32);
        x / (1.0f32 + (-twice).exp())
    } else if comptime!(activation == Some(Activation::GeluErf)) {
        0.5f32 * x * (1.0f32 + Erf::erf(x * core::f32::consts::FRAC_1_SQRT_2))
    } else {
        x
    }
}
