//! The product of many rows on tensor cores, for `--order fast` and weights of 16 bits, where the device has fragments of 16
//! by 16 `bf16` that add up in `f32`.
//!
//! A cube has [`ROWS`] rows and [`COLUMNS`] columns, and a plane of 32 units a quarter of them: two by two fragments. Words of
//! the panels are two `bf16` as they lie, so they go to shared memory unchanged; there is one copy of the weights for both
//! orders, which is why this is no library's product: those read rows or columns with one stride, and panels have two. A
//! number of `x` goes as the sum of two `bf16`, which keeps 16 of its bits: twice the products, on cores that wait for weights.
//! The order within a fragment is the device's, hence not for the fixed order.

// What `#[cube]` reads is not what runs here: its functions take their arguments as they are told to.
#![allow(clippy::trivially_copy_pass_by_ref)]

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::bf16;

use super::linear::{Epilogue, Plan, WORDS, activate};
use super::sums::UNITS;
use super::words::Word;

/// Rows of a cube.
pub(super) const ROWS: usize = 64;
/// Columns of a cube: whole panels of every plan.
pub(super) const COLUMNS: usize = 64;
/// Inputs that are brought at once.
const DEEP: usize = 32;
/// Rows, columns and inputs of a fragment.
const SIDE: usize = 16;
/// Rows and columns of a plane, in fragments.
const OF_PLANE: usize = 2;
const PLANE: usize = 32;
/// Planes side by side over the columns.
const ACROSS: usize = COLUMNS / (OF_PLANE * SIDE);
const _: () = assert!(UNITS / PLANE * OF_PLANE * OF_PLANE * SIDE * SIDE == ROWS * COLUMNS);
/// `bf16` of a vector of words.
const OF_VECTOR: usize = 2 * WORDS;
type Eight = Vector<bf16, Const<OF_VECTOR>>;
/// Numbers from a row to the next where units share them: a little more than a row has, so that the rows of a fragment lie in
/// different banks, and by what fragments want multiples of 32 bytes.
const X_STRIDE: usize = DEEP + 8;
const WEIGHT_STRIDE: usize = COLUMNS + 8;
const SUM_STRIDE: usize = COLUMNS + 4;
/// What fragments want to be aligned to, in bytes.
const ALIGNED: usize = 32;
/// Bytes that the units of a cube share: `x` twice, weights, sums.
const SHARED: usize = 2 * (2 * ROWS * X_STRIDE + DEEP * WEIGHT_STRIDE) + 4 * ROWS * SUM_STRIDE;

/// Whether a device has what the kernel needs, for weights in such words.
pub(super) fn fits<R: Runtime>(client: &ComputeClient<R>, word: Word) -> bool {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let half = ElemType::Float(FloatKind::BF16).into();
    let fragments = MmaConfig {
        a_type: half,
        b_type: half,
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: SIDE as u32,
        n: SIDE as u32,
        k: SIDE as u32,
    };
    // CUDA's compiler takes it; no other has seen it. Cards of before 8.0 are listed with these fragments and do not have
    // them; they do not copy by themselves either.
    R::name(client) == "cuda"
        && properties.features.copy_async
        && word == Word::Two
        && properties.features.matmul.cmma.contains(&fragments)
        && (hardware.plane_size_min, hardware.plane_size_max) == (PLANE as u32, PLANE as u32)
        && hardware.max_shared_memory_size >= SHARED
}

