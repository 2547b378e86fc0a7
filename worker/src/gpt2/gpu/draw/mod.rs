//! A token of each row of logits, drawn where the logits are: a cube a row.
//!
//! The sampler's own arithmetic (`engine/sampler.rs`), in f64 as there, its sums in another order. Wherever a sum comes so
//! near to what it is compared with that the order might decide ([`DOUBT`]), and wherever more than [`CANDIDATES`] tokens
//! would have to be sorted, the row is left to the sampler: a token that is answered is the token it would have drawn.
//! `shared.rs` has what the units of a cube do together, `nucleus.rs` sorts and cuts, `likely.rs` tells how likely tokens were.

// What `#[cube]` reads is not what runs here: its functions take their arguments by value.
#![allow(clippy::needless_pass_by_value)]

mod likely;
mod nucleus;
mod shared;

use cubecl::prelude::*;

pub(super) use likely::{TOP, tell};
pub(super) use nucleus::CANDIDATES;
pub(super) use shared::UNITS;
use shared::{greatest, scan, weight};

/// Numbers that ask for a row: how, the candidates, whether they hold all that counts, the least power of two that is not
/// below their number, temperature, top-p, min-p, the high 32 bits of the uniform and the low 21, and one more than the number
/// of likely tokens that are wanted.
pub(super) const OF_ASK: usize = 10;
/// The greatest logit.
pub(super) const GREEDY: u32 = 0;
/// From all tokens, in the order of their ids.
pub(super) const WHOLE: u32 = 1;
/// From the likeliest, in their order.
pub(super) const NUCLEUS: u32 = 2;

/// Numbers of an edit: the place of its logit, what is done, by which numbers.
pub(super) const OF_EDIT: usize = 5;
/// Divide or multiply.
pub(super) const REPETITION: u32 = 1;
/// Take off.
pub(super) const LESS: u32 = 2;
/// Add.
pub(super) const BIAS: u32 = 4;

/// What a draw answers: the token, and whether it is certain.
pub(super) const OF_TOKEN: usize = 2;

/// Which share of a sum its order may change: a hundred thousand numbers in f64 stay below a tenth of that.
const DOUBT: f64 = 1e-10;

/// Changes logits as `edits` say, and keeps what they were. A unit an edit, each of another logit.
#[cube(launch_unchecked)]
pub(super) fn edit(logits: &mut Array<f32>, edits: &Array<u32>, before: &mut Array<f32>, count: usize) {
    let at = ABSOLUTE_POS;
    if at < count {
        let one = at * OF_EDIT;
        let (place, what) = (edits[one] as usize, edits[one + 1]);
        let mut value = logits[place];
        before[at] = value;
        if (what & REPETITION) != 0u32 {
            // Both are rounded once, as there.
            let (wide, by) = (f64::cast_from(value), f64::cast_from(f32::reinterpret(edits[one + 2])));
            if value < 0.0f32 {
                value = f32::cast_from(wide * by);
            } else {
                value = f32::cast_from(wide / by);
            }
        }
        if (what & LESS) != 0u32 {
            value -= f32::reinterpret(edits[one + 3]);
        }
        if (what & BIAS) != 0u32 {
            value += f32::reinterpret(edits[one + 4]);
        }
        logits[place] = value;
    }
}

/// Makes logits what they were before [`edit`].
#[cube(launch_unchecked)]
pub(super) fn restore(logits: &mut Array<f32>, edits: &Array<u32>, before: &Array<f32>, count: usize) {
    let at = ABSOLUTE_POS;
    if at < count {
        let place = edits[at * OF_EDIT] as usize;
        logits[place] = before[at];
    }
}

