//! Exact sums of products of eight-bit integers by the instructions that x86-64 has for them.
//!
//! With `mapped.rs` the only place with `unsafe` here: calling a function of instructions that the processor was found to have.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256i, __m512i, _mm512_dpbusd_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_xor_si512,
};

use pulp::NullaryFnOnce;
use pulp::bytemuck::cast;
use pulp::x86::V3;

use super::int8::Sums;
use super::lines::{Line, WIDTH};

/// AVX-512 VNNI: four products and their sum in one instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vnni(());

impl Vnni {
    /// `None` where the processor does not have it.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
    }

    /// The sums over `lines` of `x [lines][R]`, each row of which sums up to `of_rows`.
    pub(super) fn sums<const R: usize>(self, lines: &[Line], x: &[[u32; R]], of_rows: [i32; R]) -> [Sums; R] {
        let Self(()) = self;
        // SAFETY: `detect` alone makes a `Vnni`, and only where the processor has both features.
        unsafe { vnni(lines, x, of_rows) }
    }
}

/// The instruction multiplies unsigned with signed bytes, so that weights are lifted by 128; what that adds to a sum, 128
/// times the sum of the row, is taken off at the start.
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni<const R: usize>(lines: &[Line], x: &[[u32; R]], of_rows: [i32; R]) -> [Sums; R] {
    let raise = _mm512_set1_epi32(i32::from_ne_bytes([0x80; 4]));
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for (sums, of_row) in sums.iter_mut().zip(of_rows) {
        *sums = [_mm512_set1_epi32(-128 * of_row); 2];
    }
    for (line, x) in lines.iter().zip(x) {
        let [left, right]: [__m512i; 2] = cast(*line);
        let (left, right) = (_mm512_xor_si512(left, raise), _mm512_xor_si512(right, raise));
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = _mm512_set1_epi32(x.cast_signed());
            sums[0] = _mm512_dpbusd_epi32(sums[0], left, x);
            sums[1] = _mm512_dpbusd_epi32(sums[1], right, x);
        }
    }
    sums.map(cast)
}

/// AVX2: products of bytes in pairs, then pairs of pairs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(pub(super) V3);

impl Avx2 {
    /// The sums over `lines` of `x [lines][R]`.
    pub(super) fn sums<const R: usize>(self, lines: &[Line], x: &[[u32; R]]) -> [Sums; R] {
        self.0.vectorize(Avx2Sums { v3: self.0, lines, x })
    }
}

struct Avx2Sums<'a, const R: usize> {
    v3: V3,
    lines: &'a [Line],
    x: &'a [[u32; R]],
}

impl<const R: usize> NullaryFnOnce for Avx2Sums<'_, R> {
    type Output = [Sums; R];

    /// The instruction multiplies unsigned with signed bytes, so that the sign of a weight goes to the input. Two products
    /// of at most 127 · 127 fit the sixteen bits of their sum.
    #[inline(always)]
    fn call(self) -> [Sums; R] {
        let (avx, avx2) = (self.v3.avx, self.v3.avx2);
        let ones = avx._mm256_set1_epi16(1);
        let mut all = [[0; WIDTH]; R];
        for half in 0..2 {
            let mut sums = [[avx._mm256_setzero_si256(); 2]; R];
            for (line, x) in self.lines.iter().zip(self.x) {
                let halves: [[__m256i; 2]; 2] = cast(*line);
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = avx._mm256_set1_epi32(x.cast_signed());
                    for (sum, weights) in sums.iter_mut().zip(halves[half]) {
                        let pairs =
                            avx2._mm256_maddubs_epi16(avx2._mm256_abs_epi8(weights), avx2._mm256_sign_epi8(x, weights));
                        *sum = avx2._mm256_add_epi32(*sum, avx2._mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            for (all, sums) in all.iter_mut().zip(sums) {
                all[half * WIDTH / 2..][..WIDTH / 2].copy_from_slice(&cast::<_, [i32; WIDTH / 2]>(sums));
            }
        }
        all
    }
}
