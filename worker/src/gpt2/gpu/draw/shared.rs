//! What the units of a cube that draws find out together, in one fixed order, and the weight of a logit.

// What `#[cube]` reads is not what runs here: its functions take their arguments by value.
#![allow(clippy::needless_pass_by_value, clippy::float_cmp)]

use cubecl::prelude::*;

/// Units of a cube that draws. A power of two.
pub(in super::super) const UNITS: usize = 256;
const ROUNDS: usize = UNITS.ilog2() as usize;

/// `exp(distance)` of what is not above zero, exactly 1 at zero, and 0 where it would be below 1e-34: no sum notices.
/// Reduced as `2^n exp(rest)`, the series of a rest of at most `ln 2 / 2` to its end in f64.
#[cube]
pub(super) fn weight(distance: f64) -> f64 {
    let mut weight = 0.0f64;
    if distance > -80.0f64 {
        // Cut off towards zero, which rounds what is not positive to the nearest.
        let power = i32::cast_from(distance * core::f64::consts::LOG2_E - 0.5f64);
        let n = f64::cast_from(power);
        // ln 2 in two parts, of which the first has so few digits that its product is exact.
        let rest = distance - n * 6.931_471_803_691_238e-1f64 - n * 1.908_214_929_270_587_7e-10f64;
        let mut series = 1.605_904_383_682_161_3e-10f64;
        series = fma(series, rest, 2.087_675_698_786_81e-9f64);
        series = fma(series, rest, 2.505_210_838_544_172e-8f64);
        series = fma(series, rest, 2.755_731_922_398_589_3e-7f64);
        series = fma(series, rest, 2.755_731_922_398_589e-6f64);
        series = fma(series, rest, 2.480_158_730_158_73e-5f64);
        series = fma(series, rest, 1.984_126_984_126_984e-4f64);
        series = fma(series, rest, 1.388_888_888_888_889e-3f64);
        series = fma(series, rest, 8.333_333_333_333_333e-3f64);
        series = fma(series, rest, 4.166_666_666_666_666_4e-2f64);
        series = fma(series, rest, 1.666_666_666_666_666_6e-1f64);
        series = fma(series, rest, 0.5f64);
        series = fma(series, rest, 1.0f64);
        series = fma(series, rest, 1.0f64);
        let scale = f32::reinterpret(u32::cast_from(power + 127i32) << 23u32);
        weight = series * f64::cast_from(scale);
    }
    weight
}

/// Makes `sums`, one a unit, the sums up to and with each unit.
#[cube]
pub(super) fn scan(sums: &mut SharedMemory<f64>) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for round in 0..ROUNDS {
        let step = comptime!(1usize << round);
        let mut more = 0.0f64;
        sync_cube();
        if unit >= step {
            more = sums[unit - step];
        }
        sync_cube();
        sums[unit] += more;
    }
    sync_cube();
}

/// [`scan`] of numbers.
#[cube]
pub(super) fn scan_counts(counts: &mut SharedMemory<u32>) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for round in 0..ROUNDS {
        let step = comptime!(1usize << round);
        let mut more = 0u32;
        sync_cube();
        if unit >= step {
            more = counts[unit - step];
        }
        sync_cube();
        counts[unit] += more;
    }
    sync_cube();
}

/// Leaves the greatest of every unit's values in `values[0]`, and in `places[0]` its place: the lowest where several are equal.
#[cube]
pub(super) fn greatest(values: &mut SharedMemory<f32>, places: &mut SharedMemory<u32>) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for round in 0..ROUNDS {
        let half = comptime!(UNITS >> (round + 1));
        sync_cube();
        if unit < half {
            let (value, place) = (values[unit + half], places[unit + half]);
            if value > values[unit] || (value == values[unit] && place < places[unit]) {
                values[unit] = value;
                places[unit] = place;
            }
        }
    }
    sync_cube();
}
