//! The likeliest tokens of a row: found, sorted, cut, and drawn from.

use cubecl::prelude::*;

use super::shared::{UNITS, scan, scan_counts, weight};
use super::{DOUBT, OF_ASK, OF_BINS, uniform};

/// Most tokens that are sorted: a draw that might need more is the sampler's.
pub(in super::super) const CANDIDATES: usize = 1024;
/// Candidates of a unit.
const OF_UNIT: usize = CANDIDATES / UNITS;
/// Bits of a digit of a key: the counts of all digits, of every unit, lie where later the candidates do.
const DIGIT: usize = 3;
const DIGITS: usize = 1 << DIGIT;
/// Rounds that go through 32 bits.
const ROUNDS: u32 = 11;
/// Units that count one digit together.
const LANES: usize = UNITS / DIGITS;

/// Draws from the likeliest tokens: those that [`super::collect`] has left, or, where it left none or too few, those that this
/// cube finds by itself. `sums` are those of the runs.
#[cube]
pub(super) fn nucleus(
    logits: &Array<f32>,
    asks: &Array<u32>,
    bins: &Array<u32>,
    likeliest: &Array<u32>,
    found: &mut SharedMemory<u32>,
    sums: &mut SharedMemory<f64>,
    counts: &mut SharedMemory<u32>,
    row: usize,
    width: usize,
    most: f32,
    inverse: f64,
) {
    let unit = UNIT_POS as usize;
    let (start, ask) = (row * width, row * OF_ASK);
    let (asked, limited) = (asks[ask + 1] as usize, asks[ask + 2] == 1u32);
    let collected = bins[row * OF_BINS + UNITS] as usize;
    // First the counts of digits, then keys and, behind them, ids.
    let mut words = SharedMemory::<u32>::new(comptime!(2 * CANDIDATES));
    let mut upto = SharedMemory::<f64>::new(CANDIDATES);
    let min_p = f64::cast_from(f32::reinterpret(asks[ask + 5]));
    let top_p = f64::cast_from(f32::reinterpret(asks[ask + 4]));
    let greatest = f64::cast_from(most);
    // Of all tokens, if there is no limit; else it is known once they are sorted.
    let mut total = sums[UNITS - 1];
    let mut wanted = asked;
    let mut kept_by_min_p = 0u32;
    let mut is_collected = collected > 0;
    let mut sorting = true;
    while sorting {
        sorting = false;
        let mut there = asked;
        sync_cube();
        if is_collected {
            there = collected;
            wanted = min(asked, collected);
            let mut at = unit;
            while at < collected {
                let from = row * 2 * CANDIDATES + at;
                words[at] = likeliest[from];
                words[at + CANDIDATES] = likeliest[from + CANDIDATES];
                at += UNITS;
            }
        } else {
            wanted = asked;
            let (least, equals) = threshold(logits, &mut words, start, width, wanted);
            gather(logits, &mut words, counts, start, width, wanted, least, equals);
        }
        sort(&mut words, there);

        let mut sum = 0.0f64;
        let mut kept = 0u32;
        #[unroll]
        for step in 0..OF_UNIT {
            let at = unit * OF_UNIT + step;
            if at < wanted {
                let one = weight((f64::cast_from(of_key(words[at])) - greatest) * inverse);
                sum += one;
                if one >= min_p {
                    kept += 1u32;
                }
                if min_p > 0.0f64 && (one - min_p).abs() < DOUBT * min_p {
                    found[2] = 1u32;
                }
            }
            upto[at] = sum;
        }
        sums[unit] = sum;
        counts[unit] = kept;
        scan(sums);
        scan_counts(counts);
        let mut before = 0.0f64;
        if unit > 0 {
            before = sums[unit - 1];
        }
        #[unroll]
        for step in 0..OF_UNIT {
            upto[unit * OF_UNIT + step] += before;
        }
        // They are sorted: those that weigh enough come first.
        kept_by_min_p = counts[UNITS - 1];
        sync_cube();
        if limited {
            total = upto[wanted - 1];
        } else if is_collected && upto[wanted - 1] < top_p * total {
            // As many as can be sorted may hold the share.
            is_collected = false;
            sorting = true;
        }
    }

    let mut cut = SharedMemory::<u32>::new(1usize);
    if unit == 0 {
        cut[0] = wanted as u32;
    }
    sync_cube();
    if top_p < 1.0f64 {
        let share = top_p * total;
        if unit == 0 && upto[wanted - 1] < share {
            // The nucleus has more tokens.
            found[2] = 1u32;
        }
        #[unroll]
        for step in 0..OF_UNIT {
            let at = unit * OF_UNIT + step;
            let mut less = 0.0f64;
            if at > 0 {
                less = upto[at - 1];
            }
            if at < wanted && upto[at] >= share && (at == 0 || less < share) {
                cut[0] = at as u32 + 1u32;
                if upto[at] - share < DOUBT * total || (at > 0 && share - less < DOUBT * total) {
                    found[2] = 1u32;
                }
            }
        }
    }
    sync_cube();

    let kept = min(cut[0], kept_by_min_p) as usize;
    let target = uniform(asks, ask) * upto[max(kept, 1usize) - 1];
    #[unroll]
    for step in 0..OF_UNIT {
        let at = unit * OF_UNIT + step;
        let mut less = 0.0f64;
        if at > 0 {
            less = upto[at - 1];
        }
        if at < kept && upto[at] > target && (at == 0 || less <= target) {
            if upto[at] - target >= DOUBT * total && (at == 0 || target - less >= DOUBT * total) {
                found[0] = words[CANDIDATES + at];
                found[1] = 1u32;
            }
        }
    }
    sync_cube();
}

