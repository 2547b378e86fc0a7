//! The kernels against the plain-Burn reference on the processor: built with the feature `vulkan` on whatever adapter Vulkan
//! lists, which is Mesa's software one where there is no card, and with `cuda` alone on a card of NVIDIA's.

use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::backend::flex::FlexDevice;
use burn::tensor::{Tensor, TensorData};
use claimcheck_common::domain::DeviceChoice;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::Deserialize;

use super::*;
use crate::gpt2::reference::{PlainCache, plain_attend, plain_linear, plain_norm};
use crate::gpt2::{
    Activation, Cpu, Device, Edit, Gpt2, Gpt2Config, Gpt2Runner, Method, ModelFiles, StepModel, StepRow,
};

#[cfg(feature = "vulkan")]
type Card = Vulkan;
#[cfg(not(feature = "vulkan"))]
type Card = Cuda;
type Floats = <Card as Gpt2Backend>::Floats;

/// The device of these tests.
pub(crate) const CARD: DeviceChoice = if cfg!(feature = "vulkan") {
    DeviceChoice::Vulkan
} else {
    DeviceChoice::Cuda(0)
};

fn device() -> <Card as Gpt2Backend>::Device {
    card(Order::Fixed)
}

fn card(order: Order) -> <Card as Gpt2Backend>::Device {
    match Device::find(CARD, Dtype::F32).expect("a card, or Debian's mesa-vulkan-drivers and libvulkan1") {
        #[cfg(feature = "vulkan")]
        Device::Vulkan(device, ..) => Site::new(&device, order),
        #[cfg(not(feature = "vulkan"))]
        Device::Cuda(device, ..) => Site::new(&device, order),
        other => panic!("{other}"),
    }
}

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| StandardNormal.sample(&mut generator)).collect()
}

/// For the sampler's tests: what comes of logits `[draws, width]`.
pub(crate) fn drawn(logits: &[f32], width: usize, draws: &[Draw]) -> Vec<Drawn> {
    let device = device();
    assert!(Card::draws(&device));
    Card::draw(Card::floats(logits.to_vec(), [draws.len(), width], &device), draws).unwrap()
}

/// The same numbers on both sides.
fn random(seed: u64, shape: [usize; 2]) -> (Floats, Tensor<Flex, 2>) {
    let values = numbers(seed, shape[0] * shape[1]);
    (Card::floats(values.clone(), shape, &device()), plain(values, shape))
}

/// The same numbers of one row on both sides.
fn random_row(seed: u64, width: usize) -> (Floats, Tensor<Flex, 1>) {
    let (ours, plain) = random(seed, [1, width]);
    (ours, plain.reshape([width]))
}

fn plain(values: Vec<f32>, shape: [usize; 2]) -> Tensor<Flex, 2> {
    Tensor::from_data(TensorData::new(values, shape), &FlexDevice)
}

/// As weights of that type are read.
fn rounded(weight: &Tensor<Flex, 2>, dtype: Dtype) -> Tensor<Flex, 2> {
    let round = |value: f32| match dtype {
        Dtype::F32 => value,
        _ => half::bf16::from_f32(value).to_f32(),
    };
    let values = plain_values(weight.clone()).into_iter().map(round).collect();
    plain(values, weight.dims())
}

fn plain_values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

fn values(numbers: Floats) -> Vec<f32> {
    Card::values(numbers).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_close(ours: Floats, reference: Tensor<Flex, 2>) {
    // Sums of some hundred products of standard normal values, in another order.
    assert_within(4e-5, ours, reference);
}

fn assert_within(tolerance: f32, ours: Floats, reference: Tensor<Flex, 2>) {
    assert_eq!(ours.shape(), reference.dims());
    for (ours, reference) in values(ours).iter().zip(plain_values(reference)) {
        assert!(
            (ours - reference).abs() <= tolerance * (1.0 + reference.abs()),
            "{ours} is not {reference}"
        );
    }
}

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// A norm of rows of that width, on both sides.
struct Norms {
    ours: Norm<Card>,
    gamma: Tensor<Flex, 1>,
    beta: Tensor<Flex, 1>,
}

fn norms(seed: u64, width: usize) -> Norms {
    let ((gamma, plain_gamma), (beta, plain_beta)) = (random_row(seed, width), random_row(seed + 1, width));
    let epsilon = 1e-5;
    Norms {
        ours: Norm { gamma, beta, epsilon },
        gamma: plain_gamma,
        beta: plain_beta,
    }
}

const fn biased(bias: &Floats, activation: Option<Activation>) -> Around<'_, Card> {
    Around {
        bias: Some(bias),
        activation,
        ..Around::NOTHING
    }
}

