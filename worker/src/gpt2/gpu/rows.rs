//! Some rows of many.

use cubecl::prelude::*;

/// `y [_, width]`: the rows of `x` that `which` names. A unit an element.
#[cube(launch_unchecked)]
pub(super) fn gather(x: &Array<f32>, which: &Array<u32>, y: &mut Array<f32>, width: usize, elements: usize) {
    let at = ABSOLUTE_POS;
    if at < elements {
        y[at] = x[which[at / width] as usize * width + at % width];
    }
}
