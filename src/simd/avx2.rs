//! AVX2 with FMA: eight f32 a vector, sixteen registers.
//!
//! `BF16`: matrices that are packed are rounded to bf16, which f32 words hold.

use std::arch::x86_64::*;

use super::exp::{EIGHTHS, NEAR};
use super::tile::{Left, Out, Right};
use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx2<const BF16: bool>;

/// The f32 bits of x rounded to the nearest bf16, ties to even. A NaN stays one: its rounding may only carry into the
/// sign if all its 15 upper mantissa bits are set, which no arithmetic result has.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn round(x: __m256) -> __m256 {
    let x = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
    let x = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

impl<const BF16: bool> Simd for Avx2<BF16> {
    type V = __m256;
    type W = __m256;
    const LANES: usize = 8;
    const HALF: bool = BF16;
    const PAIR: usize = 1;
    const COLS: usize = 2;

    super::x86::float_functions!(
        "avx2,fma",
        __m256,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_fmsub_ps,
        _mm256_max_ps
    );
    super::x86::entry_points!("avx2,fma");

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn any_above(a: __m256, b: __m256) -> bool {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn exp2(x: __m256) -> __m256 {
        let x = _mm256_max_ps(_mm256_set1_ps(-127.0), x); // 2^-127 comes out as 0 below
        let grid = _mm256_set1_ps(1.5 * (1 << 20) as f32); // where neighbouring f32 are an eighth apart
        let sum = _mm256_add_ps(x, grid); // its last bits count the eighths, in two's complement
        let near = _mm256_sub_ps(x, _mm256_sub_ps(sum, grid)); // at most 1/16
        let eighths = _mm256_castps_si256(sum);
        // SAFETY: the array is a vector.
        let table = unsafe { _mm256_loadu_si256(EIGHTHS.as_ptr().cast()) };
        let bits = _mm256_add_epi32(_mm256_permutevar8x32_epi32(table, eighths), _mm256_slli_epi32::<20>(eighths));
        let power = _mm256_castsi256_ps(bits);
        let p = _mm256_fmadd_ps(_mm256_set1_ps(NEAR[2]), near, _mm256_set1_ps(NEAR[1]));
        let p = _mm256_fmadd_ps(p, near, _mm256_set1_ps(NEAR[0]));
        _mm256_fmadd_ps(_mm256_mul_ps(power, near), p, power)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn element(x: __m256) -> __m256 {
        if BF16 { round(x) } else { x }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn words(p: *const u32) -> __m256 {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn word(p: *const u32) -> __m256 {
        // SAFETY: the caller's pointer holds a word.
        unsafe { _mm256_broadcast_ss(&*p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot(acc: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, acc)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn put_row(p: *mut u32, a: __m256, b: __m256) {
        // SAFETY: the caller's pointer holds two vectors.
        unsafe { Self::put_rows(p, 8, a, b) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn put_rows(p: *mut u32, stride: usize, a: __m256, b: __m256) {
        // SAFETY: the caller's pointer holds a vector at 0 and at `stride`.
        unsafe {
            _mm256_storeu_ps(p.cast(), a);
            _mm256_storeu_ps(p.add(stride).cast(), b);
        }
    }
}
