//! From logits to a token, for one sequence.
//!
//! Each sequence has its own generator and draws one uniform a token, so that its stream depends on its seed, its choice
//! and the token's place alone. The order is temperature, then top-k, then top-p (nucleus sampling: Holtzman et al., "The
//! Curious Case of Neural Text Degeneration", 2020); sums are taken in f64 in one fixed order.

use claimcheck_common::domain::GenerationParams;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// The greatest logit, of the lowest id where several are equal.
    Greedy,
    Random {
        temperature: f64,
        top_k: Option<usize>,
        top_p: f64,
    },
}

pub(super) struct Sampler {
    method: Method,
    generator: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(params: &GenerationParams, choice: u32) -> Self {
        let method = if params.temperature == 0.0 || params.top_p == 0.0 {
            Method::Greedy
        } else {
            Method::Random {
                temperature: f64::from(params.temperature),
                top_k: params.top_k.map(|k| k as usize),
                top_p: f64::from(params.top_p),
            }
        };
        let mut generator = ChaCha8Rng::seed_from_u64(params.seed.cast_unsigned());
        generator.set_stream(u64::from(choice));
        Self { method, generator }
    }

    /// The next token, or `None` if some logit is not a finite number.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let (likeliest, greatest) = greatest(logits)?;
        let Method::Random {
            temperature,
            top_k,
            top_p,
        } = self.method
        else {
            return Some(likeliest);
        };
        let uniform: f64 = self.generator.random();
        let weight = |logit: f32| ((f64::from(logit) - f64::from(greatest)) / temperature).exp();
        let whole = top_k.is_none_or(|k| k >= logits.len()) && top_p >= 1.0;
        if whole {
            let weights = || logits.iter().map(|logit| weight(*logit)).zip(0..);
            let total = weights().map(|(weight, _)| weight).sum::<f64>();
            return Some(pick(weights(), uniform * total).unwrap_or(likeliest));
        }
        let kept: Vec<_> = nucleus(logits, top_k, top_p, weight);
        let total = kept.iter().map(|(weight, _)| weight).sum::<f64>();
        Some(pick(kept.into_iter(), uniform * total).unwrap_or(likeliest))
    }
}

fn greatest(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    for (id, logit) in (0..).zip(logits) {
        if !logit.is_finite() {
            return None;
        }
        if best.is_none_or(|(_, greatest)| *logit > greatest) {
            best = Some((id, *logit));
        }
    }
    best
}

/// The first token at which the running sum passes `target`.
fn pick(weights: impl Iterator<Item = (f64, u32)>, target: f64) -> Option<u32> {
    let mut sum = 0.0;
    let mut last = None;
    for (weight, id) in weights {
        sum += weight;
        if weight > 0.0 {
            last = Some(id);
        }
        if sum > target {
            return Some(id);
        }
    }
    last
}

