//! Every set of instructions that this machine has, against plain arithmetic, and a row alone against the same row among
//! others.

use claimcheck_common::domain::Dtype;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::{Activation, CacheShape, Span};
use super::attention::Cache;
use super::panels::Panels;
use super::{math, norm};

/// `Scalar` everywhere, and on x86-64 what else there is.
fn all() -> Vec<Arch> {
    let mut all = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(pulp::x86::V3::try_new().map(Arch::V3));
        all.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    all
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| generator.random_range(-1.0..1.0)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows, inputs and outputs around every edge of blocks, words and panels.
const SHAPES: [(usize, usize, usize); 6] = [
    (1, 1, 1),
    (3, 33, 31),
    (8, 64, 32),
    (9, 30, 65),
    (13, 128, 96),
    (17, 7, 40),
];

/// `x × w` in f64, and the sum of the magnitudes of its products, by which an error is to be judged.
fn product(x: &[f32], w: &[f32], inputs: usize, outputs: usize) -> Vec<(f64, f64)> {
    let element = |x: &[f32], column: usize| {
        let products = x.iter().zip(w.iter().skip(column).step_by(outputs));
        products.fold((0.0, 0.0), |(sum, magnitude), (x, w)| {
            let product = f64::from(*x) * f64::from(*w);
            (sum + product, magnitude + product.abs())
        })
    };
    let rows = x.chunks_exact(inputs);
    rows.flat_map(|x| (0..outputs).map(move |column| element(x, column)))
        .collect()
}

fn assert_near(ours: &[f32], wanted: &[(f64, f64)], share: f64, what: &str) {
    assert_eq!(ours.len(), wanted.len());
    for (ours, (wanted, magnitude)) in ours.iter().zip(wanted) {
        let error = (f64::from(*ours) - wanted).abs();
        assert!(error <= share * magnitude + 1e-12, "{what}: {ours} is not {wanted}");
    }
}

#[test]
fn products_agree_with_plain_arithmetic() {
    for arch in all() {
        for (rows, inputs, outputs) in SHAPES {
            let (x, w) = (random(1, rows * inputs), random(2, inputs * outputs));
            let rounded: Vec<f32> = w.iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
            let f32 = Panels::pack(&w, inputs, outputs, Dtype::F32).multiply(arch, &x, None, None);
            assert_near(&f32, &product(&x, &w, inputs, outputs), 1e-6, "f32");
            let bf16 = Panels::pack(&w, inputs, outputs, Dtype::Bf16).multiply(arch, &x, None, None);
            assert_near(&bf16, &product(&x, &rounded, inputs, outputs), 1e-6, "bf16");
        }
    }
}

#[test]
fn eight_bit_products_are_exact_sums_of_rounded_values_on_every_set_of_instructions() {
    for (rows, inputs, outputs) in SHAPES {
        // The greatest magnitudes are 127 quarters and 127 eighths: the scales are exact, and so is everything.
        let integers = |seed: u64, len: usize, by: f32| -> Vec<f32> {
            random(seed, len)
                .iter()
                .map(|value| (value * 127.0).round() * by)
                .collect()
        };
        let (mut x, mut w) = (integers(3, rows * inputs, 0.25), integers(4, inputs * outputs, 0.125));
        x.chunks_exact_mut(inputs).for_each(|row| row[0] = -127.0 * 0.25);
        w[..outputs].fill(127.0 * 0.125);
        let packed = Panels::pack(&w, inputs, outputs, Dtype::Int8);
        for arch in all() {
            let ours = packed.multiply(arch, &x, None, None);
            assert_near(&ours, &product(&x, &w, inputs, outputs), 1e-7, "int8");
        }
    }
}

#[test]
fn a_row_is_bit_equal_alone_and_among_others() {
    for arch in all() {
        for (rows, inputs, outputs) in SHAPES {
            let (x, w, bias) = (
                random(5, rows * inputs),
                random(6, inputs * outputs),
                random(7, outputs),
            );
            for dtype in Dtype::ALL {
                let packed = Panels::pack(&w, inputs, outputs, dtype);
                let activation = Some(Activation::GeluTanh);
                let together = packed.multiply(arch, &x, Some(&bias), activation);
                for (x, together) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                    let alone = packed.multiply(arch, x, Some(&bias), activation);
                    assert_eq!(bits(&alone), bits(together), "{dtype} {rows} × {inputs} × {outputs}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none_in_its_own_row() {
    let shape = CacheShape {
        layers: 1,
        blocks: 2,
        heads: 1,
        head_dim: 20,
        dtype: Dtype::F32,
    };
    for arch in all() {
        for dtype in Dtype::ALL {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = random(8, 2 * 40);
                x[7] = bad;
                let packed = Panels::pack(&random(9, 40 * 33), 40, 33, dtype);
                let y = packed.multiply(arch, &x, None, Some(Activation::GeluTanh));
                assert!(y[33..].iter().all(|value| value.is_finite()), "{dtype}");
                // Minus infinity is nothing after a GELU; some of a row is enough to fail it.
                assert!(y[..33].iter().any(|value| !value.is_finite()), "{dtype}");
            }
        }
        let mut qkv = random(10, 2 * 60);
        qkv[3] = f32::NAN;
        let spans = [[0], [1]];
        let spans = spans.each_ref().map(|blocks| Span {
            blocks,
            position: 0,
            len: 1,
        });
        let mixed = Cache::new(shape).attend(arch, &qkv, 0, &spans);
        assert!(mixed[..20].iter().all(|value| value.is_nan()));
        assert!(mixed[20..].iter().all(|value| value.is_finite()));
    }
}

struct Map<'a, F> {
    values: &'a mut [f32],
    function: F,
}

/// A function of vectors of any width.
trait OfVectors {
    fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s;
}

struct Exp;

impl OfVectors for Exp {
    #[inline(always)]
    fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        math::exp(simd, x)
    }
}

impl OfVectors for Activation {
    #[inline(always)]
    fn call<S: Simd>(&self, simd: S, x: S::f32s) -> S::f32s {
        math::activate(simd, *self, x)
    }
}

impl<F: OfVectors> WithSimd for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for value in S::as_mut_simd_f32s(self.values).0 {
            *value = self.function.call(simd, *value);
        }
    }
}

