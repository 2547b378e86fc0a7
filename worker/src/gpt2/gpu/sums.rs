//! Sums over a cube's units in one fixed order.

use cubecl::prelude::*;

/// Units of every cube that sums.
pub(super) const UNITS: usize = 128;
/// Sums that the first round leaves to the second.
const PARTS: usize = 16;

/// The sum of every unit's value, the same for all units. `shared` has [`UNITS`] places.
#[cube]
pub(super) fn total(shared: &mut SharedMemory<f32>, value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    if unit < PARTS {
        // Only this unit reads the places of its residue, so it may write to the first of them.
        let mut sum = shared[unit];
        #[unroll]
        for other in 1..comptime!(UNITS / PARTS) {
            sum += shared[unit + other * PARTS];
        }
        shared[unit] = sum;
    }
    sync_cube();
    let mut sum = shared[0];
    #[unroll]
    for part in 1..PARTS {
        sum += shared[part];
    }
    sum
}

/// The greatest of every unit's values, the same for all units.
#[cube]
pub(super) fn greatest(shared: &mut SharedMemory<f32>, value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    if unit < PARTS {
        let mut most = shared[unit];
        #[unroll]
        for other in 1..comptime!(UNITS / PARTS) {
            most = max(most, shared[unit + other * PARTS]);
        }
        shared[unit] = most;
    }
    sync_cube();
    let mut most = shared[0];
    #[unroll]
    for part in 1..PARTS {
        most = max(most, shared[part]);
    }
    most
}
