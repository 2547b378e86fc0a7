//! From logits to a token, for one sequence.
//!
//! Each sequence has its own generator and draws one uniform a token, so that its stream depends on its seed, its choice
//! and the token's place alone. The order is that of Hugging Face's `transformers`: penalties and bias (`penalties.rs`),
//! temperature, top-k, top-p (nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020),
//! min-p (Nguyen et al., arXiv 2407.01082, 2024). Sums are taken in f64 in one fixed order (`weights.rs`). Drawing changes
//! nothing, so that rows are drawn side by side; taking the token does. A device that draws by itself
//! (`gpt2/draw.rs`) is asked for the same draw and answers the same token.

use claimcheck_common::domain::GenerationParams;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::penalties::Penalties;
use super::weights::{Weights, greatest};
use crate::gpt2::{Draw, Method};

pub(super) struct Sampler {
    method: Method,
    penalties: Penalties,
    generator: ChaCha8Rng,
}

impl Sampler {
    /// `prompt` must hold ids of the model's vocabulary alone, as must the biased tokens of `params`.
    pub(super) fn new(params: &GenerationParams, choice: u32, prompt: &[u32]) -> Self {
        let method = if params.temperature == 0.0 || params.top_p == 0.0 {
            Method::Greedy
        } else {
            Method::Random {
                temperature: f64::from(params.temperature),
                top_k: params.top_k.map(|k| k as usize),
                top_p: f64::from(params.top_p),
                min_p: f64::from(params.min_p),
            }
        };
        let mut generator = ChaCha8Rng::seed_from_u64(params.seed.cast_unsigned());
        generator.set_stream(u64::from(choice));
        Self {
            method,
            penalties: Penalties::new(params, prompt),
            generator,
        }
    }

    /// The next token, or `None` if some logit is not a finite number. Nothing changes until it is taken.
    pub(super) fn draw(&self, logits: &[f32]) -> Option<u32> {
        self.choose(logits, self.next_uniform())
    }

    /// The same draw, for who draws elsewhere.
    pub(super) fn ask(&self, top: Option<usize>) -> Draw {
        Draw {
            method: self.method,
            uniform: self.next_uniform(),
            edits: self.penalties.edits(),
            top,
        }
    }

    /// The token that came of [`Self::draw`] or [`Self::ask`].
    pub(super) fn take(&mut self, token: u32) {
        uniform(self.method, &mut self.generator);
        self.penalties.note(token);
    }

    fn next_uniform(&self) -> f64 {
        uniform(self.method, &mut self.generator.clone())
    }

    /// The token that a uniform from `[0, 1)` leads to.
    fn choose(&self, logits: &[f32], uniform: f64) -> Option<u32> {
        // Asked of the model's own numbers, whatever a bias makes of them.
        greatest(logits)?;
        choose(self.method, &self.penalties.apply(logits), uniform)
    }
}

/// A draw takes one, unless nothing is left to chance.
fn uniform(method: Method, generator: &mut ChaCha8Rng) -> f64 {
    match method {
        Method::Greedy => 0.0,
        Method::Random { .. } => generator.random(),
    }
}

fn choose(method: Method, logits: &[f32], uniform: f64) -> Option<u32> {
    let most = greatest(logits)?;
    let Method::Random {
        temperature,
        top_k,
        top_p,
        min_p,
    } = method
    else {
        return likeliest(logits, most);
    };
    let weights = Weights::new(logits, most, temperature);
    let whole = top_k.is_none_or(|k| k >= logits.len()) && top_p >= 1.0;
    let token = if whole {
        // The likeliest token weighs 1.
        let kept = weights.at_least(min_p);
        kept.pick(uniform).or_else(|| kept.last())
    } else {
        let mut kept = nucleus(weights, logits, top_k, top_p);
        kept.retain(|(weight, _)| *weight >= min_p);
        let total = kept.iter().map(|(weight, _)| weight).sum::<f64>();
        pick(&kept, uniform * total)
    };
    token.or_else(|| likeliest(logits, most))
}

