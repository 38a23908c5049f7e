//! Reading tensors into panels: the layouts that make every load of the kernels contiguous.
//!
//! A word holds one f32 or two bf16 that are neighbours along the contracted dimension (see [`crate::ops::cpu::simd`]). Of a block of
//! rows x `[n, d]` the products need three layouts, all zero-padded:
//! - [`columns`]: `[d / PAIR][WIDTH]`, contraction over d with a lane a row: the right operand of q kᵀ;
//! - [`rows`]: `[n / PAIR][wide]`, contraction over rows with a lane a column: the right operand of p v;
//!   right operands are cut into strips ([`Right`]);
//! - [`tiles`]: `[n / ROWS][d / PAIR][ROWS]`, contraction over d with `ROWS` words a step: the left operand of q kᵀ.

use half::bf16;

use super::wide;
use crate::ops::cpu::simd::{Simd, WIDTH};
use crate::ops::cpu::tile::{ROWS, Right, strip};

/// A tensor's element as the kernels see it.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// The value.
    fn to_f32(self) -> f32;
    /// The nearest element.
    fn from_f32(x: f32) -> Self;
    /// The bits of the value rounded to bf16.
    fn half(self) -> u16;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn half(self) -> u16 {
        bf16::from_f32(self).to_bits()
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn half(self) -> u16 {
        self.to_bits()
    }
}

/// Words of a panel of [`columns`], of `WIDTH` rows of `d` numbers.
pub(super) fn columns_words<S: Simd>(d: usize) -> usize {
    Right::words::<S>(d / S::PAIR, WIDTH)
}

/// Words of a panel of [`rows`], of `WIDTH` rows of `d` numbers.
pub(super) fn rows_words<S: Simd>(d: usize) -> usize {
    Right::words::<S>(WIDTH / S::PAIR, wide(d))
}

#[inline(always)]
fn word<S: Simd, E: Element>(at: impl Fn(usize) -> Option<E>) -> u32 {
    let float = |e: Option<E>| e.map_or(0, |e| e.to_f32().to_bits());
    let half = |e: Option<E>| e.map_or(0, |e| u32::from(e.half()));
    if S::PAIR == 1 { float(at(0)) } else { half(at(0)) | half(at(1)) << 16 }
}

/// A `[B, H, S, d]` tensor seen as `B * H` heads of rows; the last dim is contiguous.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, E> {
    /// From the first element on.
    pub data: &'a [E],
    /// Of batch, head and row.
    pub strides: [usize; 3],
    /// H.
    pub heads: usize,
    /// S.
    pub rows: usize,
    /// d.
    pub dim: usize,
}

impl<'a, E: Element> Heads<'a, E> {
    /// Row `row` of head `head` in 0..B * H.
    pub fn row(&self, head: usize, row: usize) -> &'a [E] {
        let [batch, of_head, of_row] = self.strides;
        let at = head / self.heads * batch + head % self.heads * of_head + row * of_row;
        &self.data[at..at + self.dim]
    }

    /// The `count` rows from `first` as [`columns`] in `panel` `[d / PAIR][WIDTH]`, `count` at most `WIDTH`.
    pub fn columns<S: Simd>(&self, head: usize, first: usize, count: usize, panel: &mut [u32]) {
        let width = strip::<S>(WIDTH);
        for (i, panel) in panel.chunks_exact_mut(self.dim / S::PAIR * width).enumerate() {
            for lane in 0..width {
                let row = (i * width + lane < count).then(|| self.row(head, first + i * width + lane));
                for (step, words) in panel.chunks_exact_mut(width).enumerate() {
                    words[lane] = word::<S, E>(|i| row.map(|r| r[step * S::PAIR + i]));
                }
            }
        }
    }

    /// The `count` rows from `first` as [`rows`] in `panel` `[steps][wide]`, with `steps` for at least `count` rows.
    pub fn rows<S: Simd>(&self, head: usize, first: usize, count: usize, steps: usize, panel: &mut [u32]) {
        let width = strip::<S>(wide(self.dim));
        for (i, panel) in panel.chunks_exact_mut(steps * width).enumerate() {
            for (step, words) in panel.chunks_exact_mut(width).enumerate() {
                let pair: [Option<&[E]>; 2] = std::array::from_fn(|i| {
                    let row = step * S::PAIR + i;
                    (row < count).then(|| self.row(head, first + row))
                });
                for (lane, out) in words.iter_mut().enumerate() {
                    *out = word::<S, E>(|half| pair[half].and_then(|r| r.get(i * width + lane).copied()));
                }
            }
        }
    }

    /// The `count` rows from `first` as [`tiles`] in `panel` `[n / ROWS][d / PAIR][ROWS]`, with `n` at least `count`.
    pub fn tiles<S: Simd>(&self, head: usize, first: usize, count: usize, panel: &mut [u32]) {
        let steps = self.dim / S::PAIR;
        for (tile, words) in panel.chunks_exact_mut(steps * ROWS).enumerate() {
            for r in 0..ROWS {
                let row = tile * ROWS + r;
                let row = (row < count).then(|| self.row(head, first + row));
                for step in 0..steps {
                    words[step * ROWS + r] = word::<S, E>(|i| row.map(|x| x[step * S::PAIR + i]));
                }
            }
        }
    }
}
