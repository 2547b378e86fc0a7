//! How weight matrices lie on a device, and what reads single columns of them.
//!
//! A panel holds a few columns: `[panel][input][group]` of vectors of four words, so that the units of a cube read it in one
//! run. A fragment holds [`SIDE`] columns and as many inputs of numbers of 16 bits, a vector for each unit of a plane: what that
//! unit gives to the tensor cores, so that a plane reads a fragment in one run and keeps it where it is used. They lie as
//! `[columns][inputs]`. A column beyond the last is zeros.

use cubecl::prelude::*;

use super::words::{Word, number, pack};

/// Words of a vector.
pub(super) const WORDS: usize = 4;
/// Columns, and inputs, of a fragment.
pub(super) const SIDE: usize = 16;
/// Words of a fragment.
const OF_FRAGMENT: usize = SIDE * SIDE / 2;

/// A part of each kernel that reads panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Panels {
    pub(super) word: Word,
    /// Vectors of a panel's row.
    pub(super) groups: usize,
}

impl Panels {
    /// Narrow panels for narrow matrices, so that there are as many as a device has processors for.
    pub(super) const fn new(word: Word, outputs: usize) -> Self {
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

    pub(super) const fn count(self, outputs: usize) -> usize {
        outputs.div_ceil(self.columns())
    }
}

/// How a matrix lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    Panels(Panels),
    /// Of whole fragments along the inputs.
    Fragments,
}

impl Layout {
    const fn word(self) -> Word {
        match self {
            Self::Panels(panels) => panels.word,
            Self::Fragments => Word::Two,
        }
    }

    /// Columns that lie together: packing begins with one of every so many.
    pub(super) const fn columns(self) -> usize {
        match self {
            Self::Panels(panels) => panels.columns(),
            Self::Fragments => SIDE,
        }
    }

    /// Words of so many columns.
    pub(super) const fn words(self, inputs: usize, outputs: usize) -> usize {
        let columns = outputs.div_ceil(self.columns()) * self.columns();
        columns / self.word().numbers() * inputs
    }
}

/// The input and the column, counted from the first that is packed, of a word's first number.
#[cube]
fn place_of(word: usize, inputs: usize, #[comptime] layout: Layout) -> (usize, usize) {
    match comptime!(layout) {
        Layout::Panels(panels) => {
            let row = comptime!(panels.groups * WORDS);
            let (at, line) = (word % row, word / row);
            let column = line / inputs * comptime!(panels.columns()) + at * comptime!(panels.word.numbers());
            (line % inputs, column)
        }
        Layout::Fragments => {
            let deep = inputs / SIDE;
            let (at, unit, fragment) = (word % WORDS, word / WORDS % 32, word / OF_FRAGMENT);
            let input = fragment % deep * SIDE + at / 2 * 8 + unit % 4 * 2;
            (input, fragment / deep * SIDE + at % 2 * 8 + unit / 4)
        }
    }
}

/// The word that a number lies in, and its place there.
#[cube]
fn word_of(input: usize, column: usize, inputs: usize, #[comptime] layout: Layout) -> (usize, usize) {
    match comptime!(layout) {
        Layout::Panels(panels) => {
            let columns = comptime!(panels.columns());
            let numbers = comptime!(panels.word.numbers());
            let (panel, column) = (column / columns, column % columns);
            let word = (panel * inputs + input) * comptime!(panels.groups * WORDS) + column / numbers;
            (word, column % numbers)
        }
        Layout::Fragments => {
            let fragment = column / SIDE * (inputs / SIDE) + input / SIDE;
            let unit = column % 8 * 4 + input % 8 / 2;
            let at = column % SIDE / 8 + input % SIDE / 8 * 2;
            (fragment * OF_FRAGMENT + unit * WORDS + at, input % 2)
        }
    }
}

/// Packs the columns from `first` on, as [`Layout::columns`] allows: `count` of them, of which `source` holds `[input]` with the
/// stride `of_input` and `[column]` with the stride `of_column`. A unit a word.
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
    #[comptime] layout: Layout,
) {
    let word = ABSOLUTE_POS;
    if word < words {
        let numbers = comptime!(layout.word().numbers());
        let (input, column) = place_of(word, inputs, layout);
        let from = input * of_input + column * of_column;
        let mut first_number = 0.0f32;
        let mut second_number = 0.0f32;
        if column < count {
            first_number = source[from];
        }
        // Of panels the next column follows, of fragments the next input.
        if comptime!(layout == Layout::Fragments) {
            if column < count {
                second_number = source[from + of_input];
            }
        } else if comptime!(numbers == 2) {
            if column + 1 < count {
                second_number = source[from + of_column];
            }
        }
        let start = first / numbers * inputs;
        packed[start + word] = pack(first_number, second_number, numbers);
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
    #[comptime] layout: Layout,
) {
    let at = ABSOLUTE_POS;
    if at < rows * inputs {
        let (token, input) = (at / inputs, at % inputs);
        let (id, place) = (which[token] as usize, which[rows + token] as usize);
        let (word, half) = word_of(input, id, inputs, layout);
        let weight = number(packed[word], half, comptime!(layout.word().numbers()));
        y[at] = weight + positions[place * inputs + input];
    }
}