/// Greater for what is greater, by `f32::total_cmp`.
#[cube]
pub(super) fn key(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    select((bits >> 31u32) == 1u32, bits ^ 0xFFFF_FFFFu32, bits ^ 0x8000_0000u32)
}

#[cube]
fn of_key(key: u32) -> f32 {
    f32::reinterpret(select(
        (key >> 31u32) == 1u32,
        key ^ 0x8000_0000u32,
        key ^ 0xFFFF_FFFFu32,
    ))
}

/// The key of the `wanted`th of the greatest logits, and how many of those with that very key are wanted. Digit by digit
/// from the highest on, each time among those that begin alike.
#[cube]
fn threshold(
    logits: &Array<f32>,
    words: &mut SharedMemory<u32>,
    start: usize,
    width: usize,
    wanted: usize,
) -> (u32, u32) {
    let unit = UNIT_POS as usize;
    let mut prefix = 0u32;
    let mut mask = 0u32;
    let mut left = wanted as u32;
    let mut round = 0u32;
    while round < ROUNDS {
        let shift = 30u32 - 3u32 * round;
        #[unroll]
        for digit in 0..DIGITS {
            words[digit * UNITS + unit] = 0u32;
        }
        let mut at = unit;
        while at < width {
            let key = key(logits[start + at]);
            if (key & mask) == prefix {
                let digit = ((key >> shift) & 7u32) as usize;
                words[digit * UNITS + unit] += 1u32;
            }
            at += UNITS;
        }
        sync_cube();
        let (digit, lane) = (unit / LANES, unit % LANES);
        // Only this unit reads the places of its residue.
        let mut count = words[digit * UNITS + lane];
        #[unroll]
        for other in 1..DIGITS {
            count += words[digit * UNITS + other * LANES + lane];
        }
        words[digit * UNITS + lane] = count;
        sync_cube();
        if unit < DIGITS {
            let mut count = words[unit * UNITS];
            for lane in 1..LANES {
                count += words[unit * UNITS + lane];
            }
            words[unit * UNITS] = count;
        }
        sync_cube();
        let mut chosen = 0u32;
        let mut above = 0u32;
        let mut searching = true;
        #[unroll]
        for down in 0..DIGITS {
            let digit = comptime!(DIGITS - 1 - down);
            let count = words[digit * UNITS];
            if searching {
                if above + count >= left {
                    chosen = digit as u32;
                    searching = false;
                } else {
                    above += count;
                }
            }
        }
        left -= above;
        prefix |= chosen << shift;
        mask |= 7u32 << shift;
        round += 1u32;
        sync_cube();
    }
    (prefix, left)
}

/// Keys and ids of all above `least`, and of the first `equals` that are equal to it. Each unit has a run of tokens.
#[cube]
fn gather(
    logits: &Array<f32>,
    words: &mut SharedMemory<u32>,
    counts: &mut SharedMemory<u32>,
    start: usize,
    width: usize,
    wanted: usize,
    least: u32,
    equals: u32,
) {
    let unit = UNIT_POS as usize;
    let of_unit = width.div_ceil(UNITS);
    let first = min(unit * of_unit, width);
    let end = min(first + of_unit, width);
    let mut above = 0u32;
    let mut same = 0u32;
    let mut at = first;
    while at < end {
        let key = key(logits[start + at]);
        if key > least {
            above += 1u32;
        }
        if key == least {
            same += 1u32;
        }
        at += 1;
    }
    sync_cube();
    counts[unit] = above;
    scan_counts(counts);
    let mut slot = counts[unit] - above;
    sync_cube();
    counts[unit] = same;
    scan_counts(counts);
    let mut rank = counts[unit] - same;
    let begin = wanted as u32 - equals;
    at = first;
    while at < end {
        let key = key(logits[start + at]);
        if key > least {
            words[slot as usize] = key;
            words[slot as usize + CANDIDATES] = at as u32;
            slot += 1u32;
        }
        if key == least {
            if rank < equals {
                words[(begin + rank) as usize] = key;
                words[(begin + rank) as usize + CANDIDATES] = at as u32;
            }
            rank += 1u32;
        }
        at += 1;
    }
    sync_cube();
}

/// Sorts the candidates that are there: the greatest key first, of equal ones the lower id. Batcher's bitonic network.
#[cube]
fn sort(words: &mut SharedMemory<u32>, there: usize) {
    let unit = UNIT_POS as usize;
    let mut size = 1usize;
    while size < there {
        size *= 2;
    }
    let mut at = unit;
    while at < size {
        if at >= there {
            words[at] = 0u32;
            words[at + CANDIDATES] = 0xFFFF_FFFFu32;
        }
        at += UNITS;
    }
    let mut span = 2usize;
    while span <= size {
        let mut step = span / 2;
        while step > 0 {
            sync_cube();
            let mut pair = unit;
            while pair < size / 2 {
                let low = pair / step * 2 * step + pair % step;
                let high = low + step;
                let (low_key, high_key) = (words[low], words[high]);
                let (low_id, high_id) = (words[low + CANDIDATES], words[high + CANDIDATES]);
                let swaps = high_key > low_key || (high_key == low_key && high_id < low_id);
                let turned = (low & span) != 0;
                if (swaps && !turned) || (!swaps && turned) {
                    words[low] = high_key;
                    words[high] = low_key;
                    words[low + CANDIDATES] = high_id;
                    words[high + CANDIDATES] = low_id;
                }
                pair += UNITS;
            }
            step /= 2;
        }
        span *= 2;
    }
    sync_cube();
}
