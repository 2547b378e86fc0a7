//! What several cubes find out about a row, each about a run of it: the greatest logit, the sum of weights, how many tokens
//! are how near to the greatest, and which are the likeliest.
//!
//! Sums are put together in the order of the runs. Counts are of whole numbers, and the likeliest are sorted afterwards: the
//! order in which cubes add to those is free.

// What `#[cube]` reads is not what runs here: its functions take their arguments by value.
#![allow(clippy::needless_pass_by_value)]

use cubecl::prelude::*;

use super::nucleus::{CANDIDATES, key};
use super::shared::{UNITS, greatest, scan, scan_counts, weight};
use super::{DOUBT, GREEDY, NUCLEUS, OF_ASK, WHOLE};

/// Runs of a row, with a cube each: of GPT-2's vocabulary each has some 1,600 logits, six a unit. More of them would leave the
/// cubes with little but their reductions. To be measured.
pub(in super::super) const PARTS: usize = 32;
/// Numbers of a run: its greatest logit, the place of that, whether some logit is not a finite number, whether a weight is in
/// doubt.
pub(in super::super) const OF_PART: usize = 4;
/// Numbers of a row's counts: a bin a unit, then how many likely tokens were collected.
pub(in super::super) const OF_BINS: usize = UNITS + 1;
/// Bins of a logit's unit: they reach 16 below the greatest, and as a rule the 1,024 likeliest tokens do not.
const FINE: f32 = 16.0;

/// Where a run begins and ends.
#[cube]
pub(super) fn run(width: usize, part: usize) -> (usize, usize) {
    let of_part = width.div_ceil(PARTS);
    let begin = min(part * of_part, width);
    (begin, min(begin + of_part, width))
}

