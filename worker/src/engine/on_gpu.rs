//! What a graphics card draws, beside the sampler: on the device of `gpt2/gpu/tests.rs`.

use std::collections::HashMap;

use claimcheck_common::domain::{Dtype, GenerationParams};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::logprobs::{self, TokenLogprob};
use super::sampler::Sampler;
use super::tests::{self, config, job, run_all_on};
use crate::gpt2::{
    CARD, Device, Draw, Drawn, Gpt2Config, Method, StepError, StepModel, StepRow, Weights, drawn_by_card,
};

/// One row: its logits, and two samplers in the same state.
struct Row {
    logits: Vec<f32>,
    params: GenerationParams,
    here: Sampler,
    there: Sampler,
}

fn pick<T: Copy>(random: &mut ChaCha8Rng, some: &[T]) -> T {
    some[random.random_range(0..some.len())]
}

fn row(random: &mut ChaCha8Rng, width: usize) -> Row {
    let token = |random: &mut ChaCha8Rng| random.random_range(0..width as u32);
    let params = GenerationParams {
        temperature: pick(random, &[0.0, 0.2, 0.7, 1.0, 1.0, 1.9]),
        top_k: pick(
            random,
            &[None, None, None, Some(1), Some(5), Some(50), Some(1024), Some(3000)],
        ),
        top_p: pick(random, &[1.0, 1.0, 0.95, 0.5, 0.05, 0.0]),
        min_p: pick(random, &[0.0, 0.0, 0.02, 0.3]),
        repetition_penalty: pick(random, &[1.0, 1.3, 0.7]),
        presence_penalty: pick(random, &[0.0, 0.0, 0.8, -0.5]),
        frequency_penalty: pick(random, &[0.0, 0.4]),
        logit_bias: (0..pick(random, &[0, 0, 3]))
            .map(|_| (token(random), pick(random, &[-100.0, 2.5, 100.0])))
            .collect(),
        logprobs: pick(random, &[None, None, Some(0), Some(5)]),
        seed: random.random(),
        ..GenerationParams::default()
    };
    let prompt: Vec<u32> = (0..random.random_range(1..40)).map(|_| token(random)).collect();
    Row {
        logits: logits(random, width),
        here: Sampler::new(&params, 0, &prompt),
        there: Sampler::new(&params, 0, &prompt),
        params,
    }
}

/// Flat ones and steep ones, some so coarse that many are equal, both zeros among them.
fn logits(random: &mut ChaCha8Rng, width: usize) -> Vec<f32> {
    let scale = pick(random, &[0.05_f32, 1.0, 3.0, 12.0]);
    let coarse = pick(random, &[0.0_f32, 0.0, 0.25, 2.0]);
    let number = |_| {
        let number: f32 = StandardNormal.sample(&mut *random);
        if coarse > 0.0 {
            (number * scale / coarse).round() * coarse
        } else {
            number * scale
        }
    };
    (0..width).map(number).collect()
}

/// Draws of all rows on both sides, so many one after the other; answers how many rows were left to the sampler. The
/// logits move on by a place each time.
fn compare(rows: &mut [Row], width: usize, times: usize) -> usize {
    let mut left = 0;
    for _ in 0..times {
        let asks: Vec<_> = rows
            .iter()
            .map(|row| row.there.ask(row.params.logprobs.map(|count| count as usize)))
            .collect();
        let logits: Vec<f32> = rows.iter().flat_map(|row| row.logits.clone()).collect();
        for (row, drawn) in rows.iter_mut().zip(drawn_by_card(&logits, width, &asks)) {
            let wanted = row.here.draw(&row.logits).unwrap();
            row.here.take(wanted);
            match drawn {
                Drawn::Token(token, likely) => {
                    assert_eq!(token, wanted, "{:?}", row.params);
                    let top = row.params.logprobs.map(|count| count as usize);
                    assert_eq!(likely.is_some(), top.is_some());
                    if let (Some(likely), Some(top)) = (likely, top) {
                        assert_alike(
                            &TokenLogprob::from(likely),
                            &logprobs::of_token(&row.logits, token, top.min(width)),
                        );
                    }
                }
                Drawn::Logits(logits) => {
                    // As they were before the edits.
                    assert_eq!(logits, row.logits);
                    assert_eq!(row.there.draw(&logits), Some(wanted));
                    left += 1;
                }
            }
            row.there.take(wanted);
            row.logits.rotate_right(1);
        }
    }
    left
}

