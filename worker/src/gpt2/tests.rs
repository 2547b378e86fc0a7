//! The CPU kernels against the plain-Burn reference, and the promise that company changes nothing.

use burn::backend::Flex;
use burn::backend::flex::FlexDevice;
use burn::tensor::{Tensor, TensorData};
use claimcheck_common::domain::Dtype;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::reference::{PlainCache, plain_attend, plain_linear, plain_norm};
use super::{
    Activation, Around, BLOCK, CacheShape, Cpu, Gpt2, Gpt2Backend, Gpt2Config, Gpt2Runner, Norm, Span, StepModel,
    StepRow,
};

fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<Flex, D> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| StandardNormal.sample(&mut generator))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &FlexDevice)
}

fn assert_close<const D: usize>(ours: Tensor<Flex, D>, reference: Tensor<Flex, D>) {
    let (ours, reference) = (values(ours), values(reference));
    assert_eq!(ours.len(), reference.len());
    for (ours, reference) in ours.iter().zip(&reference) {
        // Sums of some hundred products of standard normal values, in another order.
        assert!(
            (ours - reference).abs() <= 2e-5 * (1.0 + reference.abs()),
            "{ours} is not {reference}"
        );
    }
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

#[test]
fn the_packed_product_agrees_with_plain_burn_for_every_number_of_rows_and_columns() {
    for (seed, (rows, inputs, outputs)) in [(1, 5, 3), (2, 64, 16), (3, 33, 17), (4, 16, 40), (7, 96, 100)]
        .into_iter()
        .enumerate()
    {
        let seed = seed as u64;
        let (x, w) = (random(seed, [rows, inputs]), random(seed + 100, [inputs, outputs]));
        let bias = random(seed + 200, [outputs]);
        let packed = Cpu::pack(w.clone(), Dtype::F32);
        for activation in [None, Some(Activation::GeluTanh), Some(Activation::GeluErf)] {
            let around = Around {
                bias: Some(&bias),
                activation,
                ..Around::NOTHING
            };
            let ours = Cpu::project(&x, &packed, around);
            assert_close(ours, plain_linear(&x, &w, Some(&bias), activation));
        }
        assert_close(
            Cpu::project(&x, &packed, Around::NOTHING),
            plain_linear(&x, &w, None, None),
        );
    }
}

#[test]
fn what_is_done_around_a_product_agrees_with_plain_burn() {
    let (x, w, residual) = (random(1, [5, 70]), random(2, [70, 9]), random(3, [5, 9]));
    let norm = Norm::<Cpu> {
        gamma: random(4, [70]),
        beta: random(5, [70]),
        epsilon: 1e-5,
    };
    let around = Around {
        norm: Some(&norm),
        residual: Some(&residual),
        ..Around::NOTHING
    };
    let ours = Cpu::project(&x, &Cpu::pack(w.clone(), Dtype::F32), around);
    let normalized = plain_norm(&x, &norm.gamma, &norm.beta);
    assert_close(ours, plain_linear(&normalized, &w, None, None) + residual);
}

#[test]
fn ragged_attention_agrees_with_plain_burn_over_several_steps() {
    let shape = CacheShape {
        layers: 2,
        blocks: 5,
        heads: 2,
        head_dim: 36,
        dtype: Dtype::F32,
    };
    let (mut ours, mut plain) = (
        Cpu::new_cache(shape, &FlexDevice),
        PlainCache::<Flex>::new(shape, &FlexDevice),
    );
    let span = |blocks: &'static [u32], position, len| Span { blocks, position, len };
    // The last sequence begins with a block of the first one's.
    let steps = [
        vec![span(&[4, 1], 0, 33), span(&[0], 0, 1)],
        vec![span(&[0], 1, 1), span(&[4, 1], 33, 5), span(&[3], 0, 7)],
        vec![span(&[3], 7, 9), span(&[0], 2, 1), span(&[4, 2], 32, 3)],
    ];
    for (seed, spans) in steps.iter().enumerate() {
        let tokens = spans.iter().map(|span| span.len).sum();
        for layer in 0..shape.layers {
            let qkv = random((seed * 10 + layer) as u64, [tokens, 216]);
            assert_close(
                Cpu::attend(&qkv, &mut ours, layer, spans),
                plain_attend(&qkv, &mut plain, layer, spans),
            );
        }
    }
}

/// Two blocks and a half.
const CONTEXT: usize = 80;
const BLOCKS_OF_SEQUENCE: usize = CONTEXT.div_ceil(BLOCK);

fn runner(blocks: usize, dtype: Dtype) -> Gpt2Runner<Cpu> {
    let config = Gpt2Config {
        vocab_size: 61,
        n_positions: CONTEXT,
        n_embd: 48,
        n_layer: 2,
        n_head: 3,
        ..Gpt2Config::named("tiny").unwrap()
    };
    Gpt2Runner::new(Gpt2::random(config, 7, dtype, &FlexDevice), blocks)
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..61_u32, 2..CONTEXT)
}

