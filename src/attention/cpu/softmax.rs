//! Computes the forward pass's online softmax over a row block of logits, row by row, so that a matrix unit can
//! multiply meanwhile.
//!
//! The running maximum moves only when a logit exceeds it by more than 2^8 (as FlashAttention-4 does): values up to 256
//! lose nothing in floating point, and rescaling nearly vanishes. Online softmax: arXiv 1805.02867.

use std::marker::PhantomData;

use super::by_row;
use crate::simd::vector::{Beside, Simd};

/// log2 of how far a logit may exceed the maximum that its row subtracts.
const SLACK: f32 = 8.0;

/// What a row carries from panel to panel, beside its sums of values.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The maximum that it subtracts, in base 2.
    pub max: f32,
    /// Its sum of exponentials, lane by lane.
    pub sum: [f32; 16],
}

/// Logits of a row block to exponentials in their place, as the left operand of the product with V.
pub(super) struct Softmax<S> {
    /// Rows that are left, and how slowly to take them.
    pub left: usize,
    pub pace: usize,
    // Of the next row:
    pub s: *mut f32,
    pub running: *mut Running,
    pub sums: *mut f32,
    pub wide: usize,
    /// There are no sums yet.
    pub first: bool,
    pub factor: f32,
    pub unit: PhantomData<S>,
}

/// A row at work.
pub(super) struct Row<S: Simd> {
    s: *mut f32,
    running: *mut Running,
    factor: S::V,
    max: S::V,
    sum: S::V,
}

impl<S: Simd> Softmax<S> {
    /// Makes the row's largest logit what it subtracts.
    ///
    /// # Safety
    /// There is a row.
    #[cold]
    #[inline(never)]
    unsafe fn raise(&self) {
        // SAFETY: the row's arrays are there.
        unsafe {
            let (row, logits) = (&mut *self.running, std::slice::from_raw_parts(self.s, S::WIDTH));
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) * self.factor;
            let shrink = (row.max - max).exp2();
            row.max = max;
            if !self.first {
                row.sum.iter_mut().for_each(|x| *x *= shrink);
                std::slice::from_raw_parts_mut(self.sums, self.wide).iter_mut().for_each(|x| *x *= shrink);
            }
        }
    }
}

impl<S: Simd> Beside for Softmax<S> {
    type Row = Row<S>;
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
    unsafe fn begin(&mut self) -> Row<S> {
        // SAFETY: a row's arrays are there, here and below.
        unsafe {
            let (s, running, factor) = (self.s, self.running, S::splat(self.factor));
            let mut top = S::load(s);
            for j in 1..S::WIDTH / S::LANES {
                top = S::max(top, S::load(s.add(j * S::LANES)));
            }
            if S::any_above(S::mul(top, factor), S::splat((*running).max + SLACK)) {
                self.raise();
            }
            self.left -= 1;
            self.s = s.add(by_row::<S>());
            self.running = running.add(1);
            self.sums = self.sums.add(self.wide);
            Row { s, running, factor, max: S::splat((*running).max), sum: S::load((*running).sum.as_ptr()) }
        }
    }
    #[inline(always)]
    unsafe fn two(&self, row: &mut Row<S>, i: usize) {
        // SAFETY: as above.
        unsafe {
            let exp2 = |j: usize| S::exp2(S::mul_sub(S::load(row.s.add(j * S::LANES)), row.factor, row.max));
            let (a, b) = (exp2(2 * i), exp2(2 * i + 1));
            row.sum = S::add(row.sum, S::add(a, b));
            let p = row.s.cast::<u32>(); // what is written has been read
            S::put_row(p.add(2 * i * S::LANES / S::PAIR), a, b);
        }
    }
    #[inline(always)]
    unsafe fn end(&self, row: Row<S>) {
        // SAFETY: as above.
        unsafe { S::store((*row.running).sum.as_mut_ptr(), row.sum) }
    }
}
