//! Packs tensors into panels, in the layouts that make every load of the kernels contiguous.
//!
//! A word holds one f32 or two bf16 that are neighbours along the contracted dimension (see [`crate::simd::vector`]).
//! Of a block of rows x `[n, d]` the products need these layouts, all zero-padded:
//! - [`columns`]: `[steps][WIDTH]`, contraction over d with a lane a row: the right operand of q kᵀ;
//! - [`rows`]: `[n / PAIR][wide]`, contraction over rows with a lane a column: the right operand of p v;
//!   right operands are cut into column blocks ([`Right`]);
//! - [`tiles`]: contraction over d: the left operand of q kᵀ, as [`Left::tiles`] has it;
//! - [`turned`]: `[wide][n / PAIR]`, contraction over rows: a matrix unit's left operand of kᵀ dsᵀ.
//!
//! [`columns`]: Heads::columns
//! [`rows`]: Heads::rows
//! [`tiles`]: Heads::tiles
//! [`turned`]: Heads::turned
//! [`Left::tiles`]: crate::simd::tile::Left::tiles

use half::bf16;

use super::wide;
use crate::simd::panel::turn;
use crate::simd::tile::{Right, column_block};
use crate::simd::vector::Simd;
use crate::simd::{narrowed, widened};

/// A tensor's element as the kernels see it.
pub(super) trait PackedElement: Copy + Send + Sync + 'static {
    /// The value.
    fn to_f32(self) -> f32;
    /// The nearest element.
    fn from_f32(x: f32) -> Self;
    /// The bits of the value rounded to bf16.
    fn half(self) -> u16;
}

impl PackedElement for f32 {
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

// By bits: half's own functions are calls.
impl PackedElement for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        widened(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        narrowed(x)
    }
    fn half(self) -> u16 {
        self.to_bits()
    }
}

/// Steps of a contraction over `d` elements.
pub(super) fn steps<S: Simd>(d: usize) -> usize {
    (d / S::PAIR).next_multiple_of(S::STEPS)
}

/// Words of a panel of [`Heads::columns`], of `WIDTH` rows of `d` elements.
pub(super) fn columns_words<S: Simd>(d: usize) -> usize {
    Right::words::<S>(steps::<S>(d), S::WIDTH)
}

/// Words of a panel of [`Heads::rows`], of `WIDTH` rows of `d` elements.
pub(super) fn rows_words<S: Simd>(d: usize) -> usize {
    Right::words::<S>(S::WIDTH / S::PAIR, wide(d))
}

/// The two halves of a word.
#[inline(always)]
fn pair<E: PackedElement>(a: E, b: E) -> u32 {
    u32::from(a.half()) | u32::from(b.half()) << 16
}

/// A row's words from step `first` on; 0 beyond its end, or where there is none.
#[inline(always)]
fn along<S: Simd, E: PackedElement>(row: Option<&[E]>, first: usize, words: &mut [u32]) {
    let row = row.unwrap_or(&[]);
    let row = &row[row.len().min(first * S::PAIR)..];
    let (words, rest) = words.split_at_mut(words.len().min(row.len() / S::PAIR));
    rest.fill(0);
    match S::PAIR {
        1 => words.iter_mut().zip(row).for_each(|(word, x)| *word = x.to_f32().to_bits()),
        _ => words.iter_mut().zip(row.chunks_exact(2)).for_each(|(word, x)| *word = pair(x[0], x[1])),
    }
}