/// The same tokens; the logarithm of sums in another order.
fn assert_alike(ours: &TokenLogprob, theirs: &TokenLogprob) {
    let near = |ours: f32, theirs: f32| {
        assert!(
            (ours - theirs).abs() <= 1e-6 * theirs.abs().max(1.0),
            "{ours}, {theirs}"
        );
    };
    near(ours.logprob, theirs.logprob);
    assert_eq!(ours.top.len(), theirs.top.len());
    for (ours, theirs) in ours.top.iter().zip(&theirs.top) {
        assert_eq!(ours.0, theirs.0);
        near(ours.1, theirs.1);
    }
}

#[test]
fn a_token_that_is_drawn_is_the_samplers_whatever_is_asked() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (width, count) in [(1, 8), (3, 8), (61, 64), (700, 64), (1025, 64), (5000, 160)] {
        let mut rows: Vec<_> = (0..count).map(|_| row(&mut random, width)).collect();
        let left = compare(&mut rows, width, 3);
        // Those that need more than are sorted, and cuts that fall between equal weights.
        assert!(left < 3 * count / 3, "{left} of {} were left at {width}", 3 * count);
    }
}

#[test]
fn a_whole_vocabulary_is_drawn_from_where_the_logits_are() {
    let width = 50_257;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let plain = |random: &mut ChaCha8Rng, params: GenerationParams| Row {
        logits: (0..width)
            .map(|_| {
                let number: f32 = StandardNormal.sample(&mut *random);
                3.0 * number
            })
            .collect(),
        here: Sampler::new(&params, 0, &[5, 6]),
        there: Sampler::new(&params, 0, &[5, 6]),
        params,
    };
    let settings = [
        (0.0, None, 1.0),
        (1.0, None, 1.0),
        (0.7, None, 1.0),
        (0.8, None, 0.9),
        (1.0, Some(50), 0.95),
    ];
    let mut rows: Vec<_> = settings
        .iter()
        .cycle()
        .take(15)
        .zip(0..)
        .map(|((temperature, top_k, top_p), seed)| {
            let params = GenerationParams {
                temperature: *temperature,
                top_k: *top_k,
                top_p: *top_p,
                seed,
                ..GenerationParams::default()
            };
            plain(&mut random, params)
        })
        .collect();
    assert_eq!(compare(&mut rows, width, 2), 0);
}

#[test]
fn the_likeliest_tokens_are_found_however_many_are_alike() {
    let (width, mut random) = (5000, ChaCha8Rng::seed_from_u64(4));
    let mut left = |top_k, top_p, heaps: &[(usize, f32)]| {
        let params = |seed| GenerationParams {
            temperature: 1.0,
            top_k,
            top_p,
            seed,
            ..GenerationParams::default()
        };
        let mut logits = vec![-30.0_f32; width];
        let mut place = 0;
        for (count, logit) in heaps {
            for _ in 0..*count {
                // All over the vocabulary, close to one another and each its own.
                place = (place + 1237) % width;
                logits[place] = logit + random.random_range(0.0..0.01_f32);
            }
        }
        let row = |seed| Row {
            logits: logits.clone(),
            here: Sampler::new(&params(seed), 0, &[]),
            there: Sampler::new(&params(seed), 0, &[]),
            params: params(seed),
        };
        let mut rows: Vec<_> = (0..8).map(row).collect();
        compare(&mut rows, width, 2)
    };
    // Few, then more alike than can be sorted.
    assert_eq!(left(Some(50), 1.0, &[(20, 5.0), (100, 4.0)]), 0);
    assert_eq!(left(Some(50), 1.0, &[(20, 5.0), (2000, 4.0)]), 0);
    assert_eq!(left(Some(1024), 0.9, &[(3000, 4.0)]), 0);
    // Far below the greatest.
    assert_eq!(left(Some(50), 1.0, &[(20, 5.0), (2000, -20.0)]), 0);
    // The nucleus has 976 tokens, all of the first heap and some of the second, with which there are too many to be sorted.
    assert_eq!(left(None, 0.9, &[(600, 5.0), (500, 4.8)]), 0);
    // It has more than can be sorted: the sampler's.
    assert_eq!(left(None, 0.97, &[(600, 5.0), (500, 4.8)]), 16);
}

