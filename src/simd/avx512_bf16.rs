//! AVX-512 BF16: words are pairs of bf16, and `vdpbf16ps` multiplies and adds 32 of them at once, twice the f32 rate.
//! With `AMX` products run on the matrix unit beside it.

use std::arch::x86_64::*;

use super::amx;
use super::tile::{Left, Out, Right};
use super::vector::{Beside, Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16<const AMX: bool>;

impl<const AMX: bool> Simd for Avx512Bf16<AMX> {
    type V = __m512;
    type W = __m512bh;
    const LANES: usize = 16;
    const HALF: bool = true;
    const PAIR: usize = 2;
    const MATRIX: bool = AMX;
    const COLS: usize = if AMX { 2 } else { 4 };

    super::x86::float_functions!(
        "avx512f,avx512bw,avx512dq,avx512bf16",
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

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn any_above(a: __m512, b: __m512) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn exp2(x: __m512) -> __m512 {
        // SAFETY: same features.
        unsafe { super::avx512::exp2::<Self>(x) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn words(p: *const u32) -> __m512bh {
        // SAFETY: the caller's pointer holds a vector; any bits are a __m512bh.
        unsafe { std::mem::transmute(_mm512_loadu_si512(p.cast())) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn word(p: *const u32) -> __m512bh {
        // SAFETY: the caller's pointer holds a word; any bits are a __m512bh.
        unsafe { std::mem::transmute(_mm512_set1_epi32(*p.cast())) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn dot(acc: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        _mm512_dpbf16_ps(acc, a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn put_row(p: *mut u32, a: __m512, b: __m512) {
        // SAFETY: the caller's pointer holds one vector of words; the result's lower half is of the second argument.
        unsafe { _mm512_storeu_si512(p.cast(), std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a))) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn put_rows(p: *mut u32, _stride: usize, a: __m512, b: __m512) {
        const WEAVE: [u16; 32] = {
            let mut index = [0; 32];
            let mut lane = 0;
            while lane < 16 {
                index[2 * lane] = lane as u16;
                index[2 * lane + 1] = 16 + lane as u16;
                lane += 1;
            }
            index
        };
        // SAFETY: the caller's pointer holds one vector of words.
        unsafe {
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)); // a's sixteen, then b's
            let weave = _mm512_loadu_si512(WEAVE.as_ptr().cast());
            _mm512_storeu_si512(p.cast(), _mm512_permutexvar_epi16(weave, both));
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: same features; the caller's pointers.
        unsafe { super::avx512::transpose(from, from_stride, to, to_stride) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
        // SAFETY: same features; `run` has configured the tiles.
        unsafe {
            match AMX {
                true => amx::product(steps, a, b, out, &mut ()),
                false => super::tile::product::<Self, ROW>(steps, a, b, out),
            }
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn product_beside<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out, work: &mut impl Beside) {
        // SAFETY: as above.
        unsafe { if AMX { amx::product(steps, a, b, out, work) } else { Self::product(steps, a, b, out) } }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn run(kernel: impl Kernel) {
        // SAFETY: same features; tiles are used within `run` alone.
        unsafe {
            let _tiles = AMX.then(|| amx::Tiles::configure());
            kernel.run::<Self>()
        }
    }
}
