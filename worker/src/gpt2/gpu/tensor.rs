//! The product on tensor cores, for weights of 16 bits in fragments, on cards of NVIDIA's from 8.0 on.
//!
//! A plane multiplies a fragment of 16 columns by 16 inputs with 8 rows of `x`, and reads the weights straight to where they are
//! multiplied. The planes of a cube share the same columns and rows and take every [`PLANES`]-th fragment each; the cube adds
//! their sums up. A number of `x` goes as the sum of two `bf16`, which keeps 16 of its bits: twice the products, on cores that wait
//! for weights. How many fragments and rows a cube takes ([`Shape`]) changes what is read together and no order of a sum: the cores
//! add up each result by itself, so a row's results are the same in any company.
//!
//! Which unit holds what: NVIDIA, PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::bf16;

use super::layout::{SIDE, WORDS};
use super::linear::{Epilogue, activate};
use super::words::Word;

/// Units of a plane.
const PLANE: usize = 32;
/// Planes of a cube.
const PLANES: usize = 8;
/// Units of a cube.
pub(super) const UNITS: usize = PLANE * PLANES;
/// Rows that are multiplied at once.
const ROWS: usize = 8;
/// Results of a fragment: [`SIDE`] columns of [`ROWS`] rows.
const RESULTS: usize = SIDE * ROWS;
/// Results that a unit holds.
const OF_UNIT: usize = RESULTS / PLANE;
/// Fragments whose sums are added up at once, at most.
const ADDED: usize = 8;
type Pair = Vector<bf16, Const<2>>;

/// What a cube computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Fragments, side by side over the columns.
    fragments: usize,
    /// Times [`ROWS`] rows.
    eights: usize,
    /// Inputs that are read before any is multiplied, in fragments: first so many each time, then so many, at last one.
    ahead: [usize; 2],
}

impl Shape {
    /// For few rows, some and many, and for few columns and many: large ones read less together, small ones make more cubes.
    const FEW: Self = Self::new(1, 1, [12, 6]);
    const SOME: Self = Self::new(1, 4, [3, 1]);
    const SOME_WIDE: Self = Self::new(4, 4, [1, 1]);
    const MANY: Self = Self::new(2, 8, [3, 1]);
    const MANY_WIDE: Self = Self::new(4, 8, [1, 1]);
    /// As many cubes as keep half of a large card busy.
    const ENOUGH: usize = 64;

    const fn new(fragments: usize, eights: usize, ahead: [usize; 2]) -> Self {
        Self {
            fragments,
            eights,
            ahead,
        }
    }

    /// What suits `[rows, outputs]`: one of few, so that few kernels are compiled.
    pub(super) const fn of(rows: usize, outputs: usize) -> Self {
        if rows <= Self::FEW.rows() {
            return Self::FEW;
        }
        let (narrow, wide) = if rows <= Self::SOME.rows() {
            (Self::SOME, Self::SOME_WIDE)
        } else {
            (Self::MANY, Self::MANY_WIDE)
        };
        if wide.cubes(rows, outputs) < Self::ENOUGH {
            narrow
        } else {
            wide
        }
    }

    const fn cubes(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows()) * outputs.div_ceil(self.columns())
    }

    /// Rows of a cube.
    pub(super) const fn rows(self) -> usize {
        self.eights * ROWS
    }

    /// Columns of a cube.
    pub(super) const fn columns(self) -> usize {
        self.fragments * SIDE
    }

    /// Different numbers of inputs that are read ahead.
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
}

/// Whether a device multiplies such weights so.
pub(super) fn fits<R: Runtime>(client: &ComputeClient<R>, word: Word, inputs: usize) -> bool {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let half = ElemType::Float(FloatKind::BF16).into();
    let fragments = MmaConfig {
        a_type: half,
        b_type: half,
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: SIDE as u32,
        n: ROWS as u32,
        k: SIDE as u32,
    };
    R::name(client) == "cuda"
        && word == Word::Two
        && inputs.is_multiple_of(SIDE)
        && properties.features.matmul.mma.contains(&fragments)
        && (hardware.plane_size_min, hardware.plane_size_max) == (PLANE as u32, PLANE as u32)
}