/// A draw by chance of these truncations, and that uniform.
fn by_chance(top_k: Option<usize>, top_p: f64, min_p: f64, uniform: f64) -> Draw {
    Draw {
        method: Method::Random {
            temperature: 1.0,
            top_k,
            top_p,
            min_p,
        },
        uniform,
        ..Draw::GREEDY
    }
}

#[test]
fn what_the_order_of_a_sum_might_decide_is_left_to_the_sampler() {
    // Four weigh the same, and the rest nothing: each has a quarter.
    let mut logits = vec![-200.0_f32; 70];
    for place in [3, 21, 22, 69] {
        logits[place] = 1.5;
    }
    let token = |draw| match &drawn_by_card(&logits, 70, &[draw])[..] {
        [Drawn::Token(token, _)] => Some(*token),
        _ => None,
    };
    assert_eq!(token(by_chance(None, 1.0, 0.0, 0.49)), Some(21));
    assert_eq!(token(by_chance(None, 1.0, 0.0, 0.51)), Some(22));
    // Between two tokens of all, and of some.
    assert_eq!(token(by_chance(None, 1.0, 0.0, 0.5)), None);
    assert_eq!(token(by_chance(Some(4), 1.0, 0.0, 0.5)), None);
    // Top-p: just so many, or one more.
    assert_eq!(token(by_chance(None, 0.4, 0.0, 0.1)), Some(3));
    assert_eq!(token(by_chance(None, 0.5, 0.0, 0.1)), None);
    // Min-p: just as likely as has to be.
    assert_eq!(token(by_chance(None, 1.0, 0.5, 0.1)), Some(3));
    assert_eq!(token(by_chance(None, 1.0, 1.0, 0.1)), None);
    assert_eq!(token(by_chance(Some(4), 1.0, 1.0, 0.1)), None);
    // Another token than the drawn one is just as likely: in f64 its weight is off by less than 1e-11 of the least.
    let (distance, least) = (0.500_652_13_f32, 0.606_135_25_f32);
    let mut uneven = vec![-200.0_f32; 70];
    (uneven[3], uneven[69]) = (0.0, -distance);
    let drawn = drawn_by_card(&uneven, 70, &[by_chance(None, 1.0, f64::from(least), 0.1)]);
    assert_eq!(drawn, [Drawn::Logits(uneven)]);
    // More likely tokens than are told.
    let told = |top| {
        let greedy = Draw { top, ..Draw::GREEDY };
        token(greedy)
    };
    assert_eq!((told(Some(5)), told(Some(6))), (Some(3), None));
}

#[test]
fn a_row_draws_alone_what_it_draws_in_any_company_to_the_last_bit() {
    let width = 3000;
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let rows: Vec<_> = (0..40).map(|_| row(&mut random, width)).collect();
    let asks: Vec<_> = rows.iter().map(|row| row.there.ask(Some(5))).collect();
    let logits = |rows: &[Row]| -> Vec<f32> { rows.iter().flat_map(|row| row.logits.clone()).collect() };
    let together = drawn_by_card(&logits(&rows), width, &asks);
    assert!(together.iter().any(|one| matches!(one, Drawn::Token(_, Some(_)))));
    for (from, count) in [(0, 1), (39, 1), (3, 2), (7, 16), (12, 1)] {
        let some = from..from + count;
        let alone = drawn_by_card(&logits(&rows[some.clone()]), width, &asks[some.clone()]);
        assert_eq!(alone, together[some]);
    }
}

