//! The product of many rows: the planes of a cube share its columns and rows out among them, each goes through all inputs, and the
//! cube brings `x` to where all its planes multiply it from, some inputs ahead. A plane takes the inputs in the order in which the
//! planes of `few.rs` do, one of them after the other, and adds up as that cube does.

use cubecl::prelude::*;

use super::super::layout::{SIDE, WORDS};
use super::super::linear::{Epilogue, finish};
use super::{PLANE, PLANES, ROWS, RUNS, Slot, Turn, multiply, read_weights, slot, starts, zeros};

/// What a cube computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Shape {
    /// Planes side by side over the columns.
    across: usize,
    /// Fragments of a plane, side by side.
    fragments: usize,
    /// Of a plane, times [`ROWS`] rows.
    eights: usize,
    /// Fragments of the inputs that are brought at once.
    stage: usize,
    /// Of `eights`, so many are multiplied by turns.
    together: usize,
}

impl Shape {
    /// Two cubes of it are to share a processor, for which it has to do with few registers (128 of a unit, by CUDA 13's compiler); of the
    /// others one has a processor for itself, and reads further ahead.
    pub(super) const LARGE: Self = Self::new(4, 2, 4, 2, 1);
    pub(super) const MEDIUM: Self = Self::new(4, 2, 4, 4, 4);
    pub(super) const SMALL: Self = Self::new(4, 1, 2, 8, 2);

    const fn new(across: usize, fragments: usize, eights: usize, stage: usize, together: usize) -> Self {
        assert!(PLANES.is_multiple_of(across));
        let all = Self {
            across,
            fragments,
            eights,
            stage,
            together,
        };
        assert!(PLANES.is_multiple_of(all.eights_of_cube()) && (stage * all.eights_of_cube()).is_multiple_of(PLANES));
        all
    }

    pub(super) const fn cubes(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows()) * outputs.div_ceil(self.columns())
    }

    /// Rows of a cube.
    pub(in super::super) const fn rows(self) -> usize {
        self.eights_of_cube() * ROWS
    }

    /// Columns of a cube.
    pub(in super::super) const fn columns(self) -> usize {
        self.across * self.fragments * SIDE
    }

    const fn eights_of_cube(self) -> usize {
        PLANES / self.across * self.eights
    }

    /// Fragments of the inputs whose rows the planes bring side by side.
    const fn abreast(self) -> usize {
        PLANES / self.eights_of_cube()
    }

    /// Of a stage's fragments of the inputs, with some rows.
    const fn turn(self, step: usize, which: usize) -> Turn {
        Turn {
            fragments: self.fragments,
            first_word: step * self.fragments,
            eights: self.together,
            first_eight: which * self.together,
            all_eights: self.eights,
        }
    }

    /// Slots that a unit brings.
    const fn brings(self) -> usize {
        self.stage / self.abreast()
    }

    /// Slots of a stage.
    const fn slots(self) -> usize {
        self.stage * self.eights_of_cube() * PLANE
    }
}