fn map(arch: Arch, values: &[f32], function: impl OfVectors) -> Vec<f32> {
    let mut values = values.to_vec();
    arch.dispatch(Map {
        values: &mut values,
        function,
    });
    values
}

/// 16 · 1,100 values of −88 to 88.
fn range() -> Vec<f32> {
    (-8_800..8_800).map(|value| value as f32 / 100.0).collect()
}

#[test]
fn the_exponential_is_right_to_a_few_units_in_the_last_place() {
    for arch in all() {
        for (x, ours) in range().iter().zip(map(arch, &range(), Exp)) {
            let wanted = f64::from(x.clamp(-87.0, 87.0)).exp();
            assert!(
                (f64::from(ours) / wanted - 1.0).abs() < 3e-7,
                "e^{x} is {wanted} and not {ours}"
            );
        }
        assert!(map(arch, &[f32::NAN; 16], Exp).iter().all(|value| value.is_nan()));
    }
}

#[test]
fn both_gelus_agree_with_their_definitions() {
    for arch in all() {
        for (index, x) in range().iter().enumerate() {
            let wide = f64::from(*x);
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3))).tanh();
            let erf = libm::erf(wide / std::f64::consts::SQRT_2);
            for (activation, inner) in [(Activation::GeluTanh, tanh), (Activation::GeluErf, erf)] {
                let start = index / 16 * 16;
                let ours = map(arch, &range()[start..start + 16], activation)[index - start];
                let wanted = 0.5 * wide * (1.0 + inner);
                let error = (f64::from(ours) - wanted).abs();
                assert!(
                    error <= 1e-6 * wanted.abs() + 1e-7,
                    "GELU of {x} is {wanted} and not {ours}"
                );
            }
        }
    }
}

#[test]
fn norms_agree_with_plain_arithmetic() {
    for arch in all() {
        for width in [3, 32, 70] {
            let (x, gamma, beta) = (random(11, 2 * width), random(12, width), random(13, width));
            let ours = norm::rows(arch, &x, &gamma, &beta, 1e-5);
            for (x, ours) in x.chunks_exact(width).zip(ours.chunks_exact(width)) {
                let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
                let mean = x.iter().sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for (((x, ours), gamma), beta) in x.iter().zip(ours).zip(&gamma).zip(&beta) {
                    let wanted = (x - mean) / (variance + 1e-5).sqrt() * f64::from(*gamma) + f64::from(*beta);
                    assert!((f64::from(*ours) - wanted).abs() < 1e-5);
                }
            }
        }
    }
}
