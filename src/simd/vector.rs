//! Defines the trait that an instruction set implements to run the kernels: a few f32 operations, and the dot product
//! of *words*.
//!
//! A word is the 32-bit unit of every packed panel: one f32, or a pair of neighbouring bf16 along the dimension that a
//! product contracts. `dot(acc, a, b)` adds the product of words lane by lane, so one set of kernels serves both kinds:
//! the pair is what a bf16 dot-product unit multiplies and adds in one instruction. Instruction sets without one hold
//! bf16 input as f32 words whose values were rounded to bf16: same inputs, f32 sums. What attention makes between its
//! products (P and dS) is rounded only where it must become half a pair.
//!
//! The layer knows nothing of attention: [`super::tile`] builds matrix products on it.

// SAFETY (of the whole layer): the functions of an implementation need the CPU features that it names. They are reached
// only through `Simd::run`, and `super::Isa` lets an implementation run only on a CPU that has its features.

use super::operands::{Left, Out, Right};

/// Rows of a panel by columns: keys or queries that are lanes together, on every instruction set.
pub(crate) const WIDTH: usize = 64;

/// One instruction set. All functions are unsafe for the features they need; pointers need no alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector of `LANES` f32.
    type V: Copy;
    /// A vector of `LANES` words.
    type W: Copy;
    /// f32 (or words) in a vector: at most 16, and [`WIDTH`] is an even number of vectors.
    const LANES: usize;
    /// Whether words hold values rounded to bf16.
    const HALF: bool;
    /// Elements in a word: 1 for f32, 2 for bf16 pairs.
    const PAIR: usize;
    /// Whether products run on a matrix unit. It multiplies tiles, not vectors, and takes its left operands row by row:
    /// see [`Left`].
    const MATRIX: bool = false;
    /// Rows of a register tile: 6 x 4 vectors are 24 of AVX-512's 32 registers, 6 x 2 are 12 of AVX2's 16; a matrix
    /// unit's are two tiles by two.
    const ROWS: usize = if Self::MATRIX { 32 } else { 6 };
    /// Vectors a register tile is wide.
    const COLS: usize;
    /// Rows of a panel by columns: keys or queries that are lanes together.
    const WIDTH: usize = if Self::MATRIX { 256 } else { WIDTH };
    /// Steps that contractions come in; operands are padded with zeros to whole ones.
    const STEPS: usize = if Self::MATRIX { 16 } else { 1 };

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, x: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a * b - c
    unsafe fn mul_sub(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each lane; a NaN in `b` is kept.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Whether any lane of `a` exceeds that of `b`.
    unsafe fn any_above(a: Self::V, b: Self::V) -> bool;
    /// 2^x for x < 128; 0 for -inf, NaN for NaN, 0 or not normal below 2^-126. Relative error under 1.5e-7 where words
    /// are f32, under 4e-6 where they are bf16.
    unsafe fn exp2(x: Self::V) -> Self::V;

    /// What a word is to hold of a matrix's `x`: rounded to bf16 if words of bf16 are f32; pairs are rounded as they
    /// are written.
    #[inline(always)]
    unsafe fn element(x: Self::V) -> Self::V {
        x
    }

    unsafe fn words(p: *const u32) -> Self::W;
    /// The word at `p` in every lane.
    unsafe fn word(p: *const u32) -> Self::W;
    /// acc + the products of the words' elements.
    unsafe fn dot(acc: Self::V, a: Self::W, b: Self::W) -> Self::V;
    /// Writes two neighbouring vectors as elements of a row: 2 * `LANES` / `PAIR` words from `p`.
    unsafe fn put_row(p: *mut u32, a: Self::V, b: Self::V);
    /// Writes two vectors of neighbouring rows, paired lane by lane: `PAIR` 1 gives `a` at `p` and `b` at `p + stride`,
    /// `PAIR` 2 gives words (a, b) at `p`.
    unsafe fn put_rows(p: *mut u32, stride: usize, a: Self::V, b: Self::V);

    /// Turns `LANES` rows of as many words, `from_stride` apart, into columns, which are rows at `to`, `to_stride`
    /// apart.
    #[inline(always)]
    unsafe fn transpose(from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize) {
        for row in 0..Self::LANES {
            for column in 0..Self::LANES {
                // SAFETY: the caller's pointers hold `LANES` rows of `LANES` words, these strides apart.
                unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) }
            }
        }
    }

    /// [`super::tile::product`], compiled for this instruction set, once for each kind of left operand.
    unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out);
    /// [`Self::product`] with as much of `work` woven into it as there is room for: none on instruction sets without a
    /// matrix unit.
    #[inline(always)]
    unsafe fn product_beside<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out, work: &mut impl Beside) {
        let _ = work;
        // SAFETY: the caller's promise.
        unsafe { Self::product(steps, a, b, out) }
    }
    /// Runs the kernel compiled for this instruction set.
    unsafe fn run(kernel: impl Kernel);
}

/// Work of the vector unit, row by row, that goes on while a matrix unit multiplies.
pub(crate) trait Beside {
    /// A row at work.
    type Row;
    /// How many times two vectors a row has: eight with a matrix unit.
    const TWOS: usize;
    /// Whether a row is left.
    fn more(&self) -> bool;
    /// How many times 16 steps of two by two tiles a row is to take: 1, 2 or 4.
    fn pace(&self) -> usize;
    /// Starts the next row, which must be there.
    unsafe fn begin(&mut self) -> Self::Row;
    /// Does a row's `i`th two vectors.
    unsafe fn two(&self, row: &mut Self::Row, i: usize);
    /// Ends the row.
    unsafe fn end(&self, row: Self::Row);

    /// Does what is left.
    #[inline(always)]
    unsafe fn rest(&mut self) {
        while self.more() {
            // SAFETY: there is a row.
            unsafe {
                let mut row = self.begin();
                for i in 0..Self::TWOS {
                    self.two(&mut row, i);
                }
                self.end(row);
            }
        }
    }
}

/// No work.
impl Beside for () {
    type Row = ();
    const TWOS: usize = 0;
    #[inline(always)]
    fn more(&self) -> bool {
        false
    }
    fn pace(&self) -> usize {
        1
    }
    unsafe fn begin(&mut self) {}
    unsafe fn two(&self, _: &mut (), _: usize) {}
    unsafe fn end(&self, _: ()) {}
}

/// Work to be compiled for an instruction set: `run` must be `#[inline(always)]`, as must be everything hot that it
/// calls.
pub(crate) trait Kernel {
    /// # Safety
    /// The CPU has the features of `S`.
    unsafe fn run<S: Simd>(self);
}