/// The `top_k` likeliest tokens, cut where they hold `top_p` of their weight, likeliest first.
fn nucleus(logits: &[f32], top_k: Option<usize>, top_p: f64, weight: impl Fn(f32) -> f64) -> Vec<(f64, u32)> {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut tokens: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    let k = top_k.unwrap_or(tokens.len()).clamp(1, tokens.len());
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k - 1, order);
        tokens.truncate(k);
    }
    // Summed by id, so that the sum does not depend on how the selection left the order.
    tokens.sort_unstable_by_key(|(_, id)| *id);
    let wanted = top_p * tokens.iter().map(|(logit, _)| weight(*logit)).sum::<f64>();
    // Sorting a whole vocabulary is rarely needed: look at the likeliest few, then at more.
    let mut some = 64.min(tokens.len());
    loop {
        if some < tokens.len() {
            tokens.select_nth_unstable_by(some - 1, order);
        }
        tokens[..some].sort_unstable_by(order);
        let mut sum = 0.0;
        let enough = tokens[..some].iter().position(|(logit, _)| {
            sum += weight(*logit);
            sum >= wanted
        });
        if enough.is_some() || some == tokens.len() {
            let count = enough.map_or(some, |last| last + 1);
            return tokens[..count]
                .iter()
                .map(|(logit, id)| (weight(*logit), *id))
                .collect();
        }
        some = (some * 8).min(tokens.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(temperature: f32, top_k: Option<u32>, top_p: f32, seed: i64) -> GenerationParams {
        GenerationParams {
            max_tokens: 1,
            temperature,
            top_p,
            top_k,
            n: 1,
            stop: vec![],
            seed,
        }
    }

    fn draws(params: &GenerationParams, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(params, 0);
        (0..count).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    const LOGITS: [f32; 8] = [0.3, -1.0, 2.0, 1.4, 0.0, -3.0, 1.0, 0.9];

    /// Pearson's statistic of 100,000 draws against the probabilities, and its 99.99 % point for up to 7 degrees of freedom.
    fn assert_distributed(params: &GenerationParams, expected: &[f64]) {
        const DRAWS: usize = 100_000;
        let mut counts = vec![0_u32; expected.len()];
        for token in draws(params, &LOGITS, DRAWS) {
            counts[token as usize] += 1;
        }
        let total: f64 = expected.iter().sum();
        let mut statistic = 0.0;
        for (count, weight) in counts.iter().zip(expected) {
            let mean = weight / total * DRAWS as f64;
            if *weight == 0.0 {
                assert_eq!(*count, 0, "a token outside the nucleus was drawn");
            } else {
                statistic += (f64::from(*count) - mean).powi(2) / mean;
            }
        }
        assert!(statistic < 29.9, "chi-square is {statistic}");
    }

    fn weights(temperature: f64) -> Vec<f64> {
        LOGITS
            .iter()
            .map(|logit| (f64::from(*logit) / temperature).exp())
            .collect()
    }

    #[test]
    fn draws_follow_the_softmax_at_each_temperature() {
        for temperature in [0.5, 1.0, 1.7] {
            assert_distributed(&params(temperature, None, 1.0, 1), &weights(f64::from(temperature)));
        }
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_their_proportions() {
        let mut expected = weights(1.0);
        for dropped in [0, 1, 4, 5, 7] {
            expected[dropped] = 0.0;
        }
        assert_distributed(&params(1.0, Some(3), 1.0, 2), &expected);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_holds_the_probability() {
        // Sorted: 2 (0.37), 3 (0.20), 6 (0.14), 7 (0.12), 0 (0.07) …: 0.7 needs the first three.
        let mut expected = weights(1.0);
        for dropped in [0, 1, 4, 5, 7] {
            expected[dropped] = 0.0;
        }
        assert_distributed(&params(1.0, None, 0.7, 3), &expected);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids() {
        for params in [
            params(0.0, None, 1.0, 5),
            params(1.0, None, 0.0, 5),
            params(1.0, Some(1), 1.0, 5),
        ] {
            assert_eq!(draws(&params, &[1.0, 7.0, 7.0, 2.0], 3), [1, 1, 1]);
        }
    }

    #[test]
    fn equal_seeds_draw_equal_tokens_and_choices_differ() {
        let params = params(1.0, None, 0.9, 11);
        assert_eq!(draws(&params, &LOGITS, 50), draws(&params, &LOGITS, 50));
        let mut other = Sampler::new(&params, 1);
        let others: Vec<_> = (0..50).map(|_| other.sample(&LOGITS).unwrap()).collect();
        assert_ne!(draws(&params, &LOGITS, 50), others);
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Sampler::new(&params(0.7, None, 1.0, 1), 0).sample(&[0.0, bad]), None);
            assert_eq!(Sampler::new(&params(0.0, None, 1.0, 1), 0).sample(&[0.0, bad]), None);
        }
    }

    proptest! {
        #[test]
        fn the_nucleus_of_many_tokens_is_that_of_a_full_sort(
            logits in prop::collection::vec(-9.0..9.0_f32, 1..900),
            top_k in prop::option::of(1..1000_usize),
            top_p in 0.01..1.0_f64,
        ) {
            let weight = |logit: f32| f64::from(logit).exp();
            let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            sorted.truncate(top_k.unwrap_or(usize::MAX));
            let kept = nucleus(&logits, top_k, top_p, weight);
            let ids: Vec<u32> = sorted.iter().map(|(_, id)| *id).collect();
            prop_assert_eq!(kept.iter().map(|(_, id)| *id).collect::<Vec<_>>(), &ids[..kept.len()]);
            let total: f64 = sorted.iter().map(|(logit, _)| weight(*logit)).sum();
            let held: f64 = kept.iter().map(|(weight, _)| weight).sum();
            prop_assert!(held >= top_p * total * (1.0 - 1e-9));
            prop_assert!(held - kept.last().unwrap().0 <= top_p * total * (1.0 + 1e-9), "one fewer would have done");
        }
    }
}