/// Products of `x` with weights `[inputs, outputs]` drawn from a seed agree with plain Burn, in each dtype, whatever is done around
/// them.
fn assert_products(x: &Floats, plain_x: &Tensor<Flex, 2>, seed: u64, [inputs, outputs]: [usize; 2]) {
    let (bias, plain_bias) = random_row(seed + 200, outputs);
    let (weight, plain_weight) = random(seed + 100, [inputs, outputs]);
    let (residual, plain_residual) = random(seed + 300, [plain_x.dims()[0], outputs]);
    let norms = norms(seed + 400, inputs);
    let normalized = plain_norm(plain_x, &norms.gamma, &norms.beta);
    for dtype in DTYPES {
        // On tensor cores 16 bits of a number of x are kept.
        let tolerance = if dtype == Dtype::F32 { 4e-5 } else { 6e-4 };
        let packed = Card::pack(weight.clone(), dtype);
        let plain_weight = rounded(&plain_weight, dtype);
        for activation in [None, Some(Activation::GeluTanh), Some(Activation::GeluErf)] {
            assert_within(
                tolerance,
                Card::project(x, &packed, biased(&bias, activation)),
                plain_linear(plain_x, &plain_weight, Some(&plain_bias), activation),
            );
        }
        // As the halves of a block have it, and as the head has.
        let activation = Some(Activation::GeluTanh);
        for (around, wanted) in [
            (
                Around {
                    norm: Some(&norms.ours),
                    ..biased(&bias, activation)
                },
                plain_linear(&normalized, &plain_weight, Some(&plain_bias), activation),
            ),
            (
                Around {
                    residual: Some(&residual),
                    ..biased(&bias, None)
                },
                plain_linear(plain_x, &plain_weight, Some(&plain_bias), None) + plain_residual.clone(),
            ),
            (
                Around {
                    norm: Some(&norms.ours),
                    ..Around::NOTHING
                },
                plain_linear(&normalized, &plain_weight, None, None),
            ),
        ] {
            assert_within(tolerance, Card::project(x, &packed, around), wanted);
        }
    }
}

/// Rows, inputs and outputs. The last ones have wider panels. Inputs in sixteens go on tensor cores where there are some: in each
/// shape, whole and not.
pub(super) const PRODUCTS: [(usize, usize, usize); 19] = [
    (8, 96, 16),
    (20, 784, 48),
    (3, 1600, 20),
    (70, 400, 33),
    (70, 160, 33),
    (530, 272, 200),
    (530, 32, 200),
    (20, 32, 4200),
    (20, 272, 4200),
    (400, 208, 4200),
    (70, 208, 4200),
    (70, 32, 4200),
    (1, 5, 3),
    (2, 64, 16),
    (3, 130, 17),
    (5, 33, 40),
    (9, 96, 100),
    (2, 8, 4100),
    (1, 4, 16_390),
];

/// Inputs, outputs and rows of the products of which any row is computed alone: in each shape, too.
pub(super) const ALONE: [(usize, usize, usize); 5] = [
    (200, 70, 19),
    (208, 200, 530),
    (1600, 70, 80),
    (272, 4200, 180),
    (144, 4200, 400),
];

#[test]
fn the_packed_product_agrees_with_plain_burn_for_every_number_of_rows_and_columns() {
    for (seed, (rows, inputs, outputs)) in PRODUCTS.into_iter().enumerate() {
        let seed = seed as u64;
        let (x, plain_x) = random(seed, [rows, inputs]);
        assert_products(&x, &plain_x, seed, [inputs, outputs]);
    }
}

