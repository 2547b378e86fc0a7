//! How likely tokens were, told in so few numbers that the logits can stay where they are: a cube a row.

// Equal logits are told apart by their ids.
#![allow(clippy::float_cmp)]

use cubecl::prelude::*;

use super::OF_ASK;
use super::shared::{UNITS, greatest, scan, weight};

/// Most likely tokens that are told.
pub(in super::super) const TOP: usize = 5;

/// Tells, of each row that asks for it, behind its token: the token's logit, the greatest logit, the sum of all weights as
/// the sum of two `f32`, and ids and logits of the likeliest. The logits are as they came.
#[cube(launch_unchecked)]
pub(in super::super) fn tell(
    logits: &Array<f32>,
    asks: &Array<u32>,
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
        let mut most = 0.0f32;
        let mut last = 0.0f32;
        let mut last_place = 0u32;
        let mut rank = 0u32;
        // The greatest one is needed in any case.
        while rank < max(wanted - 1u32, 1u32) {
            let mut value = f32::new(f32::MIN);
            let mut place = width as u32;
            let mut at = unit;
            while at < width {
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
                drawn[out + 6 + 2 * rank as usize] = last_place;
                drawn[out + 7 + 2 * rank as usize] = u32::reinterpret(last);
            }
            rank += 1u32;
        }
        let mut sum = 0.0f64;
        let mut at = unit;
        while at < width {
            sum += weight(f64::cast_from(logits[start + at]) - f64::cast_from(most));
            at += UNITS;
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