#[test]
fn greedy_is_exact_and_takes_the_lowest_of_equal_ids() {
    let width = 2000;
    for places in [&[0_usize, 1999][..], &[1999, 3, 700], &[256, 255, 257], &[1999]] {
        let mut logits = vec![-1.5_f32; width];
        for place in places {
            logits[*place] = 7.25;
        }
        let lowest = *places.iter().min().unwrap() as u32;
        let params = GenerationParams {
            temperature: 0.0,
            ..GenerationParams::default()
        };
        let ask = Sampler::new(&params, 0, &[]).ask(None);
        assert_eq!(drawn_by_card(&logits, width, &[ask]), [Drawn::Token(lowest, None)]);
    }
    // Plus and minus zero are equal.
    let ask = Draw::GREEDY;
    assert_eq!(drawn_by_card(&[-1.0, -0.0, 0.0], 3, &[ask]), [Drawn::Token(1, None)]);
}

#[test]
fn a_row_that_is_not_a_number_is_left_to_the_sampler_and_spoils_no_other() {
    let (width, mut random) = (300, ChaCha8Rng::seed_from_u64(3));
    let params = |temperature, seed| GenerationParams {
        temperature,
        seed,
        logprobs: Some(2),
        ..GenerationParams::default()
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for temperature in [0.0, 1.0] {
            let samplers: Vec<_> = (0..5)
                .map(|seed| Sampler::new(&params(temperature, seed), 0, &[]))
                .collect();
            let asks: Vec<_> = samplers.iter().map(|sampler| sampler.ask(Some(2))).collect();
            let mut all: Vec<f32> = (0..5).flat_map(|_| logits(&mut random, width)).collect();
            let before = drawn_by_card(&all, width, &asks);
            all[2 * width + 299] = bad;
            let after = drawn_by_card(&all, width, &asks);
            for row in [0, 1, 3, 4] {
                assert_eq!(before[row], after[row]);
            }
            let Drawn::Logits(logits) = &after[2] else {
                panic!("{:?}", after[2])
            };
            assert_eq!(samplers[2].draw(logits), None);
        }
    }
}

fn gpu(blocks: usize) -> Box<dyn StepModel> {
    let shape = Gpt2Config {
        vocab_size: tests::VOCABULARY,
        n_positions: tests::CONTEXT,
        n_embd: 32,
        n_layer: 2,
        n_head: 2,
        ..Gpt2Config::named("tiny").unwrap()
    };
    let device = Device::find(CARD, Dtype::F32).unwrap();
    device
        .load(Weights::Random(&shape, 3), Dtype::F32, &|_, _| blocks)
        .unwrap()
}

/// A model whose logits all come back.
struct Undrawn(Box<dyn StepModel>);

impl StepModel for Undrawn {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    fn blocks(&self) -> usize {
        self.0.blocks()
    }

    fn step(&mut self, rows: &[StepRow]) -> Result<Vec<f32>, StepError> {
        self.0.step(rows)
    }
}

#[tokio::test]
async fn jobs_write_the_same_whether_the_card_draws_or_the_sampler_and_alone_or_in_company() {
    let jobs: Vec<_> = (0..24).map(job).collect();
    let model = gpu(100);
    assert!(model.draws());
    let drawn = run_all_on(model, &jobs, config(8, 64)).await;
    let sampled = run_all_on(Box::new(Undrawn(gpu(100))), &jobs, config(5, 40)).await;
    // Log probabilities come of sums in another order.
    let plain = |all: &HashMap<_, claimcheck_common::domain::Completion>| -> HashMap<_, Vec<_>> {
        let choices =
            |one: &claimcheck_common::domain::Completion| one.choices.iter().map(|one| one.tokens.clone()).collect();
        all.iter().map(|(key, one)| (*key, choices(one))).collect()
    };
    assert_eq!(plain(&drawn), plain(&sampled));
    for job in &jobs[..6] {
        let alone = run_all_on(gpu(20), std::slice::from_ref(job), config(4, 64)).await;
        assert_eq!(alone[&job.key], drawn[&job.key]);
    }
}
