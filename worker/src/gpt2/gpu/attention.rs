//! The cache in blocks, and attention over a block table.
//!
//! Each layer has `[block][head]` of two parts: keys as `[word of dimensions][token]`, so that the units of a cube, a token
//! each, read them side by side, and values as `[token][word of dimensions]`. A cube attends one token with one head. It
//! goes through the past in strides of [`UNITS`] tokens from the first one on, so the order of its sums depends on how many
//! tokens there are and on nothing else.

// What `#[cube]` reads is not what runs here: its functions take their arguments as they are told to.
#![allow(clippy::trivially_copy_pass_by_ref)]

use cubecl::prelude::*;

use super::sums::{UNITS, greatest, total};
use super::words::{Word, number, pack};
use crate::gpt2::BLOCK;

/// Tokens whose values a unit reads at once.
const AHEAD: usize = 8;
/// Below every score.
const LOWEST: f32 = -3.0e38;

/// Numbers of a token in a step's table, before the block tables: its position, where its block table begins, where its
/// keys and values go.
pub(super) const OF_TOKEN: usize = 3;

/// How a layer's cache is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) word: Word,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Plan {
    /// Words of one token's keys, or values, in one head.
    pub(super) const fn of_token(self) -> usize {
        self.head_dim.div_ceil(self.word.numbers())
    }

    /// Words of one block in one layer.
    pub(super) const fn of_block(self) -> usize {
        2 * self.heads * self.of_token() * BLOCK
    }

    /// Units that stand side by side over the words of a token.
    const fn lanes(self) -> usize {
        if self.of_token() < UNITS {
            self.of_token()
        } else {
            UNITS
        }
    }

    /// Tokens that are mixed side by side.
    const fn slices(self) -> usize {
        UNITS / self.lanes()
    }

    /// Words of a token that one unit mixes.
    const fn of_lane(self) -> usize {
        self.of_token().div_ceil(self.lanes())
    }
}

/// Puts a word of a token's keys and of its values into the cache. `place` is that of the token: its block times [`BLOCK`]
/// and its place in it.
#[cube]
fn write_word(
    qkv: &Array<f32>,
    cache: &mut Array<u32>,
    token: usize,
    place: usize,
    head: usize,
    word: usize,
    #[comptime] plan: Plan,
) {
    let numbers = comptime!(plan.word.numbers());
    let head_dim = comptime!(plan.head_dim);
    let width = comptime!(plan.heads * plan.head_dim);
    let of_token = comptime!(plan.of_token());
    let dimension = word * numbers;
    let key = token * 3 * width + width + head * head_dim + dimension;
    let mut second_key = 0.0f32;
    let mut second_value = 0.0f32;
    if comptime!(numbers == 2) {
        if dimension + 1 < head_dim {
            second_key = qkv[key + 1];
            second_value = qkv[key + width + 1];
        }
    }
    let start = keys_of(place / BLOCK, head, plan);
    cache[start + word * BLOCK + place % BLOCK] = pack(qkv[key], second_key, numbers);
    let values = start + comptime!(of_token * BLOCK);
    cache[values + place % BLOCK * of_token + word] = pack(qkv[key + width], second_value, numbers);
}

/// Where a block's keys of a head begin; its values follow.
#[cube]
fn keys_of(block: usize, head: usize, #[comptime] plan: Plan) -> usize {
    (block * comptime!(plan.heads) + head) * comptime!(2 * plan.of_token() * BLOCK)
}

/// Writes the keys and values of all tokens. A unit a word of each.
#[cube(launch_unchecked)]
pub(super) fn write(
    qkv: &Array<f32>,
    cache: &mut Array<u32>,
    table: &Array<u32>,
    words: usize,
    #[comptime] plan: Plan,
) {
    let at = ABSOLUTE_POS;
    if at < words {
        let of_token = comptime!(plan.of_token());
        let heads = comptime!(plan.heads);
        let (word, rest) = (at % of_token, at / of_token);
        let (head, token) = (rest % heads, rest / heads);
        let place = table[token * OF_TOKEN + 2] as usize;
        write_word(qkv, cache, token, place, head, word, plan);
    }
}