/// Of the greatest logits the one of the lowest id.
fn likeliest(logits: &[f32], greatest: f32) -> Option<u32> {
    let place = logits.iter().position(|logit| *logit >= greatest);
    place.map(|place| place as u32)
}

/// The first token at which the running sum passes `target`, or the last one.
fn pick(kept: &[(f64, u32)], target: f64) -> Option<u32> {
    let mut sum = 0.0;
    let first = kept.iter().find(|(weight, _)| {
        sum += weight;
        sum > target
    });
    first
        .or_else(|| kept.iter().rfind(|(weight, _)| *weight > 0.0))
        .map(|(_, id)| *id)
}

/// The `top_k` likeliest tokens, cut where they hold `top_p` of their weight, likeliest first.
fn nucleus(weights: Weights<'_>, logits: &[f32], top_k: Option<usize>, top_p: f64) -> Vec<(f64, u32)> {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut tokens: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    let k = top_k.unwrap_or(tokens.len()).clamp(1, tokens.len());
    let total = if k < tokens.len() {
        tokens.select_nth_unstable_by(k - 1, order);
        tokens.truncate(k);
        // Summed by id, so that the sum does not depend on how the selection left the order.
        tokens.sort_unstable_by_key(|(_, id)| *id);
        let kept: Vec<f32> = tokens.iter().map(|(logit, _)| *logit).collect();
        weights.with(&kept).sum()
    } else {
        weights.sum()
    };
    let wanted = top_p * total;
    // Sorting a whole vocabulary is rarely needed: look at the likeliest few, then at more.
    let mut some = 64.min(tokens.len());
    loop {
        if some < tokens.len() {
            tokens.select_nth_unstable_by(some - 1, order);
        }
        tokens[..some].sort_unstable_by(order);
        let mut sum = 0.0;
        let enough = tokens[..some].iter().position(|(logit, _)| {
            sum += weights.of(*logit);
            sum >= wanted
        });
        if enough.is_some() || some == tokens.len() {
            let count = enough.map_or(some, |last| last + 1);
            return tokens[..count]
                .iter()
                .map(|(logit, id)| (weights.of(*logit), *id))
                .collect();
        }
        some = (some * 8).min(tokens.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::logprobs;
    use super::*;

    fn params(temperature: f32, top_k: Option<u32>, top_p: f32, seed: i64) -> GenerationParams {
        GenerationParams {
            temperature,
            top_p,
            top_k,
            seed,
            ..GenerationParams::default()
        }
    }

    fn draws(params: &GenerationParams, logits: &[f32], count: usize) -> Vec<u32> {
        draws_of(Sampler::new(params, 0, &[]), logits, count)
    }

    fn draws_of(mut sampler: Sampler, logits: &[f32], count: usize) -> Vec<u32> {
        let next = |_| {
            let token = sampler.draw(logits).unwrap();
            sampler.take(token);
            token
        };
        (0..count).map(next).collect()
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
    fn min_p_keeps_what_is_likely_enough_beside_the_likeliest() {
        // e^-1.1 is 0.33 and e^-1 is 0.37 of the likeliest.
        let mut expected = weights(1.0);
        for dropped in [0, 1, 4, 5, 7] {
            expected[dropped] = 0.0;
        }
        let params = GenerationParams {
            min_p: 0.35,
            ..params(1.0, None, 1.0, 4)
        };
        assert_distributed(&params, &expected);
    }

    #[test]
    fn a_bias_shifts_the_distribution_and_minus_a_hundred_forbids() {
        let mut expected = weights(0.8);
        expected[5] *= (2.5_f64 / 0.8).exp();
        expected[2] = 0.0;
        let params = GenerationParams {
            logit_bias: [(5, 2.5), (2, -100.0)].into(),
            ..params(0.8, None, 1.0, 6)
        };
        assert_distributed(&params, &expected);
    }

    #[test]
    fn truncations_work_on_one_another_in_their_order() {
        // At 0.5 the likeliest weighs 1, then 0.30, 0.14, 0.11: k keeps four of them, p three, and min-p two.
        let mut expected = weights(0.5);
        for dropped in [0, 1, 4, 5, 6, 7] {
            expected[dropped] = 0.0;
        }
        let params = GenerationParams {
            min_p: 0.2,
            ..params(0.5, Some(4), 0.9, 8)
        };
        assert_distributed(&params, &expected);
    }

    #[derive(Deserialize)]
    struct Oracle {
        prompt: Vec<u32>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        params: serde_json::Value,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct Step {
        logits: Vec<f32>,
        uniform: f64,
        token: u32,
        logprob: Option<f32>,
        #[serde(default)]
        top: Vec<(u32, f32)>,
    }

    impl Case {
        /// The parameters that the oracle names, over the defaults.
        fn params(&self) -> GenerationParams {
            let mut all = serde_json::to_value(GenerationParams::default()).unwrap();
            for (name, value) in self.params.as_object().unwrap() {
                assert!(all.get(name).is_some(), "no parameter {name}");
                all[name] = value.clone();
            }
            serde_json::from_value(all).unwrap()
        }
    }

    /// What `tests/fixtures/make_sampling.py` computes.
    fn oracle() -> Oracle {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/sampling.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn fixed_uniforms_lead_to_the_tokens_of_the_oracle() {
        let oracle = oracle();
        for case in &oracle.cases {
            let mut sampler = Sampler::new(&case.params(), 0, &oracle.prompt);
            for (place, step) in case.steps.iter().enumerate() {
                let token = sampler.choose(&step.logits, step.uniform);
                assert_eq!(token, Some(step.token), "{}, step {place}", case.name);
                sampler.take(step.token);
            }
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_oracle_whatever_was_asked_of_the_draw() {
        let near = |ours: f32, theirs: f32| assert!((ours - theirs).abs() < 1e-5, "{ours} is not {theirs}");
        let mut compared = 0;
        for case in &oracle().cases {
            for step in &case.steps {
                let Some(wanted) = step.logprob else { continue };
                let ours = logprobs::of_token(&step.logits, step.token, step.top.len());
                near(ours.logprob, wanted);
                for ((id, logprob), (wanted_id, wanted)) in ours.top.into_iter().zip(&step.top) {
                    assert_eq!(id, *wanted_id);
                    near(logprob, *wanted);
                }
                compared += 1;
            }
        }
        assert!(compared > 0);
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
        let others = draws_of(Sampler::new(&params, 1, &[]), &LOGITS, 50);
        assert_ne!(draws(&params, &LOGITS, 50), others);
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Sampler::new(&params(0.7, None, 1.0, 1), 0, &[]).draw(&[0.0, bad]), None);
            assert_eq!(Sampler::new(&params(0.0, None, 1.0, 1), 0, &[]).draw(&[0.0, bad]), None);
        }
    }

    proptest! {
        #[test]
        fn the_nucleus_of_many_tokens_is_that_of_a_full_sort(
            logits in prop::collection::vec(-9.0..9.0_f32, 1..900),
            top_k in prop::option::of(1..1000_usize),
            top_p in 0.01..1.0_f64,
        ) {
            let weights = Weights::new(&logits, greatest(&logits).unwrap(), 1.0);
            let weight = |logit: f32| weights.of(logit);
            let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            sorted.truncate(top_k.unwrap_or(usize::MAX));
            let kept = nucleus(weights, &logits, top_k, top_p);
            let ids: Vec<u32> = sorted.iter().map(|(_, id)| *id).collect();
            prop_assert_eq!(kept.iter().map(|(_, id)| *id).collect::<Vec<_>>(), &ids[..kept.len()]);
            let total: f64 = sorted.iter().map(|(logit, _)| weight(*logit)).sum();
            let held: f64 = kept.iter().map(|(weight, _)| weight).sum();
            prop_assert!(held >= top_p * total * (1.0 - 1e-9));
            prop_assert!(held - kept.last().unwrap().0 <= top_p * total * (1.0 + 1e-9), "one fewer would have done");
        }
    }
}