/// As [`super::few::project`], of rows as they are.
#[cube(launch_unchecked)]
pub(in super::super) fn project(
    x: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    bias: &Array<f32>,
    residual: &Array<f32>,
    y: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] shape: Shape,
    #[comptime] epilogue: Epilogue,
) {
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
    let (fragments, eights, stage) = comptime!((shape.fragments, shape.eights, shape.stage));
    let deep = inputs / SIDE;
    let first_fragment = (CUBE_POS_X as usize * comptime!(shape.across) + plane % comptime!(shape.across)) * fragments;
    let first_eight = plane / comptime!(shape.across) * eights;
    let first_row = CUBE_POS_Y as usize * comptime!(shape.rows());

    let starts = starts(first_fragment, outputs, deep, lane, fragments);
    // What this plane brings, for all of them. Beyond the last row the last one is computed again and thrown away.
    let brought = first_row + plane % comptime!(shape.eights_of_cube()) * ROWS + lane / 4;
    let row_start = min(brought, rows - 1) * (inputs / 2) + lane % 4;

    let mut sums = zeros(comptime!(shape.fragments * shape.eights));
    let mut totals = zeros(comptime!(shape.fragments * shape.eights));
    let mut slots = SharedMemory::<Slot>::new(comptime!(2 * shape.slots()));
    let mut numbers = Array::<Vector<f32, Const<2>>>::new(comptime!(2 * shape.brings()));
    let mut words = Array::<Vector<u32, Const<WORDS>>>::new(comptime!(shape.stage * shape.fragments));
    let mut next_words = Array::<Vector<u32, Const<WORDS>>>::new(comptime!(shape.stage * shape.fragments));
    let mut places = Array::<usize>::new(stage);
    let mut next_places = Array::<usize>::new(stage);

    next_places[0] = 0usize;
    follow(&mut next_places, deep, stage);
    read(
        x,
        weight,
        row_start,
        &starts,
        &next_places,
        &mut numbers,
        &mut next_words,
        plane,
        deep,
        shape,
    );
    bring(&mut slots, &numbers, 0usize, shape);
    sync_cube();
    let mut from = 0usize;
    let mut done = 0usize;
    while done < deep {
        #[unroll]
        for one in 0..comptime!(shape.stage * shape.fragments) {
            words[one] = next_words[one];
        }
        #[unroll]
        for one in 0..stage {
            places[one] = next_places[one];
        }
        // The next stage is on its way while this one is multiplied.
        next_places[0] = following(places[comptime!(stage - 1)], deep);
        follow(&mut next_places, deep, stage);
        read(
            x,
            weight,
            row_start,
            &starts,
            &next_places,
            &mut numbers,
            &mut next_words,
            plane,
            deep,
            shape,
        );
        sync_plane();
        #[unroll]
        for step in 0..stage {
            if done + step < deep {
                let first = from + (comptime!(step * shape.eights_of_cube()) + first_eight) * PLANE + lane;
                #[unroll]
                for which in 0..comptime!(shape.eights / shape.together) {
                    let mut of_rows = Array::<Slot>::new(comptime!(shape.together));
                    #[unroll]
                    for one in 0..comptime!(shape.together) {
                        of_rows[one] = slots[first + comptime!(which * shape.together + one) * PLANE];
                    }
                    multiply(&words, &of_rows, &mut sums, comptime!(shape.turn(step, which)));
                }
                if places[step] + RUNS >= deep {
                    #[unroll]
                    for one in 0..comptime!(shape.fragments * shape.eights) {
                        let sum = sums.index_mut(one);
                        let total = totals.index_mut(one);
                        #[unroll]
                        for pair in 0..2usize {
                            total[pair] = total[pair] + sum[pair];
                            sum[pair] = Vector::new(0.0f32);
                        }
                    }
                }
            }
        }
        from = comptime!(shape.slots()) - from;
        bring(&mut slots, &numbers, from, shape);
        sync_cube();
        done += stage;
    }

    #[unroll]
    for fragment in 0..fragments {
        #[unroll]
        for eight in 0..eights {
            let total = totals.index(comptime!(fragment * shape.eights + eight));
            #[unroll]
            for number in 0..4usize {
                let output = (first_fragment + fragment) * SIDE + lane / 4 + comptime!(number / 2 * 8);
                let to = first_row + (first_eight + eight) * ROWS + lane % 4 * 2 + comptime!(number % 2);
                if to < rows && output < outputs {
                    let at = to * outputs + output;
                    let pair = total[comptime!(number / 2)];
                    y[at] = finish(pair[comptime!(number % 2)], bias, residual, output, at, epilogue);
                }
            }
        }
    }
}

/// The fragment of the inputs after this one: of the same run, or the first of the next.
#[cube]
fn following(place: usize, deep: usize) -> usize {
    select(place + RUNS < deep, place + RUNS, place % RUNS + 1)
}

/// A stage's fragments of the inputs, after its first.
#[cube]
fn follow(places: &mut Array<usize>, deep: usize, #[comptime] stage: usize) {
    #[unroll]
    for step in 1..stage {
        places[step] = following(places[comptime!(step - 1)], deep);
    }
}

/// Reads what a unit brings of `x` for a stage, and the weights that its plane multiplies.
#[cube]
fn read(
    x: &Array<Vector<f32, Const<2>>>,
    weight: &Array<Vector<u32, Const<WORDS>>>,
    row_start: usize,
    starts: &Array<usize>,
    places: &Array<usize>,
    numbers: &mut Array<Vector<f32, Const<2>>>,
    words: &mut Array<Vector<u32, Const<WORDS>>>,
    plane: usize,
    deep: usize,
    #[comptime] shape: Shape,
) {
    // After the last stage something is read that exists.
    #[unroll]
    for one in 0..comptime!(shape.brings()) {
        let mut own = places[comptime!(one * shape.abreast())];
        #[unroll]
        for other in 1..comptime!(shape.abreast()) {
            let mine = plane / comptime!(shape.eights_of_cube()) == other;
            own = select(mine, places[comptime!(one * shape.abreast() + other)], own);
        }
        let start = row_start + min(own, deep - 1) * comptime!(SIDE / 2);
        numbers[comptime!(one * 2)] = x[start];
        numbers[comptime!(one * 2 + 1)] = x[start + 4];
    }
    #[unroll]
    for step in 0..comptime!(shape.stage) {
        let there = min(places[step], deep - 1);
        read_weights(weight, starts, words, there, step, comptime!(shape.fragments));
    }
}

/// Puts what a unit read of `x` where all planes multiply it from: `[fragment of the inputs][rows][unit]`.
#[cube]
fn bring(
    slots: &mut SharedMemory<Slot>,
    numbers: &Array<Vector<f32, Const<2>>>,
    from: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for one in 0..comptime!(shape.brings()) {
        let to = from + UNIT_POS as usize + comptime!(one * PLANES * PLANE);
        slots[to] = slot(numbers[comptime!(one * 2)], numbers[comptime!(one * 2 + 1)]);
    }
}