/// Words over the `PAIR` neighbouring `rows`, from column `first` on; 0 beyond their ends.
#[inline(always)]
fn across<S: Simd, E: PackedElement>(rows: [Option<&[E]>; 2], first: usize, words: &mut [u32]) {
    let [a, b] = rows.map(|row| row.map_or(&[][..], |row| &row[row.len().min(first)..]));
    let (words, rest) = words.split_at_mut(words.len().min(a.len()));
    rest.fill(0);
    match (S::PAIR, b) {
        (1, _) => words.iter_mut().zip(a).for_each(|(word, x)| *word = x.to_f32().to_bits()),
        (_, []) => words.iter_mut().zip(a).for_each(|(word, x)| *word = u32::from(x.half())),
        (_, b) => words.iter_mut().zip(a.iter().zip(b)).for_each(|(word, (a, b))| *word = pair(*a, *b)),
    }
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

impl<'a, E: PackedElement> Heads<'a, E> {
    /// Row `row` of head `head` in 0..B * H.
    pub fn row(&self, head: usize, row: usize) -> &'a [E] {
        let [batch, of_head, of_row] = self.strides;
        let start = head / self.heads * batch + head % self.heads * of_head + row * of_row;
        &self.data[start..start + self.dim]
    }

    /// Row `row` of those from `first` on, if it is one of `count`.
    fn some_row(&self, head: usize, first: usize, count: usize, row: usize) -> Option<&'a [E]> {
        (row < count).then(|| self.row(head, first + row))
    }

    /// The `count` rows from `first` as `[steps][WIDTH]` in column blocks, `count` at most `WIDTH`.
    pub fn columns<S: Simd>(&self, head: usize, first: usize, count: usize, panel: &mut [u32]) {
        let (steps, width) = (steps::<S>(self.dim), column_block::<S>(S::WIDTH));
        let mut square = [0; SQUARE];
        for (i, panel) in panel.chunks_exact_mut(steps * width).enumerate() {
            for (lane, step) in squares(S::LANES, width, steps) {
                for (r, words) in square.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                    along::<S, E>(self.some_row(head, first, count, i * width + lane + r), step, words);
                }
                // SAFETY: this instruction set was chosen for this CPU.
                unsafe { turn::<S>(square.as_ptr(), S::LANES, &mut panel[step * width..], width, lane) }
            }
        }
    }

    /// The `count` rows from `first` as `[steps][wide]` in column blocks, with `steps` for at least `count` rows.
    pub fn rows<S: Simd>(&self, head: usize, first: usize, count: usize, steps: usize, panel: &mut [u32]) {
        let width = column_block::<S>(wide(self.dim));
        for (i, panel) in panel.chunks_exact_mut(steps * width).enumerate() {
            for (step, words) in panel.chunks_exact_mut(width).enumerate() {
                across::<S, E>(self.neighbours::<S>(head, first, count, step), i * width, words);
            }
        }
    }

    /// The rows that step `step` of a contraction over `count` rows from `first` takes.
    fn neighbours<S: Simd>(&self, head: usize, first: usize, count: usize, step: usize) -> [Option<&'a [E]>; 2] {
        [0, 1].map(|i| self.some_row(head, first, count, step * S::PAIR + i))
    }

    /// The `count` rows from `first` as a left operand, in `panel` of `n` times steps, with `n` at least `count` whole
    /// tiles.
    pub fn tiles<S: Simd>(&self, head: usize, first: usize, count: usize, panel: &mut [u32]) {
        let steps = steps::<S>(self.dim);
        if S::MATRIX {
            for (row, words) in panel.chunks_exact_mut(steps).enumerate() {
                along::<S, E>(self.some_row(head, first, count, row), 0, words);
            }
            return;
        }
        let mut line = vec![0; steps];
        for (tile, words) in panel.chunks_exact_mut(steps * S::ROWS).enumerate() {
            for r in 0..S::ROWS {
                along::<S, E>(self.some_row(head, first, count, tile * S::ROWS + r), 0, &mut line);
                words[r..].iter_mut().step_by(S::ROWS).zip(&line).for_each(|(to, word)| *to = *word);
            }
        }
    }

    /// The columns of the `count` rows from `first` as rows `[n][steps]` in `panel`, with `steps` for at least `count`
    /// rows.
    pub fn turned<S: Simd>(&self, head: usize, first: usize, count: usize, steps: usize, panel: &mut [u32]) {
        let mut square = [0; SQUARE];
        for (column, step) in squares(S::LANES, panel.len() / steps, steps) {
            for (i, words) in square.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                across::<S, E>(self.neighbours::<S>(head, first, count, step + i), column, words);
            }
            let to = &mut panel[column * steps + step..];
            debug_assert!(to.len() >= (S::LANES - 1) * steps + S::LANES);
            // SAFETY: this instruction set was chosen for this CPU; a square lies within the panel, since both its
            // sides are whole ones.
            unsafe { S::transpose(square.as_ptr(), S::LANES, to.as_mut_ptr(), steps) }
        }
    }
}

/// Words of a square of any instruction set's lanes.
const SQUARE: usize = 16 * 16;

/// Where squares of `side` begin that cover `width` by `height`.
fn squares(side: usize, width: usize, height: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..width).step_by(side).flat_map(move |x| (0..height).step_by(side).map(move |y| (x, y)))
}