fn first_blocks() -> Vec<u32> {
    (0..BLOCKS_OF_SEQUENCE as u32).collect()
}

/// The bits of the logits after a sequence's last token, all of it prefilled at once.
fn alone(sequence: &[u32], dtype: Dtype) -> Vec<u32> {
    let row = StepRow {
        blocks: first_blocks(),
        position: 0,
        tokens: sequence.to_vec(),
        wants_logits: true,
    };
    bits(&runner(1, dtype).step(&[row]).unwrap())
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn logits_are_bit_equal_alone_and_in_any_company_blocks_and_chunking(
        sequences in prop::collection::vec((tokens(), 1..40_usize), 1..6),
        places in Just((0..6 * BLOCKS_OF_SEQUENCE as u32).collect::<Vec<_>>()).prop_shuffle(),
        dtype in prop::sample::select(Dtype::ALL.to_vec()),
    ) {
        let mut runner = runner(places.len(), dtype);
        let mut done = vec![0; sequences.len()];
        let mut last: Vec<Vec<u32>> = vec![Vec::new(); sequences.len()];
        // Ragged: each sequence advances by its own chunk, so that they end at different steps.
        while done.iter().zip(&sequences).any(|(done, (sequence, _))| *done < sequence.len()) {
            let mut rows = Vec::new();
            let mut who = Vec::new();
            for (index, (sequence, chunk)) in sequences.iter().enumerate() {
                let tokens: Vec<u32> = sequence[done[index]..].iter().take(*chunk).copied().collect();
                if tokens.is_empty() {
                    continue;
                }
                let blocks = places[index * BLOCKS_OF_SEQUENCE..][..BLOCKS_OF_SEQUENCE].to_vec();
                rows.push(StepRow { blocks, position: done[index], wants_logits: true, tokens });
                done[index] += rows.last().unwrap().tokens.len();
                who.push(index);
            }
            let logits = runner.step(&rows).unwrap();
            for (row, index) in logits.chunks_exact(61).zip(who) {
                last[index] = bits(row);
            }
        }
        for ((sequence, _), last) in sequences.iter().zip(last) {
            prop_assert_eq!(alone(sequence, dtype), last);
        }
    }

    #[test]
    fn logits_are_bit_equal_behind_blocks_that_another_sequence_wrote(
        sequence in prop::collection::vec(0..61_u32, BLOCK + 1..CONTEXT),
        other in prop::collection::vec(0..61_u32, 1..CONTEXT - BLOCK),
        dtype in prop::sample::select(Dtype::ALL.to_vec()),
    ) {
        let mut runner = runner(2 * BLOCKS_OF_SEQUENCE, dtype);
        // The other sequence has the same first block and writes it.
        let row = |blocks: &[u32], position, tokens: &[u32]| StepRow {
            blocks: blocks.to_vec(),
            position,
            tokens: tokens.to_vec(),
            wants_logits: true,
        };
        runner.step(&[row(&[5, 0, 1], 0, &[&sequence[..BLOCK], &other].concat())]).unwrap();
        let logits = runner.step(&[row(&[5, 3, 2], BLOCK, &sequence[BLOCK..])]).unwrap();
        prop_assert_eq!(alone(&sequence, dtype), bits(&logits));
    }
}

#[test]
fn logits_are_bit_equal_whatever_the_number_of_threads() {
    let sequence: Vec<u32> = (0..20).collect();
    for dtype in Dtype::ALL {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| alone(&sequence, dtype))
        };
        assert_eq!(on(1), on(4));
    }
}

#[test]
fn a_row_out_of_bounds_is_an_error_and_not_a_panic() {
    let row = StepRow {
        blocks: first_blocks(),
        position: 0,
        tokens: vec![1],
        wants_logits: true,
    };
    let bad = [
        StepRow {
            blocks: vec![BLOCKS_OF_SEQUENCE as u32],
            ..row.clone()
        },
        StepRow {
            blocks: vec![0],
            position: BLOCK,
            ..row.clone()
        },
        StepRow {
            tokens: vec![],
            ..row.clone()
        },
        StepRow {
            tokens: vec![61],
            ..row.clone()
        },
        StepRow {
            position: CONTEXT,
            ..row.clone()
        },
    ];
    let mut runner = runner(1, Dtype::F32);
    for row in bad {
        assert!(runner.step(std::slice::from_ref(&row)).is_err(), "{row:?}");
    }
    assert!(
        runner.step(&[row.clone(), row.clone()]).is_err(),
        "two rows would write a block"
    );
    assert_eq!(runner.step(&[row]).unwrap().len(), 61);
}