/// Draws a token of each row of `logits [rows, width]`. `drawn` has `of_row` numbers a row and gets the first two of each.
#[cube(launch_unchecked)]
pub(super) fn draw(logits: &Array<f32>, asks: &Array<u32>, drawn: &mut Array<u32>, width: usize, of_row: usize) {
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_X as usize;
    let (start, ask) = (row * width, row * OF_ASK);
    let how = asks[ask];
    let mut values = SharedMemory::<f32>::new(UNITS);
    let mut places = SharedMemory::<u32>::new(UNITS);
    // The token, whether it is certain, and where something is in doubt.
    let mut found = SharedMemory::<u32>::new(3usize);
    if unit == 0 {
        found[0] = 0u32;
        found[1] = 0u32;
        found[2] = 0u32;
    }
    sync_cube();

    let mut most = f32::new(f32::MIN);
    let mut place = width as u32;
    let mut at = unit;
    while at < width {
        let value = logits[start + at];
        if (u32::reinterpret(value) & 0x7F80_0000u32) == 0x7F80_0000u32 {
            found[2] = 1u32;
        }
        if value > most {
            most = value;
            place = at as u32;
        }
        at += UNITS;
    }
    values[unit] = most;
    places[unit] = place;
    greatest(&mut values, &mut places);
    let (most, place) = (values[0], places[0]);
    let finite = found[2] == 0u32 && (place as usize) < width;
    sync_cube();

    if finite {
        if how == GREEDY {
            if unit == 0 {
                found[0] = place;
                found[1] = 1u32;
            }
        } else {
            let mut sums = SharedMemory::<f64>::new(UNITS);
            let temperature = f64::cast_from(f32::reinterpret(asks[ask + 4]));
            let inverse = 1.0f64 / temperature;
            if how == WHOLE {
                whole(logits, asks, &mut found, &mut sums, start, width, ask, most, inverse);
            } else {
                nucleus::nucleus(
                    logits,
                    asks,
                    &mut found,
                    &mut sums,
                    &mut places,
                    start,
                    width,
                    ask,
                    most,
                    inverse,
                );
            }
        }
    }
    sync_cube();
    if unit == 0 {
        drawn[row * of_row] = found[0];
        drawn[row * of_row + 1] = found[1] * (1u32 - min(found[2], 1u32));
    }
}

/// The uniform that a row was given.
#[cube]
fn uniform(asks: &Array<u32>, ask: usize) -> f64 {
    let (high, low) = (f64::cast_from(asks[ask + 7]), f64::cast_from(asks[ask + 8]));
    // 2^-32 and 2^-53.
    high * 2.328_306_436_538_696_3e-10f64 + low * 1.110_223_024_625_156_5e-16f64
}

/// The token at which the running sum over all tokens passes the uniform's share of it. Each unit has a run of tokens.
#[cube]
fn whole(
    logits: &Array<f32>,
    asks: &Array<u32>,
    found: &mut SharedMemory<u32>,
    sums: &mut SharedMemory<f64>,
    start: usize,
    width: usize,
    ask: usize,
    most: f32,
    inverse: f64,
) {
    let unit = UNIT_POS as usize;
    let least = f64::cast_from(f32::reinterpret(asks[ask + 6]));
    let of_unit = width.div_ceil(UNITS);
    let first = min(unit * of_unit, width);
    let end = min(first + of_unit, width);
    let greatest = f64::cast_from(most);
    let mut sum = 0.0f64;
    let mut at = first;
    while at < end {
        let one = weight((f64::cast_from(logits[start + at]) - greatest) * inverse);
        if one >= least {
            sum += one;
        }
        if least > 0.0f64 && (one - least).abs() < DOUBT * least {
            found[2] = 1u32;
        }
        at += 1;
    }
    sums[unit] = sum;
    scan(sums);
    let total = sums[UNITS - 1];
    let target = uniform(asks, ask) * total;
    let mut running = 0.0f64;
    if unit > 0 {
        running = sums[unit - 1];
    }
    if running <= target && target < sums[unit] {
        at = first;
        let mut searching = true;
        while searching && at < end {
            let one = weight((f64::cast_from(logits[start + at]) - greatest) * inverse);
            let mut next = running;
            if one >= least {
                next += one;
            }
            if next > target {
                searching = false;
                if next - target >= DOUBT * total && target - running >= DOUBT * total {
                    found[0] = at as u32;
                    found[1] = 1u32;
                }
            }
            running = next;
            at += 1;
        }
    }
    sync_cube();
}
