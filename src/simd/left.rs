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

/// From one row to the next where rows of `words` are read by tiles: an odd number of cache lines, so that a tile's
/// sixteen are not all in a few sets of L1.
pub(super) fn apart<S: Simd>(words: usize) -> usize {
    let words = words.next_multiple_of(S::STEPS);
    if S::MATRIX { words | S::STEPS } else { words }
}

/// A matrix word after word: the left operand of a contraction over its columns. The task that needs a block packs it.
pub(crate) struct Lines<'a>(pub Matrix<'a>);

impl Lines<'_> {
    /// `count` rows from `first` on, in runs of `run` steps. Rows that fill up the last register tile are zeros.
    pub fn block<S: Simd>(&self, first: usize, count: usize, run: usize) -> Block<'static> {
        let steps = self.0.columns.div_ceil(S::PAIR).next_multiple_of(S::STEPS);
        let (rows, last) = (count.next_multiple_of(S::ROWS), steps % run);
        let strides = [apart::<S>(run), apart::<S>(last)];
        // Vectors are written in twos: the last may lie beyond a row.
        let mut words = Scratch::take(rows * (steps / run * strides[0] + strides[1]) + 2 * S::LANES);
        // SAFETY: this instruction set was chosen for this CPU.
        unsafe { S::run(Rows { m: self.0, first, count, run, steps, strides, words: &mut words }) }
        Block::Packed { words, rows, run, steps, strides }
    }
}

/// A run of a left operand's rows, whole register tiles of them.
pub(crate) enum Block<'a> {
    /// Run of steps by run of steps, so that what is multiplied together lies together: `[runs][rows][stride]`.
    Packed {
        words: Scratch,
        rows: usize,
        run: usize,
        steps: usize,
        /// From one row to the next in a whole run, and in the last if it is shorter.
        strides: [usize; 2],
    },
    /// The lanes of a panel of [`across_left`](super::panel::across_left) as rows.
    Panel { words: &'a [u32], left: Left<0> },
}

impl<'a> Block<'a> {
    /// The lanes of panel `i` of [`across_left`](super::panel::across_left) as rows.
    pub fn of_panel<S: Simd>(panels: &'a Panels, i: usize) -> Self {
        let words = panels.panel(i);
        let (row, step) = if S::MATRIX { (words.len() / panels.width, 1) } else { (1, left::<S>()) };
        Self::Panel { words, left: Left { words: std::ptr::null(), tile: S::ROWS * row, row, step } }
    }

    /// The operand from row `row`, a tile's first, and step `step` on: up to the end of the run.
    pub fn at<S: Simd>(&self, row: usize, step: usize) -> Left<0> {
        match self {
            Self::Packed { words, rows, run, steps, strides } => {
                let stride = strides[usize::from(step >= steps / run * run)];
                let words = words[step / run * rows * strides[0] + row * stride + step % run..].as_ptr();
                Left { words, tile: S::ROWS * stride, row: stride, step: 1 }
            }
            Self::Panel { words, left } => {
                let words = words[row / S::ROWS * left.tile + step * left.step..].as_ptr();
                Left { words, ..*left }
            }
        }
    }
}

struct Rows<'a> {
    m: Matrix<'a>,
    first: usize,
    count: usize,
    run: usize,
    steps: usize,
    strides: [usize; 2],
    words: &'a mut [u32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { m, first, count, run, steps, strides, words } = self;
        let rows = count.next_multiple_of(S::ROWS);
        let mut start = 0; // of the run's words
        for from in (0..m.columns).step_by(run * S::PAIR) {
            let to = m.columns.min(from + run * S::PAIR);
            let stride = strides[usize::from(from / S::PAIR + run > steps)];
            // A row's last vectors may reach into the next one, which is written after it.
            for row in 0..count {
                let line = start + row * stride;
                // SAFETY: the words have room for two vectors beyond the last row.
                unsafe { line_of_words::<S>(&m.row(first + row)[from..to], words[line..].as_mut_ptr()) }
                let written = (to - from).next_multiple_of(2 * S::LANES) / S::PAIR;
                if written < stride {
                    words[line + written..line + stride].fill(0);
                }
            }
            words[start + count * stride..start + rows * stride].fill(0);
            start += rows * stride;
        }
    }
}
