//! The product of few rows, which waits for weights: the planes of a cube share its columns and rows and take every [`PLANES`]-th
//! fragment of the inputs each, and the cube adds their sums up. Where rows are normalized first, each cube does that for itself
//! while its first weights are on their way: that costs less than one more kernel.

use cubecl::prelude::*;

use super::super::layout::{SIDE, WORDS};
use super::super::linear::{Epilogue, finish};
use super::super::norm;
use super::{PLANE, PLANES, ROWS, Slot, Sums, Turn, UNITS, multiply, read_weights, slot, starts, zeros};

/// Results of a fragment: [`SIDE`] columns of [`ROWS`] rows.
const RESULTS: usize = SIDE * ROWS;
/// Results that a unit holds.
const OF_UNIT: usize = RESULTS / PLANE;
/// Fragments whose sums are added up at once, at most.
const ADDED: usize = 8;
/// Cubes that a large card runs at once, or nearly.
const AT_ONCE: usize = 256;
/// Numbers of `x` that a unit may hold while it normalizes several rows at once.
const HELD: usize = 96;

/// What a cube computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Shape {
    /// Fragments, side by side over the columns.
    fragments: usize,
    /// Times [`ROWS`] rows.
    eights: usize,
    /// Fragments of the inputs that a plane reads before it multiplies any: first so many each time, then so many, at last one.
    ahead: [usize; 2],
}

impl Shape {
    pub(super) const FEW: Self = Self::new(1, 1, [12, 6]);
    pub(super) const SOME: Self = Self::new(1, 4, [3, 1]);
    pub(super) const SOME_WIDE: Self = Self::new(4, 4, [1, 1]);

    const fn new(fragments: usize, eights: usize, ahead: [usize; 2]) -> Self {
        Self {
            fragments,
            eights,
            ahead,
        }
    }

    pub(super) const fn cubes(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows()) * outputs.div_ceil(self.columns())
    }

    /// Whether each cube is to normalize its rows: not if there are many more cubes than run at once.
    pub(in super::super) const fn normalizes(self, rows: usize, outputs: usize) -> bool {
        self.cubes(rows, outputs) <= AT_ONCE
    }

    /// Rows of a cube.
    pub(in super::super) const fn rows(self) -> usize {
        self.eights * ROWS
    }

    /// Columns of a cube.
    pub(in super::super) const fn columns(self) -> usize {
        self.fragments * SIDE
    }

    /// Bytes that a cube shares among its units if it normalizes rows of so many numbers.
    pub(in super::super) const fn shared_bytes(self, width: usize) -> usize {
        let slots = width / SIDE * self.eights * PLANE * size_of::<[u32; 4]>();
        slots + (PLANES * self.added() * RESULTS + UNITS) * size_of::<f32>()
    }

    /// Different numbers of fragments that are read ahead.
    const fn passes(self) -> usize {
        match self.ahead {
            [1, _] => 1,
            [_, 1] => 2,
            _ => 3,
        }
    }

    const fn ahead(self, pass: usize) -> usize {
        if pass < 2 { self.ahead[pass] } else { 1 }
    }

    /// Fragments that are summed up.
    const fn sums(self) -> usize {
        self.fragments * self.eights
    }

    /// Of them, so many at once.
    const fn added(self) -> usize {
        if self.sums() < ADDED { self.sums() } else { ADDED }
    }

    /// Of what was read ahead, with all rows.
    const fn turn(self, step: usize) -> Turn {
        Turn {
            fragments: self.fragments,
            first_word: step * self.fragments,
            eights: self.eights,
            first_eight: 0,
            all_eights: self.eights,
        }
    }

    /// Rows, of different [`ROWS`], that a plane normalizes at once.
    const fn together(self, width: usize) -> usize {
        if norm::of_lane(width) * self.eights <= HELD {
            self.eights
        } else {
            1
        }
    }
}

