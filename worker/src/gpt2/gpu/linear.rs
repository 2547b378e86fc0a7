//! Weight matrices in panels, and the product with them.
//!
//! A panel holds a few columns: `[panel][input][group]` of vectors of four words, so that the units of a cube read it in one
//! run. Each unit sums every `slices`-th input of one group's columns, for up to [`TILE`] rows at once; the cube then adds
//! the slices up. The order depends on the matrix alone: a row's sums are the same in a tile of one and of many.

use cubecl::prelude::*;

use super::sums::UNITS;
use super::words::{Word, number, pack};
use crate::gpt2::Activation;

/// Most rows that pass over a panel at once.
pub(super) const TILE: usize = 8;
/// Words of a vector.
pub(super) const WORDS: usize = 4;
/// Slices that the first round of the last sum leaves to the second.
const FOLD: usize = 8;

/// How a matrix is laid out: a part of each kernel that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) word: Word,
    /// Vectors of a panel's row.
    pub(super) groups: usize,
}

impl Plan {
    /// Narrow panels for narrow matrices, so that there are as many as a device has processors for.
    pub(super) fn new(word: Word, outputs: usize) -> Self {
        let groups = match outputs {
            ..=4096 => 1,
            4097..=16384 => 2,
            _ => 4,
        };
        Self { word, groups }
    }

    /// Columns of a vector.
    pub(super) const fn of_vector(self) -> usize {
        WORDS * self.word.numbers()
    }

    /// Columns of a panel.
    pub(super) const fn columns(self) -> usize {
        self.groups * self.of_vector()
    }

    pub(super) const fn panels(self, outputs: usize) -> usize {
        outputs.div_ceil(self.columns())
    }

    /// Words of the panels of so many columns.
    pub(super) const fn words(self, inputs: usize, outputs: usize) -> usize {
        self.panels(outputs) * inputs * self.groups * WORDS
    }

    /// Inputs that a cube takes side by side.
    const fn slices(self) -> usize {
        UNITS / self.groups
    }
}

/// What becomes of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    pub(super) bias: bool,
    pub(super) activation: Option<Activation>,
}

/// `y [rows, outputs]` of `x [rows, inputs]`: a cube for each panel and each tile of rows.
#[cube(launch_unchecked)]
pub(super) fn project(
    x: &Array<f32>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    bias: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] plan: Plan,
    #[comptime] tile: usize,
    #[comptime] epilogue: Epilogue,
) {
    let groups = comptime!(plan.groups);
    let slices = comptime!(plan.slices());
    let numbers = comptime!(plan.word.numbers());
    let of_vector = comptime!(plan.of_vector());
    let columns = comptime!(plan.columns());
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
            if comptime!(epilogue.bias) {
                sum += bias[column];
            }
            y[row * outputs + column] = activate(sum, comptime!(epilogue.activation));
        }
        element += UNITS;
    }
}

#[cube]
pub(super) fn activate(x: f32, #[comptime] activation: Option<Activation>) -> f32 {
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

/// Packs the columns from `first` on, which begins a panel: `count` of them, of which `source` holds `[input]` with the stride
/// `of_input` and `[column]` with the stride `of_column`. A unit a word.
#[cube(launch_unchecked)]
pub(super) fn pack_columns(
    source: &Array<f32>,
    packed: &mut Array<u32>,
    first: usize,
    count: usize,
    inputs: usize,
    of_input: usize,
    of_column: usize,
    words: usize,
    #[comptime] plan: Plan,
) {
    let at = ABSOLUTE_POS;
    if at < words {
        let numbers = comptime!(plan.word.numbers());
        let row = comptime!(plan.groups * WORDS);
        let (word, line) = (at % row, at / row);
        let (input, panel) = (line % inputs, line / inputs);
        let column = panel * comptime!(plan.columns()) + word * numbers;
        let from = input * of_input + column * of_column;
        let mut first_number = 0.0f32;
        let mut second_number = 0.0f32;
        if column < count {
            first_number = source[from];
        }
        if comptime!(numbers == 2) {
            if column + 1 < count {
                second_number = source[from + of_column];
            }
        }
        let start = first / comptime!(plan.columns()) * inputs * row;
        packed[start + at] = pack(first_number, second_number, numbers);
    }
}

/// Columns as rows `[rows, inputs]`, each plus a row of `positions [_, inputs]`. `which` has first the columns, then the rows of
/// positions. A unit an element.
#[cube(launch_unchecked)]
pub(super) fn embed(
    packed: &Array<u32>,
    positions: &Array<f32>,
    which: &Array<u32>,
    y: &mut Array<f32>,
    inputs: usize,
    rows: usize,
    #[comptime] plan: Plan,
) {
    let at = ABSOLUTE_POS;
    if at < rows * inputs {
        let numbers = comptime!(plan.word.numbers());
        let columns = comptime!(plan.columns());
        let row = comptime!(plan.groups * WORDS);
        let (token, input) = (at / inputs, at % inputs);
        let (id, place) = (which[token] as usize, which[rows + token] as usize);
        let (panel, column) = (id / columns, id % columns);
        let word = packed[(panel * inputs + input) * row + column / numbers];
        y[at] = number(word, column % numbers, numbers) + positions[place * inputs + input];
    }
}
