//! A token of each row of logits, drawn where the logits are.
//!
//! The sampler's own arithmetic (`engine/sampler.rs`), in f64 as there, its sums in another order. Wherever a sum comes so
//! near to what it is compared with that the order might decide ([`DOUBT`]), and wherever more than [`CANDIDATES`] tokens
//! would have to be sorted, the row is left to the sampler: a token that is answered is the token it would have drawn.
//!
//! One cube a row would leave most of a card idle while few rows decode, so a row is cut into [`PARTS`] runs with a cube
//! each (`parts.rs`), and one cube puts together what they found ([`choose`]). Where the runs lie, and the order in which
//! they are put together, depend on the width of a row alone: a row's draw is the same in any company. Going through a whole
//! vocabulary is the runs' work; what is left for one cube is a run, or the likeliest tokens, which `nucleus.rs` sorts and
//! cuts. That takes two kernels if all draws are greedy, three if some go by chance, four if some of these are cut by
//! top-k or top-p. `shared.rs` has what the units of a cube do together, `likely.rs` tells how likely tokens were.

// What `#[cube]` reads is not what runs here: its functions take their arguments by value.
#![allow(clippy::needless_pass_by_value)]

mod likely;
mod nucleus;
mod parts;
mod shared;

use cubecl::prelude::*;

pub(super) use likely::{OF_SHORTLIST, TOP, survey, tell};
pub(super) use nucleus::CANDIDATES;
pub(super) use parts::{OF_BINS, OF_PART, PARTS, collect, scout, weigh};
use parts::{run, summit, weigh_run};
pub(super) use shared::UNITS;
use shared::{scan, weight};

/// Numbers that ask for a row: how, the candidates, whether they hold all that counts, temperature, top-p, min-p, the high 32
/// bits of the uniform and the low 21, and one more than the number of likely tokens that are wanted.
pub(super) const OF_ASK: usize = 9;
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

/// Draws a token of each row of `logits [rows, width]` from what its runs have left. `drawn` has `of_row` numbers a row and
/// gets the first two of each. `of_parts` are the runs' sums, `bins` and `likeliest` what [`collect`] left.
#[cube(launch_unchecked)]
pub(super) fn choose(
    logits: &Array<f32>,
    asks: &Array<u32>,
    parts: &Array<u32>,
    of_parts: &Array<f64>,
    bins: &Array<u32>,
    likeliest: &Array<u32>,
    drawn: &mut Array<u32>,
    width: usize,
    of_row: usize,
) {
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_X as usize;
    let ask = row * OF_ASK;
    let how = asks[ask];
    let mut values = SharedMemory::<f32>::new(UNITS);
    let mut places = SharedMemory::<u32>::new(UNITS);
    // The token, whether it is certain, and where something is in doubt.
    let mut found = SharedMemory::<u32>::new(3usize);
    if unit == 0 {
        found[0] = 0u32;
        found[1] = 0u32;
    }
    let (most, place, finite) = summit(parts, &mut values, &mut places, &mut found, row, width);
    if finite {
        if how == GREEDY {
            if unit == 0 {
                found[0] = place;
                found[1] = 1u32;
            }
        } else {
            let mut sums = SharedMemory::<f64>::new(UNITS);
            let mut sum = 0.0f64;
            if unit < PARTS {
                sum = of_parts[row * PARTS + unit];
                if parts[(row * PARTS + unit) * OF_PART + 3] == 1u32 {
                    found[2] = 1u32;
                }
            }
            sums[unit] = sum;
            scan(&mut sums);
            let inverse = 1.0f64 / f64::cast_from(f32::reinterpret(asks[ask + 3]));
            if how == WHOLE {
                whole(
                    logits,
                    asks,
                    &mut found,
                    &mut sums,
                    &mut places,
                    row,
                    width,
                    most,
                    inverse,
                );
            } else {
                nucleus::nucleus(
                    logits,
                    asks,
                    bins,
                    likeliest,
                    &mut found,
                    &mut sums,
                    &mut places,
                    row,
                    width,
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
    let (high, low) = (f64::cast_from(asks[ask + 6]), f64::cast_from(asks[ask + 7]));
    // 2^-32 and 2^-53.
    high * 2.328_306_436_538_696_3e-10f64 + low * 1.110_223_024_625_156_5e-16f64
}

/// The token at which the running sum over all tokens passes the uniform's share of it: first the run, by the runs' `sums`,
/// then the token in it.
#[cube]
fn whole(
    logits: &Array<f32>,
    asks: &Array<u32>,
    found: &mut SharedMemory<u32>,
    sums: &mut SharedMemory<f64>,
    place: &mut SharedMemory<u32>,
    row: usize,
    width: usize,
    most: f32,
    inverse: f64,
) {
    let unit = UNIT_POS as usize;
    let ask = row * OF_ASK;
    let least = f64::cast_from(f32::reinterpret(asks[ask + 5]));
    let greatest = f64::cast_from(most);
    let total = sums[UNITS - 1];
    let target = uniform(asks, ask) * total;
    let mut before = 0.0f64;
    if unit > 0 {
        before = sums[unit - 1];
    }
    if unit == 0 {
        place[0] = PARTS as u32;
    }
    sync_cube();
    if before <= target && target < sums[unit] {
        place[0] = unit as u32;
    }
    sync_cube();
    let part = place[0] as usize;
    if part < PARTS {
        before = 0.0f64;
        if part > 0 {
            before = sums[part - 1];
        }
        let (begin, end) = run(width, part);
        let (first, end) = weigh_run(logits, sums, found, row * width, begin, end, least, greatest, inverse);
        let mut running = before;
        if unit > 0 {
            running = before + sums[unit - 1];
        }
        if running <= target && target < before + sums[unit] {
            let mut at = first;
            let mut searching = true;
            while searching && at < end {
                let one = weight((f64::cast_from(logits[row * width + at]) - greatest) * inverse);
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
    }
    sync_cube();
}