/// As [`super::super::linear::project`], of as many cubes as cover the result; `x`, `gamma` and `beta` in pairs of inputs. With `width`
/// rows of so many inputs are normalized first.
#[cube(launch_unchecked)]
pub(in super::super) fn project(
    x: &Array<Vector<f32, Const<2>>>,
    gamma: &Array<Vector<f32, Const<2>>>,
    beta: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    bias: &Array<f32>,
    residual: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    epsilon: f32,
    #[comptime] shape: Shape,
    #[comptime] width: Option<usize>,
    #[comptime] epilogue: Epilogue,
) {
    let unit = UNIT_POS as usize;
    let (plane, lane) = (unit / PLANE, unit % PLANE);
    let first_fragment = CUBE_POS_X as usize * comptime!(shape.fragments);
    let first_row = CUBE_POS_Y as usize * comptime!(shape.rows());
    let deep = inputs / SIDE;

    let mut sums = zeros(comptime!(shape.sums()));
    let starts = starts(first_fragment, outputs, deep, lane, comptime!(shape.fragments));
    let mut at = plane;
    match comptime!(width) {
        Some(width) => {
            let ahead = comptime!(shape.ahead(0));
            let mut words = Array::<Vector<u32, Const<WORDS>>>::new(comptime!(shape.ahead(0) * shape.fragments));
            read(weight, &starts, &mut words, at, deep, shape, ahead);
            let mut slots = SharedMemory::<Slot>::new(comptime!(width / SIDE * shape.eights * PLANE));
            normalize(x, gamma, beta, &mut slots, first_row, rows, epsilon, shape, width);
            sync_cube();
            while at < deep {
                #[unroll]
                for step in 0..ahead {
                    let fragment_of_x = at + step * PLANES;
                    if fragment_of_x < deep {
                        let mut of_rows = Array::<Slot>::new(comptime!(shape.eights));
                        #[unroll]
                        for row in 0..comptime!(shape.eights) {
                            of_rows[row] = slots[(fragment_of_x * comptime!(shape.eights) + row) * PLANE + lane];
                        }
                        multiply(&words, &of_rows, &mut sums, comptime!(shape.turn(step)));
                    }
                }
                at += comptime!(shape.ahead(0) * PLANES);
                if at < deep {
                    read(weight, &starts, &mut words, at, deep, shape, ahead);
                    sync_plane();
                }
            }
        }
        None => {
            // Beyond the last row the last one is computed again and thrown away.
            let mut row_starts = Array::<usize>::new(comptime!(shape.eights));
            #[unroll]
            for row in 0..comptime!(shape.eights) {
                let own = first_row + row * ROWS + lane / 4;
                row_starts[row] = min(own, rows - 1) * (inputs / 2) + lane % 4;
            }
            #[unroll]
            for which in 0..comptime!(shape.passes()) {
                let ahead = comptime!(shape.ahead(which));
                while at + comptime!((ahead - 1) * PLANES) < deep {
                    add_products(x, weight, &row_starts, &starts, &mut sums, at, deep, shape, ahead);
                    at += comptime!(ahead * PLANES);
                }
            }
        }
    }
    add_up(
        &sums,
        bias,
        residual,
        y,
        first_fragment,
        first_row,
        rows,
        outputs,
        shape,
        epilogue,
    );
}

/// Reads fragments of weights, from `at` on along the inputs and [`PLANES`] apart.
#[cube]
fn read(
    weight: &Array<Vector<u32, Const<WORDS>>>,
    starts: &Array<usize>,
    words: &mut Array<Vector<u32, Const<WORDS>>>,
    at: usize,
    deep: usize,
    #[comptime] shape: Shape,
    #[comptime] ahead: usize,
) {
    #[unroll]
    for step in 0..ahead {
        let place = min(at + step * PLANES, deep - 1);
        read_weights(weight, starts, words, place, step, comptime!(shape.fragments));
    }
}

/// Puts the cube's rows, normalized, where all its planes multiply them from: `[fragment of the inputs][rows][unit]`. A plane takes
/// one of every [`ROWS`].
#[cube]
fn normalize(
    x: &Array<Vector<f32, Const<2>>>,
    gamma: &Array<Vector<f32, Const<2>>>,
    beta: &Array<Vector<f32, Const<2>>>,
    slots: &mut SharedMemory<Slot>,
    first_row: usize,
    rows: usize,
    epsilon: f32,
    #[comptime] shape: Shape,
    #[comptime] width: usize,
) {
    let of_lane = comptime!(norm::of_lane(width));
    let together = comptime!(shape.together(width));
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut scales = Array::<Vector<f32, Const<2>>>::new(comptime!(of_lane / 2));
    let mut shifts = Array::<Vector<f32, Const<2>>>::new(comptime!(of_lane / 2));
    #[unroll]
    for pair in 0..comptime!(of_lane / 2) {
        let at = norm::place(lane, comptime!(pair * 2));
        if at < width {
            scales[pair] = gamma[at / 2];
            shifts[pair] = beta[at / 2];
        }
    }
    #[unroll]
    for round in 0..comptime!(shape.eights / together) {
        let mut values = Sequence::<Array<f32>>::new();
        #[unroll]
        for one in 0..together {
            let row = first_row + comptime!(round * together + one) * ROWS + plane;
            let start = min(row, rows - 1) * comptime!(width / 2);
            let mut of_row = Array::<f32>::new(of_lane);
            #[unroll]
            for pair in 0..comptime!(of_lane / 2) {
                let at = norm::place(lane, comptime!(pair * 2));
                of_row[comptime!(pair * 2)] = 0.0f32;
                of_row[comptime!(pair * 2 + 1)] = 0.0f32;
                if at < width {
                    let numbers = x[start + at / 2];
                    of_row[comptime!(pair * 2)] = numbers[0];
                    of_row[comptime!(pair * 2 + 1)] = numbers[1];
                }
            }
            values.push(of_row);
        }
        #[unroll]
        for one in 0..together {
            let of_row = values.index(one);
            let (mean, scale) = norm::moments(&mut shared, of_row, lane, epsilon, width, true);
            #[unroll]
            for four in 0..comptime!(of_lane / 4) {
                let at = norm::place(lane, comptime!(four * 4));
                if at < width {
                    let mut pairs = Array::<Vector<f32, Const<2>>>::new(2usize);
                    #[unroll]
                    for pair in 0..2usize {
                        let mut numbers = Vector::<f32, Const<2>>::empty();
                        #[unroll]
                        for number in 0..2usize {
                            let value = of_row[comptime!(four * 4 + pair * 2 + number)];
                            numbers[number] = fma(
                                (value - mean) * scale,
                                scales[comptime!(four * 2 + pair)][number],
                                shifts[comptime!(four * 2 + pair)][number],
                            );
                        }
                        pairs[pair] = numbers;
                    }
                    let eight = at / SIDE * comptime!(shape.eights) + comptime!(round * together + one);
                    slots[eight * PLANE + plane * 4 + lane % 4] = slot(pairs[0], pairs[1]);
                }
            }
        }
    }
}

