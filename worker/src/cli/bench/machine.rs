//! What the machine itself can do, so that a figure can be held against it: bytes read from memory a second, and multiplications
//! and additions a second, of all cores together.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into the dispatch is compiled for the vector instructions found"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use serde::Serialize;

/// Larger than the caches of any processor.
const READ_BYTES: usize = 512 << 20;
/// Vectors that a core multiplies side by side: more than its units keep busy with, few enough for its registers.
const CHAINS: usize = 12;
const MULTIPLICATIONS: usize = 2_000_000;
/// The best of so many counts: what disturbs makes it only slower.
const TRIES: usize = 5;

/// The bounds of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) read_bytes_per_second: f64,
    /// In f32, a fused multiplication and addition counted as two.
    pub(super) operations_per_second: f64,
}

impl Machine {
    /// Measures for some seconds at most.
    pub(super) fn measure() -> Self {
        Self {
            read_bytes_per_second: read(),
            operations_per_second: multiply(),
        }
    }
}

fn read() -> f64 {
    let memory = vec![1_u64; READ_BYTES / size_of::<u64>()];
    let part = memory.len().div_ceil(rayon::current_num_threads());
    let took = best(|| {
        let sum: u64 = memory
            .par_chunks(part)
            .map(|part| Arch::new().dispatch(Sum(part)))
            .sum();
        black_box(sum);
    });
    READ_BYTES as f64 / took.as_secs_f64()
}

fn multiply() -> f64 {
    let threads = rayon::current_num_threads();
    let mut lanes = 0;
    let took = best(|| {
        let of_threads = rayon::broadcast(|_| Arch::new().dispatch(Multiply));
        lanes = of_threads[0];
    });
    (2 * lanes * CHAINS * MULTIPLICATIONS * threads) as f64 / took.as_secs_f64()
}

fn best(mut work: impl FnMut()) -> Duration {
    let times = (0..TRIES).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed()
    });
    times.min().unwrap_or_default()
}

/// Reads all of it.
struct Sum<'a>(&'a [u64]);

impl WithSimd for Sum<'_> {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        let (vectors, rest) = S::as_simd_u64s(self.0);
        let (groups, single) = vectors.as_chunks::<4>();
        let mut sums = [simd.splat_u64s(0); 4];
        for group in groups {
            for (sum, vector) in sums.iter_mut().zip(group) {
                *sum = simd.add_u64s(*sum, *vector);
            }
        }
        for vector in single {
            sums[0] = simd.add_u64s(sums[0], *vector);
        }
        black_box(sums);
        rest.iter().sum()
    }
}

/// Multiplies in registers alone; answers the lanes of a vector.
struct Multiply;

impl WithSimd for Multiply {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        // Neither grows nor shrinks to where numbers become slow.
        let (factor, addend) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(1.0)));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..MULTIPLICATIONS {
            for chain in &mut chains {
                *chain = simd.mul_add_e_f32s(*chain, factor, addend);
            }
        }
        black_box(chains);
        S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_reads_and_multiplies_at_all() {
        let machine = Machine::measure();
        assert!(machine.read_bytes_per_second > 1e8, "{machine:?}");
        assert!(machine.operations_per_second > 1e8, "{machine:?}");
    }
}
