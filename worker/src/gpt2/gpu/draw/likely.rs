//! How likely tokens were, told in so few numbers that the logits can stay where they are: each run's by a cube, then a row's
//! by one.

// Equal logits are told apart by their ids.
#![allow(clippy::float_cmp)]

use cubecl::prelude::*;

use super::OF_ASK;
use super::parts::{PARTS, run};
use super::shared::{UNITS, greatest, scan, weight};

/// Most likely tokens that are told.
pub(in super::super) const TOP: usize = 5;
/// Numbers of a run's likeliest tokens: place and logit of each.
pub(in super::super) const OF_SHORTLIST: usize = 2 * TOP;
const _: () = assert!(PARTS * TOP <= UNITS, "a unit for each likeliest token of each run");

/// Leaves, of each run of each row that asks for it, its likeliest tokens and the sum of its weights beside its own greatest
/// logit. The logits are as they came.
#[cube(launch_unchecked)]
pub(in super::super) fn survey(
    logits: &Array<f32>,
    asks: &Array<u32>,
    shortlists: &mut Array<u32>,
    of_parts: &mut Array<f64>,
    width: usize,
) {
    let unit = UNIT_POS as usize;
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let start = row * width;
    let wanted = asks[row * OF_ASK + OF_ASK - 1];
    if wanted > 0u32 {
        let mut values = SharedMemory::<f32>::new(UNITS);
        let mut places = SharedMemory::<u32>::new(UNITS);
        let mut sums = SharedMemory::<f64>::new(UNITS);
        let (begin, end) = run(width, part);
        let to = (row * PARTS + part) * OF_SHORTLIST;
        let mut most = 0.0f32;
        let mut last = 0.0f32;
        let mut last_place = 0u32;
        let mut rank = 0u32;
        // The greatest one is needed in any case.
        while rank < max(wanted - 1u32, 1u32) {
            let mut value = f32::new(f32::MIN);
            let mut place = width as u32;
            let mut at = begin + unit;
            while at < end {
                let other = logits[start + at];
                let later = rank == 0u32 || other < last || (other == last && at as u32 > last_place);
                if later && other > value {
                    value = other;
                    place = at as u32;
                }
                at += UNITS;
            }
            sync_cube();
            values[unit] = value;
            places[unit] = place;
            greatest(&mut values, &mut places);
            last = values[0];
            last_place = places[0];
            if rank == 0u32 {
                most = last;
            }
            if unit == 0 {
                shortlists[to + 2 * rank as usize] = last_place;
                shortlists[to + 2 * rank as usize + 1] = u32::reinterpret(last);
            }
            rank += 1u32;
        }
        let mut sum = 0.0f64;
        let mut at = begin + unit;
        while at < end {
            sum += weight(f64::cast_from(logits[start + at]) - f64::cast_from(most));
            at += UNITS;
        }
        sums[unit] = sum;
        scan(&mut sums);
        if unit == 0 {
            of_parts[row * PARTS + part] = sums[UNITS - 1];
        }
    }
}

/// Tells, of each row that asks for it, behind its token: the token's logit, the greatest logit, the sum of all weights as
/// the sum of two `f32`, and ids and logits of the likeliest.
#[cube(launch_unchecked)]
pub(in super::super) fn tell(
    logits: &Array<f32>,
    asks: &Array<u32>,
    shortlists: &Array<u32>,
    of_parts: &Array<f64>,
    drawn: &mut Array<u32>,
    width: usize,
    of_row: usize,
) {
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_X as usize;
    let (start, out) = (row * width, row * of_row);
    let wanted = asks[row * OF_ASK + OF_ASK - 1];
    // Nothing to be told, or nothing that could be.
    if wanted > 0u32 && drawn[out + 1] == 1u32 {
        let mut values = SharedMemory::<f32>::new(UNITS);
        let mut places = SharedMemory::<u32>::new(UNITS);
        let mut sums = SharedMemory::<f64>::new(UNITS);
        let ranks = max(wanted - 1u32, 1u32);
        // A unit a token of a shortlist.
        let mut mine = f32::new(f32::MIN);
        let mut my_place = width as u32;
        if unit < comptime!(PARTS * TOP) && ((unit % TOP) as u32) < ranks {
            let from = (row * PARTS + unit / TOP) * OF_SHORTLIST + unit % TOP * 2;
            my_place = shortlists[from];
            mine = f32::reinterpret(shortlists[from + 1]);
        }
        let mut most = 0.0f32;
        let mut last = 0.0f32;
        let mut last_place = 0u32;
        let mut rank = 0u32;
        while rank < ranks {
            let mut value = f32::new(f32::MIN);
            let mut place = width as u32;
            if rank == 0u32 || mine < last || (mine == last && my_place > last_place) {
                value = mine;
                place = my_place;
            }
            sync_cube();
            values[unit] = value;
            places[unit] = place;
            greatest(&mut values, &mut places);
            last = values[0];
            last_place = places[0];
            if rank == 0u32 {
                most = last;
            }
            if unit == 0 {
                drawn[out + 6 + 2 * rank as usize] = last_place;
                drawn[out + 7 + 2 * rank as usize] = u32::reinterpret(last);
            }
            rank += 1u32;
        }
        let mut sum = 0.0f64;
        if unit < PARTS {
            let of_part = f32::reinterpret(shortlists[(row * PARTS + unit) * OF_SHORTLIST + 1]);
            sum = of_parts[row * PARTS + unit] * weight(f64::cast_from(of_part) - f64::cast_from(most));
        }
        sums[unit] = sum;
        scan(&mut sums);
        if unit == 0 {
            let total = sums[UNITS - 1];
            let high = f32::cast_from(total);
            drawn[out + 2] = u32::reinterpret(logits[start + drawn[out] as usize]);
            drawn[out + 3] = u32::reinterpret(most);
            drawn[out + 4] = u32::reinterpret(high);
            drawn[out + 5] = u32::reinterpret(f32::cast_from(total - f64::cast_from(high)));
        }
    }
}