/// As [`super::linear::project`], of as many cubes as tiles cover the result.
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
    #[comptime] epilogue: Epilogue,
) {
    let groups = comptime!(plan.groups);
    let columns = comptime!(plan.columns());
    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let (plane_row, plane_column) = (plane / ACROSS * OF_PLANE * SIDE, plane % ACROSS * OF_PLANE * SIDE);
    let (first_row, first_column) = (CUBE_POS_Y as usize * ROWS, CUBE_POS_X as usize * COLUMNS);
    let panels = outputs.div_ceil(columns);

    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(OF_PLANE * OF_PLANE) {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            SIDE,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    // `[row][input]`, what it is nearest to and what is left of it, and `[input][column]`
    let mut near = SharedMemory::<bf16>::new_aligned(comptime!(ROWS * X_STRIDE), ALIGNED);
    let mut rest = SharedMemory::<bf16>::new_aligned(comptime!(ROWS * X_STRIDE), ALIGNED);
    let mut weights = SharedMemory::<Eight>::new_aligned(comptime!(DEEP * WEIGHT_STRIDE / OF_VECTOR), ALIGNED);
    let mut from = 0usize;
    while from < inputs {
        sync_cube();
        #[unroll]
        for step in 0..comptime!(ROWS * DEEP / UNITS) {
            let at = unit + step * UNITS;
            let (row, deep) = (at / DEEP, at % DEEP);
            let mut value = 0.0f32;
            if from + deep < inputs {
                // Beyond the last row the last one is computed again and thrown away.
                value = x[min(first_row + row, rows - 1) * inputs + from + deep];
            }
            let nearest = bf16::cast_from(value);
            near[row * X_STRIDE + deep] = nearest;
            rest[row * X_STRIDE + deep] = bf16::cast_from(value - f32::cast_from(nearest));
        }
        let mut at = unit;
        while at < comptime!(DEEP * COLUMNS / OF_VECTOR) {
            let (group, deep) = (at % groups, at / groups % DEEP);
            let panel = at / comptime!(plan.groups * DEEP);
            let (whole, input) = (first_column / columns + panel, from + deep);
            let mut words = Vector::<u32, Const<WORDS>>::new(0u32);
            if whole < panels && input < inputs {
                words = weight[(whole * inputs + input) * groups + group];
            }
            let start = deep * WEIGHT_STRIDE + panel * columns + group * OF_VECTOR;
            weights[start / OF_VECTOR] = Eight::reinterpret(words);
            at += UNITS;
        }
        sync_cube();
        #[unroll]
        for deep in 0..comptime!(DEEP / SIDE) {
            #[unroll]
            for column in 0..OF_PLANE {
                let start = deep * SIDE * WEIGHT_STRIDE + plane_column + column * SIDE;
                let right = cmma::Matrix::<Eight>::from_slice(
                    cmma::MatrixIdent::B,
                    SIDE,
                    SIDE,
                    SIDE,
                    cmma::MatrixLayout::RowMajor,
                    &weights.slice(start / OF_VECTOR, comptime!(DEEP * WEIGHT_STRIDE / OF_VECTOR)),
                    WEIGHT_STRIDE as u32,
                );
                #[unroll]
                for row in 0..OF_PLANE {
                    let start = (plane_row + row * SIDE) * X_STRIDE + deep * SIDE;
                    let sum = sums.index(comptime!(row * OF_PLANE + column));
                    multiply(&near, start, &right, sum);
                    multiply(&rest, start, &right, sum);
                }
            }
        }
        from += DEEP;
    }

    let mut results = SharedMemory::<f32>::new_aligned(comptime!(ROWS * SUM_STRIDE), ALIGNED);
    #[unroll]
    for row in 0..OF_PLANE {
        #[unroll]
        for column in 0..OF_PLANE {
            let start = (plane_row + row * SIDE) * SUM_STRIDE + plane_column + column * SIDE;
            cmma::store(
                &mut results.slice_mut(start, comptime!(ROWS * SUM_STRIDE)),
                sums.index(comptime!(row * OF_PLANE + column)),
                SUM_STRIDE as u32,
                cmma::MatrixLayout::RowMajor,
            );
        }
    }
    sync_cube();
    let mut at = unit;
    while at < comptime!(ROWS * COLUMNS) {
        let (row, column) = (first_row + at / COLUMNS, first_column + at % COLUMNS);
        if row < rows && column < outputs {
            let mut sum = results[at / COLUMNS * SUM_STRIDE + at % COLUMNS];
            if comptime!(epilogue.bias) {
                sum += bias[column];
            }
            y[row * outputs + column] = activate(sum, comptime!(epilogue.activation));
        }
        at += UNITS;
    }
}

/// Adds the product of a fragment of `x`, which begins at `start`, with one of weights.
#[cube]
fn multiply(x: &SharedMemory<bf16>, start: usize, right: &cmma::Matrix<Eight>, sum: &cmma::Matrix<f32>) {
    let left = cmma::Matrix::<bf16>::from_slice(
        cmma::MatrixIdent::A,
        SIDE,
        SIDE,
        SIDE,
        cmma::MatrixLayout::RowMajor,
        &x.slice(start, comptime!(ROWS * X_STRIDE)),
        X_STRIDE as u32,
    );
    cmma::execute::<bf16, Eight, f32, f32>(&left, right, sum, sum);
}
