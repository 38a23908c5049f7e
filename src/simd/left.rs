//! Reads the rows of a matrix as the left operand of a contraction over its columns.

use super::panel::{Matrix, Panels};
use super::scratch::Scratch;
use super::tile::Left;
use super::vector::{Kernel, Simd};

/// Lanes of a panel that is a left operand: whole register tiles, and whole vectors.
pub(crate) const fn left<S: Simd>() -> usize {
    if S::MATRIX { 2 * S::ROWS } else { 8 * S::ROWS }
}

/// Writes `values` as words, a pair's missing half being zero; up to two vectors beyond the end are written too.
///
/// # Safety
/// The CPU has the features of `S`; `to` holds the words rounded up to two vectors.
#[inline(always)]
pub(super) unsafe fn line_of_words<S: Simd>(values: &[f32], to: *mut u32) {
    let both = 2 * S::LANES;
    let whole = values.len() / both * both;
    // SAFETY: reads end at `whole`; the last, partial group is copied to where two vectors can be read.
    unsafe {
        for i in (0..whole).step_by(both) {
            let p = values.as_ptr().add(i);
            S::put_row(to.add(i / S::PAIR), S::element(S::load(p)), S::element(S::load(p.add(S::LANES))));
        }
        if whole < values.len() {
            let mut end = [0f32; 32];
            end[..values.len() - whole].copy_from_slice(&values[whole..]);
            let p = end.as_ptr();
            S::put_row(to.add(whole / S::PAIR), S::element(S::load(p)), S::element(S::load(p.add(S::LANES))));
        }
    }
}

/// A matrix word after word: the left operand of a contraction over its columns. The task that needs a block packs it;
/// f32 instruction sets read the matrix itself.
pub(crate) struct Lines<'a> {
    m: Matrix<'a>,
    /// Words from one row to the next.
    stride: usize,
}

/// From one row to the next where rows of `words` are read by tiles: an odd number of cache lines, so that a tile's
/// sixteen are not all in a few sets of L1.
pub(super) fn apart<S: Simd>(words: usize) -> usize {
    let words = words.next_multiple_of(S::STEPS);
    if S::MATRIX { words | S::STEPS } else { words }
}

impl<'a> Lines<'a> {
    pub fn new<S: Simd>(m: Matrix<'a>) -> Self {
        let whole = m.columns.next_multiple_of(2 * S::LANES) / S::PAIR; // whole vectors, since they are written in twos
        Self { m, stride: if S::HALF { apart::<S>(whole) } else { m.columns } }
    }

    /// `count` rows from `first` on. Rows that fill up the last register tile are zeros.
    pub fn block<S: Simd>(&self, first: usize, count: usize) -> Block<'a> {
        let Self { m, stride } = *self;
        let left = Left { words: std::ptr::null(), tile: S::ROWS * stride, row: stride, step: 1 };
        let lent = if S::HALF { 0 } else { count / S::ROWS * S::ROWS };
        let values = &m.values[first * m.columns..(first + lent) * m.columns];
        let mut words = Scratch::take((count - lent).next_multiple_of(S::ROWS) * stride);
        let (rows, none) = words.split_at_mut((count - lent) * stride);
        if S::HALF {
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(Rows { m, first, stride, words: rows }) }
        } else {
            let rest = &m.values[(first + lent) * m.columns..(first + count) * m.columns];
            rows.copy_from_slice(bytemuck::cast_slice(rest));
        }
        none.fill(0);
        Block { lent: bytemuck::cast_slice(values), lent_rows: lent, packed: Some(words), left }
    }
}

/// A run of a left operand's rows, whole register tiles of them.
pub(crate) struct Block<'a> {
    /// The first rows, of a panel or of the matrix itself.
    lent: &'a [u32],
    lent_rows: usize,
    /// The others.
    packed: Option<Scratch>,
    left: Left<0>,
}

impl<'a> Block<'a> {
    /// The lanes of panel `i` of [`across_left`](super::panel::across_left) as rows.
    pub fn of_panel<S: Simd>(panels: &'a Panels, i: usize) -> Self {
        let lent = panels.panel(i);
        let (row, step) = if S::MATRIX { (lent.len() / panels.width, 1) } else { (1, left::<S>()) };
        let left = Left { words: std::ptr::null(), tile: S::ROWS * row, row, step };
        Self { lent, lent_rows: usize::MAX, packed: None, left }
    }

    /// The operand from row `row`, a tile's first, and step `step` on: the rows up to the next that lie elsewhere.
    pub fn at<S: Simd>(&self, row: usize, step: usize) -> Left<0> {
        let (words, row) = match &self.packed {
            Some(packed) if row >= self.lent_rows => (&packed[..], row - self.lent_rows),
            _ => (self.lent, row),
        };
        let words = words[row / S::ROWS * self.left.tile + step * self.left.step..].as_ptr();
        Left { words, ..self.left }
    }
}

struct Rows<'a> {
    m: Matrix<'a>,
    first: usize,
    stride: usize,
    words: &'a mut [u32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, words) in self.words.chunks_exact_mut(self.stride.max(1)).enumerate() {
            // SAFETY: the stride is a row's words rounded up to two vectors.
            unsafe { line_of_words::<S>(self.m.row(self.first + i), words.as_mut_ptr()) }
            words[self.m.columns.next_multiple_of(2 * S::LANES) / S::PAIR..].fill(0);
        }
    }
}
