//! Functions of a whole vector at once. A number that is none stays none, so that it fails its row and no other.

use pulp::Simd;

use super::super::Activation;

/// eˣ, within some 2 ulp where |x| ≤ 87; beyond it, the value at the bound.
///
/// Cephes' `expf` (Moshier): x = n ln 2 + r with |r| ≤ ½ ln 2, a polynomial of r, and n added to the exponent.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 1.5 · 2²³: a sum with it is rounded to an integer, which then stands in its low bits.
    const INTEGER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let constant = |value| simd.splat_f32s(value);
    // No minimum and maximum: they would make a number of what is none.
    let (low, high) = (constant(-87.0), constant(87.0));
    let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
    let x = simd.select_f32s(simd.less_than_f32s(high, x), high, x);
    let shifted = simd.mul_add_e_f32s(x, constant(std::f32::consts::LOG2_E), constant(INTEGER));
    let n = simd.sub_f32s(shifted, constant(INTEGER));
    let r = simd.mul_add_e_f32s(n, constant(-LN_2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, constant(-LN_2_LOW), r);
    let mut sum = constant(1.987_569_1e-4);
    for coefficient in POLYNOMIAL {
        sum = simd.mul_add_e_f32s(sum, r, constant(coefficient));
    }
    let y = simd.add_f32s(simd.mul_add_e_f32s(sum, simd.mul_f32s(r, r), r), constant(1.0));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(y), exponent))
}

/// The activation of a vector. Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
#[inline(always)]
pub(super) fn activate<S: Simd>(simd: S, activation: Activation, x: S::f32s) -> S::f32s {
    match activation {
        Activation::GeluTanh => gelu_tanh(simd, x),
        Activation::GeluErf => {
            let mut values = [x];
            let scalars: &mut [f32] = pulp::bytemuck::cast_slice_mut(&mut values);
            for value in scalars {
                *value = gelu_erf(*value);
            }
            values[0]
        }
    }
}

/// The approximation, ½ x (1 + tanh u) = x / (1 + e⁻²ᵘ) with u = √(2/π) (x + 0.044715 x³).
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const TWICE: f32 = -2.0 * 0.797_884_6;
    let constant = |value| simd.splat_f32s(value);
    let square = simd.mul_f32s(x, x);
    let inner = simd.mul_add_e_f32s(square, constant(TWICE * 0.044_715), constant(TWICE));
    let power = exp(simd, simd.mul_f32s(inner, x));
    simd.div_f32s(x, simd.add_f32s(constant(1.0), power))
}

/// Exactly.
fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))) as f32
}