#[test]
fn the_product_of_many_rows_in_the_fast_order_agrees_with_plain_burn() {
    let fast = card(Order::Fast);
    // Whole tiles, and parts of them in every direction; then panels of each width.
    let shapes = [
        (64, 32, 64),
        (32, 16, 5),
        (33, 50, 70),
        (130, 201, 129),
        (40, 8, 4100),
        (35, 4, 16_390),
    ];
    for (seed, (rows, inputs, outputs)) in shapes.into_iter().enumerate() {
        let seed = seed as u64;
        let plain_x = plain(numbers(seed, rows * inputs), [rows, inputs]);
        let x = Card::floats(numbers(seed, rows * inputs), [rows, inputs], &fast);
        assert_products(&x, &plain_x, seed, [inputs, outputs]);
    }
}

#[test]
fn a_row_of_a_product_is_bit_equal_alone_and_in_any_company_in_the_fixed_order_and_not_in_the_fast_one() {
    let (inputs, outputs, rows) = (200, 70, 80);
    let (weight, _) = random(1, [inputs, outputs]);
    let packed = Card::pack(weight, Dtype::Bf16);
    let x = numbers(3, rows * inputs);
    let product = |order, rows: usize| {
        let x = Card::floats(x[..rows * inputs].to_vec(), [rows, inputs], &card(order));
        bits(&values(Card::project(&x, &packed, Around::NOTHING)))[..outputs].to_vec()
    };
    let alone = product(Order::Fixed, 1);
    for rows in [2, 8, 31, 32, 80] {
        assert_eq!(product(Order::Fixed, rows), alone, "{rows} rows");
        assert_eq!(product(Order::Fast, rows) == alone, rows < tiles::FROM, "{rows} rows");
    }
}