/// Finds the greatest logit of each run, the lowest place of equal ones, and empties the row's bins.
#[cube(launch_unchecked)]
pub(in super::super) fn scout(logits: &Array<f32>, parts: &mut Array<u32>, bins: &mut Array<u32>, width: usize) {
    let unit = UNIT_POS as usize;
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let mut values = SharedMemory::<f32>::new(UNITS);
    let mut places = SharedMemory::<u32>::new(UNITS);
    let mut bad = SharedMemory::<u32>::new(1usize);
    if unit == 0 {
        bad[0] = 0u32;
    }
    sync_cube();
    if part == 0 {
        let mut bin = unit;
        while bin < OF_BINS {
            bins[row * OF_BINS + bin] = 0u32;
            bin += UNITS;
        }
    }
    let (begin, end) = run(width, part);
    let mut most = f32::new(f32::MIN);
    let mut place = width as u32;
    let mut at = begin + unit;
    while at < end {
        let value = logits[row * width + at];
        if (u32::reinterpret(value) & 0x7F80_0000u32) == 0x7F80_0000u32 {
            bad[0] = 1u32;
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
    if unit == 0 {
        let to = (row * PARTS + part) * OF_PART;
        parts[to] = u32::reinterpret(values[0]);
        parts[to + 1] = places[0];
        parts[to + 2] = bad[0];
        parts[to + 3] = 0u32;
    }
}

/// The greatest logit of a row, its place, and whether all logits are finite numbers: the same for all units. Makes
/// `found[2]` zero.
#[cube]
pub(super) fn summit(
    parts: &Array<u32>,
    values: &mut SharedMemory<f32>,
    places: &mut SharedMemory<u32>,
    found: &mut SharedMemory<u32>,
    row: usize,
    width: usize,
) -> (f32, u32, bool) {
    let unit = UNIT_POS as usize;
    if unit == 0 {
        found[2] = 0u32;
    }
    sync_cube();
    let mut value = f32::new(f32::MIN);
    let mut place = width as u32;
    if unit < PARTS {
        let from = (row * PARTS + unit) * OF_PART;
        value = f32::reinterpret(parts[from]);
        place = parts[from + 1];
        if parts[from + 2] == 1u32 {
            found[2] = 1u32;
        }
    }
    values[unit] = value;
    places[unit] = place;
    greatest(values, places);
    let (most, place) = (values[0], places[0]);
    let finite = found[2] == 0u32 && (place as usize) < width;
    sync_cube();
    (most, place, finite)
}

/// Makes `sums` the sums of the weights that are at least `least`, up to and with each unit; `found[2]` is set if one may be
/// or not. Answers the run of the unit within `begin..end`.
#[cube]
pub(super) fn weigh_run(
    logits: &Array<f32>,
    sums: &mut SharedMemory<f64>,
    found: &mut SharedMemory<u32>,
    start: usize,
    begin: usize,
    end: usize,
    least: f64,
    greatest: f64,
    inverse: f64,
) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    let of_unit = (end - begin).div_ceil(UNITS);
    let first = min(begin + unit * of_unit, end);
    let stop = min(first + of_unit, end);
    let mut sum = 0.0f64;
    let mut at = first;
    while at < stop {
        let one = weight((f64::cast_from(logits[start + at]) - greatest) * inverse);
        if one >= least {
            sum += one;
        }
        if least > 0.0f64 && (one - least).abs() < DOUBT * least {
            found[2] = 1u32;
        }
        at += 1;
    }
    sync_cube();
    sums[unit] = sum;
    scan(sums);
    (first, stop)
}

/// How far a logit is below the greatest, in bins. A greater logit never has a greater bin.
#[cube]
fn bin(most: f32, logit: f32) -> usize {
    min((most - logit) * FINE, (UNITS - 1) as f32) as usize
}

/// Sums up each run's weights, of those rows whose draw needs them, and counts their tokens by bins. The last bin, where
/// all the rest belongs, stays empty.
#[cube(launch_unchecked)]
pub(in super::super) fn weigh(
    logits: &Array<f32>,
    asks: &Array<u32>,
    parts: &mut Array<u32>,
    of_parts: &mut Array<f64>,
    bins: &mut Array<Atomic<u32>>,
    width: usize,
) {
    let unit = UNIT_POS as usize;
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let ask = row * OF_ASK;
    let (how, limited) = (asks[ask], asks[ask + 2] == 1u32);
    if how != GREEDY {
        let mut values = SharedMemory::<f32>::new(UNITS);
        let mut places = SharedMemory::<u32>::new(UNITS);
        let mut found = SharedMemory::<u32>::new(3usize);
        let (most, _place, finite) = summit(parts, &mut values, &mut places, &mut found, row, width);
        if finite {
            let (begin, end) = run(width, part);
            if how == WHOLE || !limited {
                let mut sums = SharedMemory::<f64>::new(UNITS);
                // The share of top-p is one of the weight of all.
                let mut least = 0.0f64;
                if how == WHOLE {
                    least = f64::cast_from(f32::reinterpret(asks[ask + 5]));
                }
                let inverse = 1.0f64 / f64::cast_from(f32::reinterpret(asks[ask + 3]));
                let greatest = f64::cast_from(most);
                weigh_run(
                    logits,
                    &mut sums,
                    &mut found,
                    row * width,
                    begin,
                    end,
                    least,
                    greatest,
                    inverse,
                );
                if unit == 0 {
                    of_parts[row * PARTS + part] = sums[UNITS - 1];
                    parts[(row * PARTS + part) * OF_PART + 3] = found[2];
                }
            }
            if how == NUCLEUS {
                let counts = SharedMemory::<Atomic<u32>>::new(UNITS);
                counts[unit].store(0u32);
                sync_cube();
                let mut at = begin + unit;
                while at < end {
                    let bin = bin(most, logits[row * width + at]);
                    if bin < UNITS - 1 {
                        counts[bin].fetch_add(1u32);
                    }
                    at += UNITS;
                }
                sync_cube();
                let count = counts[unit].load();
                if count > 0u32 {
                    bins[row * OF_BINS + unit].fetch_add(count);
                }
            }
        }
    }
}

/// Collects the likeliest tokens of those rows that are cut, all down to some bin: as many as a limit wants and the rest of
/// its bin, or as many as can be sorted. `likeliest` has keys and then ids, `[row][2][CANDIDATES]`, in no order. A row of
/// which too many are alike is left without any.
#[cube(launch_unchecked)]
pub(in super::super) fn collect(
    logits: &Array<f32>,
    asks: &Array<u32>,
    parts: &Array<u32>,
    bins: &mut Array<Atomic<u32>>,
    likeliest: &mut Array<u32>,
    width: usize,
) {
    let unit = UNIT_POS as usize;
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let ask = row * OF_ASK;
    let (wanted, limited) = (asks[ask + 1], asks[ask + 2] == 1u32);
    if asks[ask] == NUCLEUS {
        let mut values = SharedMemory::<f32>::new(UNITS);
        let mut counts = SharedMemory::<u32>::new(UNITS);
        // The bins that are taken, and where this cube's tokens go.
        let mut found = SharedMemory::<u32>::new(3usize);
        let (most, _place, finite) = summit(parts, &mut values, &mut counts, &mut found, row, width);
        if finite {
            if unit == 0 {
                found[0] = 0u32;
            }
            counts[unit] = bins[row * OF_BINS + unit].load();
            scan_counts(&mut counts);
            let upto = counts[unit];
            let mut before = 0u32;
            if unit > 0 {
                before = counts[unit - 1];
            }
            if unit < UNITS - 1 && upto > 0u32 && upto <= CANDIDATES as u32 {
                if limited {
                    if upto >= wanted && before < wanted {
                        found[0] = unit as u32 + 1u32;
                    }
                } else if unit == UNITS - 2 || counts[unit + 1] > CANDIDATES as u32 {
                    found[0] = unit as u32 + 1u32;
                }
            }
            sync_cube();
            let bins_taken = found[0] as usize;
            let (begin, end) = run(width, part);
            let mut mine = 0u32;
            let mut at = begin + unit;
            while at < end {
                if bin(most, logits[row * width + at]) < bins_taken {
                    mine += 1u32;
                }
                at += UNITS;
            }
            counts[unit] = mine;
            scan_counts(&mut counts);
            if unit == 0 && counts[UNITS - 1] > 0u32 {
                found[1] = bins[row * OF_BINS + UNITS].fetch_add(counts[UNITS - 1]);
            }
            sync_cube();
            if mine > 0u32 {
                let mut to = row * 2 * CANDIDATES + (found[1] + counts[unit] - mine) as usize;
                at = begin + unit;
                while at < end {
                    let logit = logits[row * width + at];
                    if bin(most, logit) < bins_taken {
                        likeliest[to] = key(logit);
                        likeliest[to + CANDIDATES] = at as u32;
                        to += 1;
                    }
                    at += UNITS;
                }
            }
        }
    }
}
