//! How much each token of a row weighs in a draw: `exp((logit - greatest) / temperature)`, in f64.
//!
//! A whole vocabulary is weighed in vectors, a chunk at a time, and no list of it is made. The exponential is made of products and
//! sums that are rounded one by one, and weights are added in the order of ids: a weight, a sum and what is picked by them
//! are bit-equal on every machine, whatever its vectors.

// What runs under `Arch::dispatch` must be inlined into it to be compiled for the chosen vector instructions.
#![allow(clippy::inline_always)]

use pulp::{Arch, Simd, WithSimd};

/// Logits that are weighed at once: their weights stay in the nearest cache.
const CHUNK: usize = 512;

/// The greatest of some logits, or `None` if there are none or some is not a finite number.
pub(super) fn greatest(logits: &[f32]) -> Option<f32> {
    Arch::new().dispatch(Greatest(logits))
}

/// The weights of some logits.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    arch: Arch,
    logits: &'a [f32],
    greatest: f32,
    temperature: f64,
    least: f64,
}

impl<'a> Weights<'a> {
    /// No logit is greater than `greatest`, which weighs 1; all are finite, and `temperature` is above 0.
    pub(super) fn new(logits: &'a [f32], greatest: f32, temperature: f64) -> Self {
        Self {
            arch: Arch::new(),
            logits,
            greatest,
            temperature,
            least: 0.0,
        }
    }

    /// The same of other logits.
    pub(super) const fn with(self, logits: &[f32]) -> Weights<'_> {
        Weights { logits, ..self }
    }

    /// What weighs less than `least` weighs nothing.
    pub(super) const fn at_least(self, least: f64) -> Self {
        Self { least, ..self }
    }

    /// What one logit weighs.
    pub(super) fn of(&self, logit: f32) -> f64 {
        let mut weight = [0.0];
        self.weigh(&[logit], &mut weight);
        weight[0]
    }

    /// All weights together.
    pub(super) fn sum(&self) -> f64 {
        let mut sum = 0.0;
        self.for_each_chunk(&mut sum, |_| ());
        sum
    }

    /// The first token at which the running sum passes that share of the whole, `uniform` from `[0, 1)`. `None` if by
    /// rounding none does.
    pub(super) fn pick(&self, uniform: f64) -> Option<u32> {
        let mut sum = 0.0;
        // The running sum before each chunk.
        let mut before = Vec::with_capacity(self.logits.len() / CHUNK + 2);
        before.push(sum);
        self.for_each_chunk(&mut sum, |sum| before.push(sum));
        let target = uniform * sum;
        let chunk = before.iter().skip(1).position(|after| *after > target)?;
        let (first, mut sum) = (chunk * CHUNK, before[chunk]);
        let rest = &self.logits[first..self.logits.len().min(first + CHUNK)];
        let mut weights = [0.0; CHUNK];
        self.weigh(rest, &mut weights);
        let within = weights[..rest.len()].iter().position(|weight| {
            sum += weight;
            sum > target
        });
        within.map(|place| (first + place) as u32)
    }

    /// The last token that weighs anything.
    pub(super) fn last(&self) -> Option<u32> {
        let weighs = |logit: &f32| self.of(*logit) > 0.0;
        self.logits.iter().rposition(weighs).map(|place| place as u32)
    }

    /// Adds up all weights, one after the other, and tells the sum after each chunk.
    fn for_each_chunk(&self, sum: &mut f64, mut tell: impl FnMut(f64)) {
        let mut weights = [0.0; CHUNK];
        for chunk in self.logits.chunks(CHUNK) {
            self.weigh(chunk, &mut weights);
            for weight in &weights[..chunk.len()] {
                *sum += weight;
            }
            tell(*sum);
        }
    }

    fn weigh(&self, logits: &[f32], weights: &mut [f64]) {
        self.arch.dispatch(Weigh {
            of: self,
            logits,
            weights,
        });
    }
}

struct Weigh<'a> {
    of: &'a Weights<'a>,
    logits: &'a [f32],
    weights: &'a mut [f64],
}

impl WithSimd for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Weights {
            greatest,
            temperature,
            least,
            ..
        } = *self.of;
        let greatest = f64::from(greatest);
        for (weight, logit) in self.weights.iter_mut().zip(self.logits) {
            let whole = exp((f64::from(*logit) - greatest) / temperature);
            *weight = if whole >= least { whole } else { 0.0 };
        }
    }
}

struct Greatest<'a>(&'a [f32]);

impl WithSimd for Greatest<'_> {
    type Output = Option<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Option<f32> {
        const LANES: usize = 32;
        /// Bits of a number without its sign: what is not finite has this exponent.
        const MAGNITUDE: u32 = 0x7fff_ffff;
        const INFINITE: u32 = 0x7f80_0000;
        let mut greatest = [f32::NEG_INFINITY; LANES];
        let mut largest = [0_u32; LANES];
        for chunk in self.0.chunks(LANES) {
            for ((greatest, largest), logit) in greatest.iter_mut().zip(&mut largest).zip(chunk) {
                *greatest = if *logit > *greatest { *logit } else { *greatest };
                *largest = (*largest).max(logit.to_bits() & MAGNITUDE);
            }
        }
        let finite = largest.iter().all(|bits| *bits < INFINITE);
        let greatest = greatest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        (finite && !self.0.is_empty()).then_some(greatest)
    }
}