#[test]
fn a_row_of_a_product_is_bit_equal_alone_and_in_any_company() {
    for (inputs, outputs, rows) in ALONE {
        let (weight, _) = random(1, [inputs, outputs]);
        let (bias, _) = random_row(2, outputs);
        let norms = norms(4, inputs);
        let x = numbers(3, rows * inputs);
        for dtype in DTYPES {
            let packed = Card::pack(weight.clone(), dtype);
            for (activation, norm) in [
                (None, None),
                (Some(Activation::GeluTanh), Some(&norms.ours)),
                (Some(Activation::GeluErf), None),
            ] {
                let product = |rows: std::ops::Range<usize>| {
                    let x = x[rows.start * inputs..rows.end * inputs].to_vec();
                    let x = Card::floats(x, [rows.len(), inputs], &device());
                    let biased = biased(&bias, activation);
                    bits(&values(Card::project(&x, &packed, Around { norm, ..biased })))
                };
                let all = product(0..rows);
                for (row, company) in [(0, 1), (4, 1), (3, 2), (5, 3), (7, 8), (9, 10), (100, 64)] {
                    if row + company > rows {
                        continue;
                    }
                    let some = product(row..row + company);
                    assert_eq!(
                        some,
                        all[row * outputs..(row + company) * outputs],
                        "{dtype}, {company} rows"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_spoils_no_other() {
    let (weight, _) = random(1, [48, 24]);
    let mut x = numbers(3, 3 * 48);
    let packed = Card::pack(weight, Dtype::Bf16);
    let product = |x: &[f32]| {
        let x = Card::floats(x.to_vec(), [3, 48], &device());
        values(Card::project(&x, &packed, Around::NOTHING))
    };
    let before = product(&x);
    x[48 + 7] = f32::NAN;
    let after = product(&x);
    assert_eq!(before[..24], after[..24]);
    assert!(after[24..48].iter().all(|value| value.is_nan()));
    assert_eq!(before[48..], after[48..]);
}

#[test]
fn a_matrix_that_is_stored_the_other_way_round_packs_alike_and_embeds_its_columns() {
    // Inputs in sixteens go on tensor cores where there are some.
    for inputs in [9, 48] {
        assert_packs_alike(inputs, 300);
    }
}

fn assert_packs_alike(inputs: usize, outputs: usize) {
    let (weight, plain) = random(5, [inputs, outputs]);
    let stored = plain_values(plain.clone().transpose());
    let (x, _) = random(6, [2, inputs]);
    let (positions, plain_positions) = random(7, [4, inputs]);
    for dtype in DTYPES {
        let there = Card::pack(weight.clone(), dtype);
        let back = Card::pack_transposed::<()>([inputs, outputs], dtype, &device(), &mut |rows| {
            Ok(stored[rows.start * inputs..rows.end * inputs].to_vec())
        });
        let back = back.unwrap();
        let product = |packed| bits(&values(Card::project(&x, packed, Around::NOTHING)));
        assert_eq!(product(&there), product(&back));
        let (ids, places) = ([299, 0, 31, 32, 7, 7], [0, 1, 2, 3, 0, 3]);
        let rows = values(Card::embed(&back, &positions, &ids, &places));
        let columns = rounded(&plain, dtype).transpose();
        let wanted: Vec<f32> = ids
            .iter()
            .zip(places)
            .flat_map(|(id, place)| {
                let row =
                    |tensor: &Tensor<Flex, 2>, at: u32| tensor.clone().slice([at as usize..at as usize + 1, 0..inputs]);
                plain_values(row(&columns, *id) + row(&plain_positions, place))
            })
            .collect();
        assert_eq!(rows, wanted);
    }
}

#[test]
fn rows_are_taken_in_the_order_that_was_asked_for() {
    let (x, plain_x) = random(1, [5, 150]);
    let plain_x = plain_values(plain_x);
    let some: Vec<f32> = [3, 0, 3]
        .iter()
        .flat_map(|row| &plain_x[row * 150..][..150])
        .copied()
        .collect();
    assert_eq!(values(Card::rows(&x, &[3, 0, 3])), some);
}

#[test]
fn ragged_attention_agrees_with_plain_burn_over_several_steps() {
    // More dimensions than a cube has units, an odd number of them, and the usual.
    for (heads, head_dim) in [(2, 36), (1, 150), (3, 5), (1, 64)] {
        let shape = CacheShape {
            layers: 2,
            blocks: 9,
            heads,
            head_dim,
            dtype: Dtype::F32,
        };
        let width = heads * head_dim;
        let mut ours = Card::new_cache(shape, &device());
        let mut plain = PlainCache::<Flex>::new(shape, &FlexDevice);
        let span = |blocks: &'static [u32], position, len| Span { blocks, position, len };
        // The last sequence begins with a block of the first one's; another one is longer than a cube has units.
        let steps = [
            vec![span(&[4, 1], 0, 33), span(&[0], 0, 1), span(&[8, 7, 5, 6, 3], 0, 140)],
            vec![span(&[0], 1, 1), span(&[4, 1], 33, 5), span(&[8, 7, 5, 6, 3], 140, 1)],
            vec![span(&[4, 2], 32, 3), span(&[0], 2, 1)],
            vec![span(&[0], 3, 1), span(&[4, 2], 35, 1), span(&[8, 7, 5, 6, 3], 141, 1)],
        ];
        for (seed, spans) in steps.iter().enumerate() {
            let tokens = spans.iter().map(|span| span.len).sum();
            for layer in 0..shape.layers {
                let (qkv, plain_qkv) = random((seed * 10 + layer) as u64, [tokens, 3 * width]);
                assert_close(
                    Card::attend(&qkv, &mut ours, layer, spans),
                    plain_attend(&plain_qkv, &mut plain, layer, spans),
                );
            }
        }
    }
}

#[test]
fn a_cache_of_16_bits_holds_what_it_was_given_to_eight_bits() {
    // The usual, too, of which many tokens' values are read at once.
    for (heads, head_dim) in [(3, 7), (2, 64)] {
        let shape = |dtype| CacheShape {
            layers: 1,
            blocks: 2,
            heads,
            head_dim,
            dtype,
        };
        assert!(Card::block_bytes(shape(Dtype::Bf16)) < Card::block_bytes(shape(Dtype::F32)) * 6 / 10);
        let width = heads * head_dim;
        let (qkv, plain_qkv) = random(1, [40, 3 * width]);
        let mut cache = Card::new_cache(shape(Dtype::Bf16), &device());
        let spans = [Span {
            blocks: &[1, 0],
            position: 0,
            len: 40,
        }];
        let ours = Card::attend(&qkv, &mut cache, 0, &spans);
        // Queries stay as they are.
        let queries = plain_qkv.clone().slice([0..40, 0..width]);
        let rest = rounded(&plain_qkv.slice([0..40, width..3 * width]), Dtype::Bf16);
        let plain_qkv = Tensor::cat(vec![queries, rest], 1);
        let mut plain = PlainCache::<Flex>::new(shape(Dtype::F32), &FlexDevice);
        assert_close(ours, plain_attend(&plain_qkv, &mut plain, 0, &spans));
    }
}

/// Two blocks and a half.
const CONTEXT: usize = 80;
const BLOCKS_OF_SEQUENCE: usize = CONTEXT.div_ceil(BLOCK);
const VOCABULARY: usize = 61;

fn config() -> Gpt2Config {
    Gpt2Config {
        vocab_size: VOCABULARY,
        n_positions: CONTEXT,
        n_embd: 48,
        n_layer: 2,
        n_head: 3,
        ..Gpt2Config::named("tiny").unwrap()
    }
}

fn model(dtype: Dtype, blocks: usize) -> Gpt2Runner<Card> {
    Gpt2Runner::new(Gpt2::random(config(), 7, dtype, &device()), blocks)
}

fn row(blocks: impl Iterator<Item = usize>, position: usize, tokens: &[u32]) -> StepRow {
    StepRow {
        blocks: blocks.map(|block| block as u32).collect(),
        position,
        tokens: tokens.to_vec(),
        wants_logits: true,
    }
}

#[test]
fn the_whole_model_computes_what_it_computes_on_the_processor() {
    let tokens: Vec<u32> = (0..70).map(|at| (at * 7 + 3) % VOCABULARY as u32).collect();
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 2e-3)] {
        let fast = Gpt2::<Card>::random(config(), 7, dtype, &card(Order::Fast));
        let mut fast = Gpt2Runner::new(fast, 2 * BLOCKS_OF_SEQUENCE);
        let mut ours = model(dtype, 2 * BLOCKS_OF_SEQUENCE);
        let mut cpu = Gpt2Runner::new(
            Gpt2::<Cpu>::random(config(), 7, dtype, &FlexDevice),
            2 * BLOCKS_OF_SEQUENCE,
        );
        let blocks = || (0..BLOCKS_OF_SEQUENCE).rev();
        for rows in [
            vec![row(blocks(), 0, &tokens[..50])],
            vec![row(blocks(), 50, &tokens[50..51]), row(3..6, 0, &tokens[..3])],
            vec![row(blocks(), 51, &tokens[51..52]), row(3..6, 3, &tokens[3..4])],
        ] {
            let theirs = cpu.step(&rows).unwrap();
            for ours in [ours.step(&rows).unwrap(), fast.step(&rows).unwrap()] {
                assert_eq!(ours.len(), rows.len() * VOCABULARY);
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    assert!((ours - theirs).abs() <= tolerance, "{dtype}: {ours} is not {theirs}");
                }
            }
        }
    }
}

#[test]
fn logits_are_bit_equal_alone_and_in_any_company_blocks_and_chunking() {
    let sequence = |which: usize| -> Vec<u32> {
        // The second one's last token is decoded, as are all of that step: its keys and values are written by who attends.
        let len = [70, 8, 33, 64, 12][which];
        (0..len)
            .map(|at| ((at * 13 + which * 29) % VOCABULARY) as u32)
            .collect()
    };
    let chunks = [40, 1, 7, 33, 5];
    for dtype in DTYPES {
        let alone: Vec<Vec<u32>> = (0..5)
            .map(|which| {
                let row = row(0..BLOCKS_OF_SEQUENCE, 0, &sequence(which));
                bits(&model(dtype, BLOCKS_OF_SEQUENCE).step(&[row]).unwrap())
            })
            .collect();
        let mut crowd = model(dtype, 5 * BLOCKS_OF_SEQUENCE);
        let mut done = [0; 5];
        let mut last = vec![Vec::new(); 5];
        // Ragged: each sequence advances by its own chunk, so that they end at different steps.
        while (0..5).any(|which| done[which] < sequence(which).len()) {
            let (mut rows, mut who) = (Vec::new(), Vec::new());
            for which in 0..5 {
                let tokens: Vec<u32> = sequence(which)[done[which]..]
                    .iter()
                    .take(chunks[which])
                    .copied()
                    .collect();
                if tokens.is_empty() {
                    continue;
                }
                // Every fifth block, from the last one on.
                let blocks = (0..BLOCKS_OF_SEQUENCE).rev().map(|block| block * 5 + which);
                rows.push(row(blocks, done[which], &tokens));
                done[which] += tokens.len();
                who.push(which);
            }
            let logits = crowd.step(&rows).unwrap();
            for (row, which) in logits.chunks_exact(VOCABULARY).zip(who) {
                last[which] = bits(row);
            }
        }
        assert!(alone == last, "{dtype}");
    }
}

/// The counters after some work.
fn counted(work: impl FnOnce()) -> String {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, work);
    recorder.handle().render()
}

#[test]
fn a_decode_step_starts_five_kernels_a_layer_on_tensor_cores_and_else_seven_and_is_read_back_once() {
    let mut model = model(Dtype::Bf16, 2);
    let step = |position| [row(0..1, position, &[1]), row(1..2, position, &[2])];
    // Norms are part of the products on tensor cores.
    let of_model = if has_tensor_cores(&device(), Dtype::Bf16) {
        5 * config().n_layer + 2
    } else {
        7 * config().n_layer + 3
    };
    let assert_counts = |told: &str, launches: usize, readbacks: usize| {
        for (name, count) in [("kernel_launches", launches), ("readbacks", readbacks)] {
            let line = format!("claimcheck_engine_{name}_total {count}\n");
            assert!(told.contains(&line), "{line} is not in {told}");
        }
    };
    model.step(&step(0)).unwrap();
    let told = counted(|| {
        model.step(&step(1)).unwrap();
    });
    assert_counts(&told, of_model, 1);
    let told = counted(|| {
        let drawn = model.draw(&step(2), &[Draw::GREEDY, Draw::GREEDY]).unwrap();
        assert!(drawn.iter().all(|one| matches!(one, Drawn::Token(_, None))));
    });
    assert_counts(&told, of_model + 2, 1);
    // By chance from all tokens, then from the likeliest.
    for (position, top_p, kernels) in [(3, 1.0, 3), (4, 0.5, 4)] {
        let by_chance = Draw {
            method: Method::Random {
                temperature: 1.0,
                top_k: None,
                top_p,
                min_p: 0.0,
            },
            uniform: 0.3,
            ..Draw::GREEDY
        };
        let told = counted(|| {
            model.draw(&step(position), &[Draw::GREEDY, by_chance]).unwrap();
        });
        assert_counts(&told, of_model + kernels, 1);
    }
    // Edits are made and taken back, and likely tokens told.
    let everything = Draw {
        edits: vec![Edit {
            token: 3,
            repetition: Some(1.5),
            less: None,
            bias: Some(1.0),
        }],
        top: Some(5),
        ..Draw::GREEDY
    };
    let told = counted(|| {
        model.draw(&step(5), &[Draw::GREEDY, everything]).unwrap();
    });
    assert_counts(&told, of_model + 6, 1);
}

#[test]
fn draws_that_do_not_fit_the_rows_or_the_vocabulary_are_refused() {
    let mut model = model(Dtype::F32, 2);
    let rows = [row(0..1, 0, &[1])];
    let beyond = Draw {
        edits: vec![Edit {
            token: VOCABULARY as u32,
            repetition: None,
            less: None,
            bias: Some(1.0),
        }],
        ..Draw::GREEDY
    };
    for draws in [vec![], vec![Draw::GREEDY, Draw::GREEDY], vec![beyond]] {
        let error = model.draw(&rows, &draws).unwrap_err();
        assert!(matches!(error, StepError::OutOfBounds(_)), "{error}");
    }
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    /// Of the last positions.
    logits: Vec<Vec<f32>>,
}

#[test]
fn the_models_of_transformers_compute_what_they_compute_there() {
    for name in ["plain", "exact_gelu", "untied"] {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/parity")
            .join(name);
        let expected: Expected = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let files = ModelFiles {
            name: name.to_owned(),
            commit: None,
            config: folder.join("config.json"),
            weights: folder.join("model.safetensors"),
            tokenizer: folder.join("tokenizer.json"),
        };
        let mut model = Gpt2Runner::new(Gpt2::<Card>::load(&files, Dtype::F32, &device()).unwrap(), 1);
        let blocks = || 0..expected.ids.len().div_ceil(BLOCK);
        let first = expected.ids.len() - expected.logits.len();
        model.step(&[row(blocks(), 0, &expected.ids[..first])]).unwrap();
        for (at, theirs) in expected.logits.iter().enumerate() {
            let at_token = &expected.ids[first + at..=first + at];
            let ours = model.step(&[row(blocks(), first + at, at_token)]).unwrap();
            let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-4, "{name}, position {}: off by {worst}", first + at);
        }
    }
}