/// Adds the products of `ahead` fragments along the inputs, from `at` on and [`PLANES`] apart.
#[cube]
fn add_products(
    x: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    row_starts: &Array<usize>,
    starts: &Array<usize>,
    sums: &mut Sums,
    at: usize,
    deep: usize,
    #[comptime] shape: Shape,
    #[comptime] ahead: usize,
) {
    let mut words = Array::<Vector<u32, Const<WORDS>>>::new(comptime!(ahead * shape.fragments));
    let mut numbers = Array::<Vector<f32, Const<2>>>::new(comptime!(ahead * shape.eights * 2));
    read(weight, starts, &mut words, at, deep, shape, ahead);
    #[unroll]
    for step in 0..ahead {
        let from = (at + step * PLANES) * comptime!(SIDE / 2);
        #[unroll]
        for row in 0..comptime!(shape.eights) {
            let start = row_starts[row] + from;
            numbers[comptime!((step * shape.eights + row) * 2)] = x[start];
            numbers[comptime!((step * shape.eights + row) * 2 + 1)] = x[start + 4];
        }
    }
    // Without it the compiler puts off each read until its number is needed, and the plane waits for one after the other.
    sync_plane();
    #[unroll]
    for step in 0..ahead {
        let mut of_rows = Array::<Slot>::new(comptime!(shape.eights));
        #[unroll]
        for row in 0..comptime!(shape.eights) {
            let pair = comptime!((step * shape.eights + row) * 2);
            of_rows[row] = slot(numbers[pair], numbers[comptime!(pair + 1)]);
        }
        multiply(&words, &of_rows, sums, comptime!(shape.turn(step)));
    }
}

/// Adds the planes' sums up and writes what becomes of them.
#[cube]
fn add_up(
    sums: &Sums,
    bias: &Array<f32>,
    residual: &Array<f32>,
    y: &mut Array<f32>,
    first_fragment: usize,
    first_row: usize,
    rows: usize,
    outputs: usize,
    #[comptime] shape: Shape,
    #[comptime] epilogue: Epilogue,
) {
    let unit = UNIT_POS as usize;
    let (plane, lane) = (unit / PLANE, unit % PLANE);
    // `[plane][fragment][number of a unit][unit]`
    let added = comptime!(shape.added());
    let mut shared = SharedMemory::<f32>::new(comptime!(PLANES * shape.added() * RESULTS));
    #[unroll]
    for part in 0..comptime!(shape.sums() / shape.added()) {
        sync_cube();
        #[unroll]
        for one in 0..added {
            let sum = sums.index(comptime!(part * shape.added() + one));
            #[unroll]
            for number in 0..OF_UNIT {
                let pair = sum[comptime!(number / 2)];
                let to = (plane * added + one) * RESULTS + number * PLANE + lane;
                shared[to] = pair[comptime!(number % 2)];
            }
        }
        sync_cube();
        let mut task = unit;
        while task < comptime!(shape.added() * RESULTS) {
            let (column, row) = (task % SIDE, task / SIDE % ROWS);
            let fragment = task / RESULTS;
            let number = column / 8 * 2 + row % 2;
            let from = fragment * RESULTS + number * PLANE + column % 8 * 4 + row / 2;
            let mut sum = shared[from];
            #[unroll]
            for other in 1..PLANES {
                sum += shared[from + other * comptime!(shape.added() * RESULTS)];
            }
            let all = fragment + part * added;
            let output = (first_fragment + all / comptime!(shape.eights)) * SIDE + column;
            let to = first_row + all % comptime!(shape.eights) * ROWS + row;
            if to < rows && output < outputs {
                let at = to * outputs + output;
                y[at] = finish(sum, bias, residual, output, at, epilogue);
            }
            task += UNITS;
        }
    }
}
