//! How numbers lie in a word of 32 bits: one `f32`, or two `bf16` side by side.
//!
//! Packed by hand, so that every device computes with the same weights, also one that knows no 16-bit floats.

// What `#[cube]` reads is not what runs here: its functions take their arguments by value.
#![allow(clippy::needless_pass_by_value)]

use claimcheck_common::domain::Dtype;
use cubecl::prelude::*;

/// What a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Word {
    /// One `f32`.
    One,
    /// Two `bf16`, the first in the low half.
    Two,
}

impl Word {
    pub(super) const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::One,
            Dtype::Bf16 | Dtype::Int8 => Self::Two,
        }
    }

    /// Numbers of a word.
    pub(super) const fn numbers(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// The number at a place of a word.
#[cube]
pub(super) fn number(word: u32, place: usize, #[comptime] numbers: usize) -> f32 {
    if comptime!(numbers == 1) {
        f32::reinterpret(word)
    } else {
        let high = place as u32 == 1u32;
        f32::reinterpret(select(high, word & 0xFFFF_0000u32, word << 16u32))
    }
}

/// Puts one number, or two, into a word.
#[cube]
pub(super) fn pack(first: f32, second: f32, #[comptime] numbers: usize) -> u32 {
    if comptime!(numbers == 1) {
        u32::reinterpret(first)
    } else {
        half(first) | (half(second) << 16u32)
    }
}

/// The bits of the nearest `bf16`, ties to even. What is not a number stays one.
#[cube]
fn half(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let nearest = (bits + 0x7FFFu32 + ((bits >> 16u32) & 1u32)) >> 16u32;
    select(
        (bits & 0x7FFF_FFFFu32) > 0x7F80_0000u32,
        (bits >> 16u32) | 0x40u32,
        nearest,
    )
}
