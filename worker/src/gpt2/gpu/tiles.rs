//! The product of many rows at once, for `--order fast`: a cube has [`ROWS`] rows and [`COLUMNS`] columns, and brings some
//! inputs of both to where all its units read them. A weight is read once for so many rows; each sum goes through the inputs from
//! the first to the last, which is not the order of `linear.rs`.

use cubecl::prelude::*;

use super::layout::{Panels, WORDS};
use super::linear::{Epilogue, finish};
use super::sums::UNITS;
use super::words::number;

/// Rows of a cube.
pub(super) const ROWS: usize = 64;
/// Columns of a cube: whole panels, however wide they are.
pub(super) const COLUMNS: usize = 64;
/// As many rows as make half a cube's worth while; fewer are `linear.rs`'s. To be measured.
pub(super) const FROM: usize = 32;
/// Inputs that are brought at once.
const DEEP: usize = 16;
/// Rows and columns of a unit.
const OF_UNIT: [usize; 2] = [8, 4];
/// Units side by side over the columns.
const ACROSS: usize = COLUMNS / OF_UNIT[1];

/// As [`super::linear::project`], of as many cubes as tiles cover the result.
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
    #[comptime] epilogue: Epilogue,
) {
    let groups = comptime!(panels.groups);
    let numbers = comptime!(panels.word.numbers());
    let of_vector = comptime!(panels.of_vector());
    let columns = comptime!(panels.columns());
    let [of_rows, of_columns] = comptime!(OF_UNIT);
    let unit = UNIT_POS as usize;
    let (down, across) = (unit / ACROSS, unit % ACROSS);
    let (first_row, first_column) = (CUBE_POS_Y as usize * ROWS, CUBE_POS_X as usize * COLUMNS);
    let count = outputs.div_ceil(columns);

    let mut sums = Array::<f32>::new(comptime!(OF_UNIT[0] * OF_UNIT[1]));
    #[unroll]
    for at in 0..comptime!(OF_UNIT[0] * OF_UNIT[1]) {
        sums[at] = 0.0f32;
    }
    // `[row][input]` and `[input][column]`
    let mut xs = SharedMemory::<f32>::new(comptime!(ROWS * DEEP));
    let mut weights = SharedMemory::<f32>::new(comptime!(DEEP * COLUMNS));
    let mut from = 0usize;
    while from < inputs {
        sync_cube();
        #[unroll]
        for step in 0..comptime!(ROWS * DEEP / UNITS) {
            let at = unit + step * UNITS;
            let (row, input) = (at / DEEP, from + at % DEEP);
            let mut value = 0.0f32;
            if input < inputs {
                // Beyond the last row the last one is computed again and thrown away.
                value = x[min(first_row + row, rows - 1) * inputs + input];
            }
            xs[at] = value;
        }
        let mut at = unit;
        while at < comptime!(DEEP * COLUMNS / panels.of_vector()) {
            let (group, deep) = (at % groups, at / groups % DEEP);
            let panel = at / comptime!(panels.groups * DEEP);
            let (whole, input) = (first_column / columns + panel, from + deep);
            let start = deep * COLUMNS + panel * columns + group * of_vector;
            if whole < count && input < inputs {
                let words = weight[(whole * inputs + input) * groups + group];
                #[unroll]
                for word in 0..WORDS {
                    #[unroll]
                    for place in 0..numbers {
                        weights[start + word * numbers + place] = number(words[word], place, numbers);
                    }
                }
            } else {
                #[unroll]
                for place in 0..of_vector {
                    weights[start + place] = 0.0f32;
                }
            }
            at += UNITS;
        }
        sync_cube();
        for deep in 0..DEEP {
            #[unroll]
            for row in 0..of_rows {
                let value = xs[(down * of_rows + row) * DEEP + deep];
                #[unroll]
                for column in 0..of_columns {
                    let at = comptime!(row * OF_UNIT[1] + column);
                    sums[at] = fma(value, weights[deep * COLUMNS + across + column * ACROSS], sums[at]);
                }
            }
        }
        from += DEEP;
    }
    #[unroll]
    for row in 0..of_rows {
        #[unroll]
        for column in 0..of_columns {
            let (to_row, to_column) = (
                first_row + down * of_rows + row,
                first_column + across + column * ACROSS,
            );
            if to_row < rows && to_column < outputs {
                let sum = sums[comptime!(row * OF_UNIT[1] + column)];
                let at = to_row * outputs + to_column;
                y[at] = finish(sum, bias, residual, to_column, at, epilogue);
            }
        }
    }
}
