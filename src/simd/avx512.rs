//! AVX-512: sixteen f32 a vector, thirty-two registers.
//!
//! `BF16` rounds P and dS to bf16, for input that is bf16 widened to f32 words, on CPUs without bf16 dot products.

use std::arch::x86_64::*;

use super::exp::two_to_fraction;
use super::tile::{Left, Out, Right};
use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// 2^x. `vreduceps` leaves x - floor(x), `vscalefps` multiplies by 2^floor(x), with 0 for what is too small; both take
/// -inf.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn exp2<S: Simd<V = __m512>>(x: __m512) -> __m512 {
    const FLOOR: i32 = _MM_FROUND_TO_NEG_INF;
    // SAFETY: S is an instruction set with these features.
    unsafe { _mm512_scalef_ps(two_to_fraction::<S>(_mm512_reduce_ps::<FLOOR>(x)), x) }
}

/// The f32 bits of x rounded to the nearest bf16, ties to even; NaN as on AVX2.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn round(x: __m512) -> __m512 {
    let x = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
    let x = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
}

/// [`Simd::transpose`] of 16 x 16 words: by words, by pairs of words, and twice by quarters of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
    // SAFETY: the caller's pointers hold 16 rows of 16 words, these strides apart.
    unsafe {
        let row = |i: usize| _mm512_loadu_si512(from.add(i * from_stride).cast());
        let mut quads = [_mm512_setzero_si512(); 16]; // [4 g + j]: of rows 4 g.., column 4 q + j in quarter q
        for g in 0..4 {
            let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
            let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            quads[4 * g] = _mm512_unpacklo_epi64(ab0, cd0);
            quads[4 * g + 1] = _mm512_unpackhi_epi64(ab0, cd0);
            quads[4 * g + 2] = _mm512_unpacklo_epi64(ab1, cd1);
            quads[4 * g + 3] = _mm512_unpackhi_epi64(ab1, cd1);
        }
        for j in 0..4 {
            let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
            // Quarters 0 and 2 of two groups of rows, then quarters 1 and 3.
            let (ab0, cd0) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
            let (ab1, cd1) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
            let store = |column: usize, x| _mm512_storeu_si512(to.add(column * to_stride).cast(), x);
            store(j, _mm512_shuffle_i32x4::<0x88>(ab0, cd0));
            store(4 + j, _mm512_shuffle_i32x4::<0x88>(ab1, cd1));
            store(8 + j, _mm512_shuffle_i32x4::<0xdd>(ab0, cd0));
            store(12 + j, _mm512_shuffle_i32x4::<0xdd>(ab1, cd1));
        }
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type W = __m512;
    const LANES: usize = 16;
    const HALF: bool = BF16;
    const PAIR: usize = 1;
    const COLS: usize = 4;

    super::x86::float_functions!(
        "avx512f,avx512dq",
        __m512,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_fmsub_ps,
        _mm512_max_ps
    );
    super::x86::entry_points!("avx512f,avx512dq");

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn any_above(a: __m512, b: __m512) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn exp2(x: __m512) -> __m512 {
        // SAFETY: same features.
        unsafe { exp2::<Self>(x) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn element(x: __m512) -> __m512 {
        if BF16 { round(x) } else { x }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn words(p: *const u32) -> __m512 {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn word(p: *const u32) -> __m512 {
        // SAFETY: the caller's pointer holds a word.
        unsafe { _mm512_set1_ps(*p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn dot(acc: __m512, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, acc)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn put_row(p: *mut u32, a: __m512, b: __m512) {
        // SAFETY: the caller's pointer holds two vectors.
        unsafe { Self::put_rows(p, 16, a, b) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn put_rows(p: *mut u32, stride: usize, a: __m512, b: __m512) {
        // SAFETY: the caller's pointer holds a vector at 0 and at `stride`.
        unsafe {
            _mm512_storeu_ps(p.cast(), a);
            _mm512_storeu_ps(p.add(stride).cast(), b);
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: same features; the caller's pointers.
        unsafe { transpose(from, from_stride, to, to_stride) }
    }
}