/// `mixed [T, C]`: each token attends its past and itself. With `writes`, which is for steps of one token a sequence, its
/// own keys and values are written first.
#[cube(launch_unchecked)]
pub(super) fn attend(
    qkv: &Array<f32>,
    cache: &mut Array<u32>,
    table: &Array<u32>,
    mixed: &mut Array<f32>,
    scale: f32,
    #[comptime] plan: Plan,
    #[comptime] writes: bool,
) {
    let numbers = comptime!(plan.word.numbers());
    let head_dim = comptime!(plan.head_dim);
    let width = comptime!(plan.heads * plan.head_dim);
    let of_token = comptime!(plan.of_token());
    let (lanes, slices, of_lane) = comptime!((plan.lanes(), plan.slices(), plan.of_lane()));
    let unit = UNIT_POS as usize;
    let (head, token) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let sees = table[token * OF_TOKEN] as usize + 1;
    let blocks = table[token * OF_TOKEN + 1] as usize;

    let mut query = SharedMemory::<f32>::new(comptime!(plan.of_token() * plan.word.numbers()));
    let mut weights = SharedMemory::<f32>::new(UNITS);
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut at = unit;
    while at < comptime!(of_token * numbers) {
        let mut value = 0.0f32;
        if at < head_dim {
            value = qkv[token * 3 * width + head * head_dim + at] * scale;
        }
        query[at] = value;
        at += UNITS;
    }
    if comptime!(writes) {
        let place = table[token * OF_TOKEN + 2] as usize;
        at = unit;
        while at < of_token {
            write_word(qkv, cache, token, place, head, at, plan);
            at += UNITS;
        }
        sync_storage();
    }
    sync_cube();

    let (lane, slice) = (unit % lanes, unit / lanes);
    let mut sums = Array::<f32>::new(comptime!(of_lane * numbers));
    #[unroll]
    for at in 0..comptime!(of_lane * numbers) {
        sums[at] = 0.0f32;
    }
    let mut most = f32::new(LOWEST);
    let mut share = 0.0f32;
    let mut begin = 0usize;
    while begin < sees {
        // A unit a token: how much it counts.
        let past = begin + unit;
        let mut score = f32::new(LOWEST);
        if past < sees {
            let block = table[blocks + past / BLOCK] as usize;
            let keys = keys_of(block, head, plan) + past % BLOCK;
            score = 0.0f32;
            // Unrolled, so that the keys are on their way together.
            #[unroll]
            for word in 0..of_token {
                let key = cache[keys + word * BLOCK];
                #[unroll]
                for place in 0..numbers {
                    score = fma(query[word * numbers + place], number(key, place, numbers), score);
                }
            }
        }
        let before = most;
        most = max(most, greatest(&mut shared, score));
        let mut weight = 0.0f32;
        if past < sees {
            weight = (score - most).exp();
        }
        weights[unit] = weight;
        let shrink = (before - most).exp();
        share = fma(share, shrink, weight);
        sync_cube();
        // A unit some words of a token's values.
        #[unroll]
        for at in 0..comptime!(of_lane * numbers) {
            sums[at] *= shrink;
        }
        let here = min(sees - begin, UNITS);
        let mut past = slice;
        if slice >= slices {
            past = here;
        }
        while past + comptime!((AHEAD - 1) * plan.slices()) < here {
            mix(
                cache, table, &weights, &mut sums, blocks, begin, past, head, lane, plan, AHEAD,
            );
            past += comptime!(AHEAD * plan.slices());
        }
        while past < here {
            mix(
                cache, table, &weights, &mut sums, blocks, begin, past, head, lane, plan, 1usize,
            );
            past += slices;
        }
        begin += UNITS;
    }

    let share = total(&mut shared, share);
    // `[slice][dimension]`
    let dimensions = comptime!(of_lane * lanes * numbers);
    let mut slices_of = SharedMemory::<f32>::new(comptime!(slices * of_lane * lanes * numbers));
    if slice < slices {
        #[unroll]
        for step in 0..of_lane {
            #[unroll]
            for place in 0..numbers {
                let dimension = (lane + step * lanes) * numbers + place;
                slices_of[slice * dimensions + dimension] = sums[step * numbers + place];
            }
        }
    }
    sync_cube();
    let mut dimension = unit;
    while dimension < head_dim {
        let mut sum = slices_of[dimension];
        #[unroll]
        for slice in 1..slices {
            sum += slices_of[slice * dimensions + dimension];
        }
        mixed[token * width + head * head_dim + dimension] = sum / share;
        dimension += UNITS;
    }
}

/// Adds the values of `ahead` tokens, from `past` on and [`Plan::slices`] apart, to a unit's words: each as its weight says. All are
/// read before any is added.
#[cube]
fn mix(
    cache: &Array<u32>,
    table: &Array<u32>,
    weights: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    blocks: usize,
    begin: usize,
    past: usize,
    head: usize,
    lane: usize,
    #[comptime] plan: Plan,
    #[comptime] ahead: usize,
) {
    let numbers = comptime!(plan.word.numbers());
    let of_token = comptime!(plan.of_token());
    let (lanes, slices, of_lane) = comptime!((plan.lanes(), plan.slices(), plan.of_lane()));
    let mut words = Array::<u32>::new(comptime!(ahead * plan.of_lane()));
    #[unroll]
    for one in 0..ahead {
        let token = begin + past + one * slices;
        let block = table[blocks + token / BLOCK] as usize;
        let values = keys_of(block, head, plan) + comptime!(of_token * BLOCK) + token % BLOCK * of_token;
        #[unroll]
        for step in 0..of_lane {
            let word = lane + step * lanes;
            if word < of_token {
                words[comptime!(one * plan.of_lane() + step)] = cache[values + word];
            }
        }
    }
    #[unroll]
    for one in 0..ahead {
        let weight = weights[past + one * slices];
        #[unroll]
        for step in 0..of_lane {
            if lane + step * lanes < of_token {
                let value = words[comptime!(one * plan.of_lane() + step)];
                #[unroll]
                for place in 0..numbers {
                    let at = comptime!(step * plan.word.numbers() + place);
                    sums[at] = fma(weight, number(value, place, numbers), sums[at]);
                }
            }
        }
    }
}