/// As [`super::linear::project`], of as many cubes as cover the result; `x` in pairs of inputs.
#[cube(launch_unchecked)]
pub(super) fn project(
    x: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    bias: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] shape: Shape,
    #[comptime] epilogue: Epilogue,
) {
    let unit = UNIT_POS as usize;
    let (plane, lane) = (unit / PLANE, unit % PLANE);
    let first_fragment = CUBE_POS_X as usize * comptime!(shape.fragments);
    let first_row = CUBE_POS_Y as usize * comptime!(shape.rows());
    let deep = inputs / SIDE;

    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(shape.sums()) {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0f32);
        sum[1] = Vector::new(0.0f32);
        sums.push(sum);
    }
    // Beyond the last row, and beyond the last fragment, the last one is computed again and thrown away.
    let mut row_starts = Array::<usize>::new(comptime!(shape.eights));
    #[unroll]
    for row in 0..comptime!(shape.eights) {
        let own = first_row + row * ROWS + lane / 4;
        row_starts[row] = min(own, rows - 1) * (inputs / 2) + lane % 4;
    }
    let mut fragment_starts = Array::<usize>::new(comptime!(shape.fragments));
    #[unroll]
    for fragment in 0..comptime!(shape.fragments) {
        let last = outputs.div_ceil(SIDE) - 1;
        fragment_starts[fragment] = min(first_fragment + fragment, last) * deep * PLANE + lane;
    }
    let mut at = plane;
    #[unroll]
    for which in 0..comptime!(shape.passes()) {
        let ahead = comptime!(shape.ahead(which));
        while at + comptime!((ahead - 1) * PLANES) < deep {
            multiply(x, weight, &row_starts, &fragment_starts, &mut sums, at, shape, ahead);
            at += comptime!(ahead * PLANES);
        }
    }

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
                if comptime!(epilogue.bias) {
                    sum += bias[output];
                }
                y[to * outputs + output] = activate(sum, comptime!(epilogue.activation));
            }
            task += UNITS;
        }
    }
}

/// Adds the products of `ahead` fragments along the inputs, from `at` on and [`PLANES`] apart.
#[cube]
fn multiply(
    x: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    row_starts: &Array<usize>,
    fragment_starts: &Array<usize>,
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    at: usize,
    #[comptime] shape: Shape,
    #[comptime] ahead: usize,
) {
    let mut words = Array::<Vector<u32, Const<WORDS>>>::new(comptime!(ahead * shape.fragments));
    let mut numbers = Array::<Vector<f32, Const<2>>>::new(comptime!(ahead * shape.eights * 2));
    #[unroll]
    for step in 0..ahead {
        let deep = at + step * PLANES;
        #[unroll]
        for fragment in 0..comptime!(shape.fragments) {
            words[comptime!(step * shape.fragments + fragment)] = weight[fragment_starts[fragment] + deep * PLANE];
        }
        #[unroll]
        for row in 0..comptime!(shape.eights) {
            let start = row_starts[row] + deep * comptime!(SIDE / 2);
            numbers[comptime!((step * shape.eights + row) * 2)] = x[start];
            numbers[comptime!((step * shape.eights + row) * 2 + 1)] = x[start + 4];
        }
    }
    // Without it the compiler puts off each read until its number is needed, and the plane waits for one after the other.
    sync_plane();
    let definition = cmma::MmaDefinition::<bf16, bf16, f32>::new(SIDE, ROWS, SIDE);
    #[unroll]
    for step in 0..ahead {
        let mut lefts = Sequence::<Array<Pair>>::new();
        #[unroll]
        for fragment in 0..comptime!(shape.fragments) {
            let vector = words[comptime!(step * shape.fragments + fragment)];
            let mut left = Array::<Pair>::new(WORDS);
            #[unroll]
            for word in 0..WORDS {
                left[word] = Pair::reinterpret(vector[word]);
            }
            lefts.push(left);
        }
        #[unroll]
        for row in 0..comptime!(shape.eights) {
            let mut near = Array::<Pair>::new(2usize);
            let mut rest = Array::<Pair>::new(2usize);
            #[unroll]
            for half in 0..2usize {
                let pair = numbers[comptime!((step * shape.eights + row) * 2 + half)];
                let (first, second) = (u32::reinterpret(pair[0]), u32::reinterpret(pair[1]));
                near[half] = Pair::reinterpret((first >> 16u32) | (second & 0xFFFF_0000u32));
                let first = left_over(pair[0], first);
                let second = left_over(pair[1], second);
                rest[half] = Pair::reinterpret((first >> 16u32) | (second & 0xFFFF_0000u32));
            }
            #[unroll]
            for fragment in 0..comptime!(shape.fragments) {
                let left = lefts.index(fragment);
                let sum = sums.index_mut(comptime!(fragment * shape.eights + row));
                definition.execute_inplace(left, &near, sum);
                definition.execute_inplace(left, &rest, sum);
            }
        }
    }
}

/// The bits of what a number is more than its high half, such that their own high half is the nearest `bf16`.
#[cube]
fn left_over(number: f32, bits: u32) -> u32 {
    u32::reinterpret(number - f32::reinterpret(bits & 0xFFFF_0000u32)) + 0x8000u32
}
