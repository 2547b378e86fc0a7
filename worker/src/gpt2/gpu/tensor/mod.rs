//! The product on tensor cores, for weights of 16 bits in fragments, on cards of NVIDIA's from 8.0 on.
//!
//! A plane multiplies a fragment of [`SIDE`] columns by as many inputs with [`ROWS`] rows of `x`, and reads the weights straight to
//! where they are multiplied. A number of `x` goes as the sum of two `bf16`, which keeps 16 of its bits: twice the products, on cores
//! that wait for weights. Where rows are few, the planes of a cube share the inputs (`few.rs`); where they are many, the results
//! (`many.rs`). Either way a result is the sum of [`RUNS`] sums, each of every so-manieth fragment of the inputs, in that order: so
//! a row's results are bit-equal in any company.
//!
//! Which unit holds what: NVIDIA, PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".

pub(super) mod few;
pub(super) mod many;

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::bf16;

use super::layout::{SIDE, WORDS};
use super::words::Word;

/// Units of a plane.
const PLANE: usize = 32;
/// Planes of a cube.
const PLANES: usize = 8;
/// Units of a cube.
pub(super) const UNITS: usize = PLANE * PLANES;
/// Rows that are multiplied at once.
const ROWS: usize = 8;
/// Sums that a result is made of: `few.rs` has a plane for each, `many.rs` takes them one after the other.
const RUNS: usize = PLANES;
// A plane normalizes one of every so many rows, a unit the numbers that it would multiply.
const _: () = assert!(ROWS == PLANES && super::norm::LANES == PLANE);
type Pair = Vector<bf16, Const<2>>;
/// What a unit gives of `x` for a fragment and [`ROWS`] rows: two pairs of inputs, then what these are more than `bf16` holds.
type Slot = Vector<u32, Const<4>>;

/// What a cube computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    Few(few::Shape),
    Many(many::Shape),
}

impl Shape {
    /// As many cubes as keep half of a large card busy.
    const ENOUGH: usize = 64;
    /// As many as keep all of it busy.
    const PLENTY: usize = 192;

    /// What suits `[rows, outputs]`: one of a handful, so that few kernels are compiled.
    pub(super) const fn of(rows: usize, outputs: usize) -> Self {
        if rows > few::Shape::SOME.rows() {
            let large = many::Shape::LARGE.cubes(rows, outputs);
            if large >= Self::PLENTY {
                return Self::Many(many::Shape::LARGE);
            }
            if large >= Self::ENOUGH {
                return Self::Many(many::Shape::MEDIUM);
            }
            if many::Shape::SMALL.cubes(rows, outputs) >= Self::ENOUGH {
                return Self::Many(many::Shape::SMALL);
            }
        } else if rows <= few::Shape::FEW.rows() {
            return Self::Few(few::Shape::FEW);
        } else if few::Shape::SOME_WIDE.cubes(rows, outputs) >= Self::ENOUGH {
            return Self::Few(few::Shape::SOME_WIDE);
        }
        Self::Few(few::Shape::SOME)
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

/// Where a unit's weights begin of each fragment from `first` on. Beyond the last fragment the last one is computed again and thrown
/// away.
#[cube]
fn starts(first: usize, outputs: usize, deep: usize, lane: usize, #[comptime] fragments: usize) -> Array<usize> {
    let mut starts = Array::<usize>::new(fragments);
    #[unroll]
    for fragment in 0..fragments {
        let last = outputs.div_ceil(SIDE) - 1;
        starts[fragment] = min(first + fragment, last) * deep * PLANE + lane;
    }
    starts
}

/// Reads the fragments of weights at that place along the inputs, side by side, as the `step`-th of those that are read together.
#[cube]
fn read_weights(
    weight: &Array<Vector<u32, Const<WORDS>>>,
    starts: &Array<usize>,
    words: &mut Array<Vector<u32, Const<WORDS>>>,
    place: usize,
    #[comptime] step: usize,
    #[comptime] fragments: usize,
) {
    #[unroll]
    for fragment in 0..fragments {
        words[comptime!(step * fragments + fragment)] = weight[starts[fragment] + place * PLANE];
    }
}

/// Sums of the products of fragments: for each, what a unit holds of [`SIDE`] columns and [`ROWS`] rows.
type Sums = Sequence<Array<Vector<f32, Const<2>>>>;

#[cube]
fn zeros(#[comptime] count: usize) -> Sums {
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..count {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0f32);
        sum[1] = Vector::new(0.0f32);
        sums.push(sum);
    }
    sums
}

/// Which products are made one after the other, and which sums they are added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Turn {
    /// Fragments of weights, side by side, from the word `first_word` of what was read of them.
    fragments: usize,
    first_word: usize,
    /// Times [`ROWS`] rows.
    eights: usize,
    /// The first of them, of `all_eights` that there are sums for: `[fragment][eight]`.
    first_eight: usize,
    all_eights: usize,
}

/// Adds the products of some fragments of weights with some slots.
#[cube]
fn multiply(weights: &Array<Vector<u32, Const<WORDS>>>, slots: &Array<Slot>, sums: &mut Sums, #[comptime] turn: Turn) {
    let definition = cmma::MmaDefinition::<bf16, bf16, f32>::new(SIDE, ROWS, SIDE);
    // Two products of one sum wait for each other: all others come between them.
    #[unroll]
    for part in 0..2usize {
        #[unroll]
        for fragment in 0..comptime!(turn.fragments) {
            let mut left = Array::<Pair>::new(WORDS);
            #[unroll]
            for word in 0..WORDS {
                left[word] = Pair::reinterpret(weights[comptime!(turn.first_word + fragment)][word]);
            }
            #[unroll]
            for eight in 0..comptime!(turn.eights) {
                let mut right = Array::<Pair>::new(2usize);
                #[unroll]
                for pair in 0..2usize {
                    right[pair] = Pair::reinterpret(slots[eight][comptime!(part * 2 + pair)]);
                }
                let sum = sums.index_mut(comptime!(fragment * turn.all_eights + turn.first_eight + eight));
                definition.execute_inplace(&left, &right, sum);
            }
        }
    }
}

/// Two pairs of inputs as tensor cores take them.
#[cube]
fn slot(near: Vector<f32, Const<2>>, far: Vector<f32, Const<2>>) -> Slot {
    let mut slot = Slot::empty();
    #[unroll]
    for which in 0..2usize {
        let mut pair = near;
        if comptime!(which == 1) {
            pair = far;
        }
        let (first, second) = (u32::reinterpret(pair[0]), u32::reinterpret(pair[1]));
        slot[which] = (first >> 16u32) | (second & 0xFFFF_0000u32);
        let first = left_over(pair[0], first);
        let second = left_over(pair[1], second);
        slot[comptime!(which + 2)] = (first >> 16u32) | (second & 0xFFFF_0000u32);
    }
    slot
}

/// The bits of what a number is more than its high half, such that their own high half is the nearest `bf16`.
#[cube]
fn left_over(number: f32, bits: u32) -> u32 {
    u32::reinterpret(number - f32::reinterpret(bits & 0xFFFF_0000u32)) + 0x8000u32
}
