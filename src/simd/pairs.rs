//! Emulates pairs of bf16 in a word, as AVX-512 BF16 has them, on any CPU, so that tests reach the code for pairs on
//! CPUs without those instructions, and with `TILES` the code for a matrix unit. Not for work: it is slower than
//! [`super::portable`].

use super::portable::Portable;
use super::tile::{Left, Out, Right};
use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Pairs<const TILES: bool>;

/// The f32 instruction set that it is made of.
type Floats = Portable<false>;
type V = <Floats as Simd>::V;
type W = [u32; 4];

/// Both values rounded to bf16, `a` in the lower half.
#[inline(always)]
fn pair(a: f32, b: f32) -> u32 {
    super::round_to_bf16(a).to_bits() >> 16 | super::round_to_bf16(b).to_bits()
}

/// The values of a word.
#[inline(always)]
fn values(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

/// A product as a matrix unit takes it, word by word.
unsafe fn by_rows<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
    assert!(a.step == 1 && out.rows.is_multiple_of(32) && steps.is_multiple_of(16) && out.width.is_multiple_of(4));
    for (row, column) in (0..out.rows).flat_map(|row| (0..out.width).map(move |column| (row, column))) {
        // SAFETY: the caller's promise; a column block is `b.step` columns.
        unsafe {
            let sum = (0..steps).fold(0.0, |sum, step| {
                let [a0, a1] = values(*a.words.add(row * a.row + step));
                let right = column / b.step * b.column_block + step * b.step + column % b.step;
                let [b0, b1] = values(*b.words.add(right));
                sum + a0 * b0 + a1 * b1
            });
            let to = out.values.add(row * out.stride + column);
            *to = if out.add { *to + sum } else { sum };
        }
    }
}

impl<const TILES: bool> Simd for Pairs<TILES> {
    type V = V;
    type W = W;
    const LANES: usize = 4;
    const HALF: bool = true;
    const PAIR: usize = 2;
    const MATRIX: bool = TILES;
    const COLS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        // SAFETY: this code needs no features, here and below.
        unsafe { Floats::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { Floats::load(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: V) {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { Floats::store(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::add(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::sub(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::mul(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: V, b: V, c: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::mul_add(a, b, c) }
    }
    #[inline(always)]
    unsafe fn mul_sub(a: V, b: V, c: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::mul_sub(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::max(a, b) }
    }
    #[inline(always)]
    unsafe fn any_above(a: V, b: V) -> bool {
        // SAFETY: no features.
        unsafe { Floats::any_above(a, b) }
    }
    #[inline(always)]
    unsafe fn exp2(x: V) -> V {
        // SAFETY: no features.
        unsafe { Floats::exp2(x) }
    }
    #[inline(always)]
    unsafe fn words(p: *const u32) -> W {
        // SAFETY: the caller's pointer holds a vector.
        unsafe { p.cast::<W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn word(p: *const u32) -> W {
        // SAFETY: the caller's pointer holds a word.
        unsafe { [p.read(); 4] }
    }
    #[inline(always)]
    unsafe fn dot(acc: V, a: W, b: W) -> V {
        std::array::from_fn(|i| {
            let ([a0, a1], [b0, b1]) = (values(a[i]), values(b[i]));
            acc[i] + a0 * b0 + a1 * b1
        })
    }
    #[inline(always)]
    unsafe fn put_row(p: *mut u32, a: V, b: V) {
        let words = [pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1]), pair(b[2], b[3])];
        // SAFETY: the caller's pointer holds one vector of words.
        unsafe { p.cast::<W>().write_unaligned(words) }
    }
    #[inline(always)]
    unsafe fn put_rows(p: *mut u32, _stride: usize, a: V, b: V) {
        // SAFETY: the caller's pointer holds one vector of words.
        unsafe { p.cast::<W>().write_unaligned(std::array::from_fn(|i| pair(a[i], b[i]))) }
    }
    unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
        // SAFETY: the caller's promise.
        unsafe { if TILES { by_rows(steps, a, b, out) } else { super::tile::product::<Self, ROW>(steps, a, b, out) } }
    }
    #[inline(always)]
    unsafe fn run(kernel: impl Kernel) {
        // SAFETY: no features.
        unsafe { kernel.run::<Self>() }
    }
}
