//! Computes the backward pass's probabilities P and dS of a row block of keys, two keys at a time, so that a matrix
//! unit can multiply meanwhile.

use std::marker::PhantomData;

use super::{by_row, row_block};
use crate::simd::vector::{Beside, Simd};

/// What a row block of keys by a block of queries passes through, each row a key; used over and over.
#[derive(Clone, Copy)]
pub(super) struct RowBlock {
    /// Logits, then P as words paired over queries, a row every [`by_row`].
    pub s: *mut f32,
    /// dP, then dS as words paired over queries, a row every [`by_row`].
    pub dp: *mut f32,
}

impl RowBlock {
    /// Words of one.
    pub fn words<S: Simd>() -> usize {
        2 * row_block::<S>() * by_row::<S>()
    }

    /// Over `words`, as many as it has.
    pub fn new<S: Simd>(words: &mut [u32]) -> Self {
        let (s, dp) = words.split_at_mut(row_block::<S>() * by_row::<S>());
        Self { s: s.as_mut_ptr().cast(), dp: dp.as_mut_ptr().cast() }
    }
}

/// Where dS of a group goes, paired over keys: a step's words from `words + step * step` on, each two vectors of
/// queries `column_block` from those before.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    pub words: *mut u32,
    pub step: usize,
    pub column_block: usize,
}

/// P and dS of a row block of keys from logits and dP, two keys at a time: by rows in their place, and dS once more
/// paired over keys.
#[derive(Clone, Copy)]
pub(super) struct Probs<S> {
    /// Twos of keys that are left, and how slowly to take them.
    pub left: usize,
    pub pace: usize,
    // Of the next two:
    pub s: *mut f32,
    pub dp: *mut f32,
    pub pairs: Pairs,
    /// In base 2.
    pub lse: *const f32,
    pub delta: *const f32,
    pub factor: f32,
    pub unit: PhantomData<S>,
}

impl<S: Simd> Beside for Probs<S> {
    type Row = Self;
    const TWOS: usize = S::WIDTH / (2 * S::LANES);
    #[inline(always)]
    fn more(&self) -> bool {
        self.left > 0
    }
    #[inline(always)]
    fn pace(&self) -> usize {
        self.pace
    }
    #[inline(always)]
    unsafe fn begin(&mut self) -> Self {
        let now = *self;
        self.left -= 1;
        // SAFETY: within the squares, or just past them.
        unsafe {
            self.s = self.s.add(2 * by_row::<S>());
            self.dp = self.dp.add(2 * by_row::<S>());
            self.pairs.words = self.pairs.words.add(2 / S::PAIR * self.pairs.step);
        }
        now
    }
    #[inline(always)]
    unsafe fn two(&self, row: &mut Self, i: usize) {
        let column = i * 2 * S::LANES;
        // SAFETY: all pointers stay within two rows of the squares.
        unsafe {
            let c = S::splat(row.factor);
            let mut ds = [[c; 2]; 2]; // two rows of two vectors: what either pairing takes
            for (r, ds) in ds.iter_mut().enumerate() {
                let (offset, words) = (r * by_row::<S>() + column, r * by_row::<S>() + column / S::PAIR);
                let mut p = [c; 2];
                for (v, (p, ds)) in p.iter_mut().zip(ds.iter_mut()).enumerate() {
                    let x = v * S::LANES;
                    let s = S::load(row.s.add(offset + x));
                    let dp = S::load(row.dp.add(offset + x));
                    *p = S::exp2(S::mul_sub(s, c, S::load(row.lse.add(column + x))));
                    *ds = S::mul(*p, S::sub(dp, S::load(row.delta.add(column + x))));
                }
                // What is written has been read.
                S::put_row(row.s.cast::<u32>().add(words), p[0], p[1]);
                if S::PAIR > 1 {
                    S::put_row(row.dp.cast::<u32>().add(words), ds[0], ds[1]);
                }
            }
            let to = row.pairs.words.add(i * row.pairs.column_block);
            S::put_rows(to, S::WIDTH, ds[0][0], ds[1][0]);
            S::put_rows(to.add(S::LANES), S::WIDTH, ds[0][1], ds[1][1]);
        }
    }
    #[inline(always)]
    unsafe fn end(&self, _: Self) {}
}