/// eˣ for x ≤ 0, within 2 ulp; 0 below -700, where a weight is nothing beside 1.
///
/// x = n ln 2 + r with |r| ≤ ½ ln 2 (in two parts: Cody and Waite, "Software Manual for the Elementary Functions", 1980),
/// Taylor's polynomial of r, and n added to the exponent.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // 1.5 · 2⁵²: a sum with it is rounded to an integer, which then stands in its low bits.
    const INTEGER: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let shifted = x * std::f64::consts::LOG2_E + INTEGER;
    let n = shifted - INTEGER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = FACTORIALS[0];
    for one in &FACTORIALS[1..] {
        sum = sum * r + one;
    }
    let power = f64::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < -700.0 { 0.0 } else { power }
}

/// 1/13! to 1/0!, each the quotient of two exact numbers.
const FACTORIALS: [f64; 14] = {
    let mut inverses = [1.0; 14];
    let (mut place, mut factorial) = (13, 1.0);
    while place > 0 {
        factorial *= (14 - place) as f64;
        place -= 1;
        inverses[place] = 1.0 / factorial;
    }
    inverses
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As they stand: one after the other, by the library's exponential.
    fn plain(logits: &[f32], temperature: f64) -> Vec<f64> {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| ((f64::from(*logit) - f64::from(greatest)) / temperature).exp();
        logits.iter().map(weight).collect()
    }

    proptest! {
        #[test]
        fn weights_are_exponentials_within_two_units_of_the_last_place(x in -700.0..=0.0_f64) {
            let (ours, wanted) = (exp(x), x.exp());
            let apart = ours.to_bits().abs_diff(wanted.to_bits());
            prop_assert!(apart <= 2, "exp({}): {} is {} units from {}", x, ours, apart, wanted);
        }

        #[test]
        fn what_is_picked_and_the_sum_are_those_of_one_pass_by_scalars(
            logits in prop::collection::vec(-20.0..20.0_f32, 1..2000), temperature in 0.05..3.0_f64, uniform in 0.0..1.0_f64,
            least in prop::option::of(0.0..1.0_f64),
        ) {
            let most = greatest(&logits).unwrap();
            let weights = Weights::new(&logits, most, temperature).at_least(least.unwrap_or(0.0));
            let by_scalars = Weights { arch: Arch::Scalar, ..weights };
            let each: Vec<f64> = logits.iter().map(|logit| by_scalars.of(*logit)).collect();
            let total = each.iter().fold(0.0, |sum, weight| sum + weight);
            prop_assert_eq!(weights.sum().to_bits(), total.to_bits());
            let mut sum = 0.0;
            let first = each.iter().position(|weight| { sum += weight; sum > uniform * total });
            prop_assert_eq!(weights.pick(uniform), first.map(|place| place as u32));
            prop_assert_eq!(weights.last(), each.iter().rposition(|weight| *weight > 0.0).map(|place| place as u32));
        }

        #[test]
        fn tokens_are_those_of_a_list_of_the_librarys_weights(
            logits in prop::collection::vec(-9.0..9.0_f32, 1..2000), temperature in 0.05..3.0_f64, uniform in 0.0..1.0_f64,
        ) {
            let list = plain(&logits, temperature);
            let target = uniform * list.iter().sum::<f64>();
            let mut sum = 0.0;
            let first = list.iter().position(|weight| { sum += weight; sum > target });
            let weights = Weights::new(&logits, greatest(&logits).unwrap(), temperature);
            prop_assert_eq!(weights.pick(uniform), first.map(|place| place as u32));
        }

        #[test]
        fn the_greatest_is_found_and_what_is_no_number_is_refused(
            mut logits in prop::collection::vec(-9.0..9.0_f32, 1..200), place in any::<prop::sample::Index>(),
            bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        ) {
            prop_assert_eq!(greatest(&logits), logits.iter().copied().reduce(f32::max));
            *place.get_mut(&mut logits) = bad;
            prop_assert_eq!(greatest(&logits), None);
        }
    }

    #[test]
    fn the_greatest_weighs_one_and_what_is_far_below_it_nothing() {
        let logits = [0.0, 5.0, -800.0];
        let weights = Weights::new(&logits, 5.0, 1.0);
        let bits = [weights.of(5.0), weights.of(-800.0)].map(f64::to_bits);
        assert_eq!(bits, [1.0, 0.0].map(f64::to_bits));
        assert_eq!(weights.last(), Some(1));
        assert_eq!(greatest(&[]), None);
    }
}
