//! Implements [`Simd`](super::vector::Simd) for any CPU, with arrays of four f32 that the compiler turns into whatever
//! vectors the target offers.
//!
//! `BF16`: matrices that are packed are rounded to bf16, which f32 words hold. Multiply-add is two roundings here,
//! because a fused one is a function call on targets without it.

use super::exp::two_to_fraction;
use super::tile::{Left, Out, Right};
use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable<const BF16: bool>;

type V = [f32; 4];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl<const BF16: bool> Simd for Portable<BF16> {
    type V = V;
    type W = V;
    const LANES: usize = 4;
    const HALF: bool = BF16;
    const PAIR: usize = 1;
    const COLS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: V) {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { p.cast::<V>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: V, b: V, c: V) -> V {
        map2(map2(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    unsafe fn mul_sub(a: V, b: V, c: V) -> V {
        map2(map2(a, b, |a, b| a * b), c, |ab, c| ab - c)
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn any_above(a: V, b: V) -> bool {
        a[0] > b[0] || a[1] > b[1] || a[2] > b[2] || a[3] > b[3]
    }
    #[inline(always)]
    unsafe fn exp2(x: V) -> V {
        // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        // SAFETY: this code needs no features.
        unsafe {
            let x = Self::max([-126.5; 4], x); // which comes out as 0 below
            let z = map2(x, [0.5; 4], |x, half| (x - half) + MAGIC);
            let p = two_to_fraction::<Self>(map2(x, z, |x, z| x - (z - MAGIC)));
            map2(p, z, |p, z| p * f32::from_bits((z.to_bits() << 23).wrapping_add(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn element(x: V) -> V {
        if BF16 { map2(x, x, |x, _| super::round_to_bf16(x)) } else { x }
    }
    #[inline(always)]
    unsafe fn words(p: *const u32) -> V {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { Self::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn word(p: *const u32) -> V {
        // SAFETY: the caller's pointer holds a word.
        unsafe { [p.cast::<f32>().read(); 4] }
    }
    #[inline(always)]
    unsafe fn dot(acc: V, a: V, b: V) -> V {
        // SAFETY: this code needs no features.
        unsafe { Self::mul_add(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn put_row(p: *mut u32, a: V, b: V) {
        // SAFETY: the caller's pointer holds two vectors.
        unsafe { Self::put_rows(p, 4, a, b) }
    }
    #[inline(always)]
    unsafe fn put_rows(p: *mut u32, stride: usize, a: V, b: V) {
        // SAFETY: the caller's pointer holds a vector at 0 and at `stride`.
        unsafe {
            Self::store(p.cast(), a);
            Self::store(p.add(stride).cast(), b);
        }
    }
    unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
        // SAFETY: same features.
        unsafe { super::tile::product::<Self, ROW>(steps, a, b, out) }
    }
    #[inline(always)]
    unsafe fn run(kernel: impl Kernel) {
        // SAFETY: this code needs no features.
        unsafe { kernel.run::<Self>() }
    }
}
