//! Multiplies whole matrices with a packed right operand, and applies an *epilogue* to the sums while they are still in
//! cache.
//!
//! Rows are shared out to threads, which pack those of the left operand; columns are taken panel by panel, and the
//! contraction in runs that stay in cache.
//!
//! Each element's sum is taken in one order whatever the threads, so results have the same bits for any number of them.

use rayon::prelude::*;
use std::ops::Range;

use super::left::{Block, Lines, left as left_lanes};
use super::panel::Panels;
use super::scratch::Scratch;
use super::tile::{Out, Right};
use super::uninit_vec::UninitVec;
use super::vector::{Kernel, Simd};

/// Words of the right operand taken at a time: 20 KiB, which stay in L1 beside the rows of the left one. A matrix unit,
/// which takes longer over its sums than over its operands, has more.
pub(super) fn words<S: Simd>() -> usize {
    if S::MATRIX { 16 << 10 } else { 5 << 10 }
}

/// Words of the left operand taken at a time for all panels: 512 KiB, which stay in L2.
const LEFT_WORDS: usize = 128 << 10;

/// Panels of the right operand whose sums become results together.
const TOGETHER: usize = 8;

/// Rows of a task: an even share of a tile's, so that a pass over the right operand serves as many as can be, but no
/// more than stay in L2 beside it.
fn block_rows<S: Simd>(rows: usize) -> usize {
    let share = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(S::ROWS);
    share.clamp(2 * left_lanes::<S>(), 6 * left_lanes::<S>())
}

/// Steps of the contraction that are taken for all panels, of `rows` rows and right panels of `width`: whole runs of
/// the right operand's, so that each element's sum has one order whatever the rows.
fn run<S: Simd>(rows: usize, width: usize) -> usize {
    let most = words::<S>() / width;
    (LEFT_WORDS / rows / most).max(1) * most
}

/// An operation that is fused behind a product: it turns sums into results.
pub trait Epilogue<T>: Sync {
    /// Turns the sums `out` of row `row` from column `column` on into results; `beside` is the same part of a second
    /// result, or empty.
    fn apply(&self, out: &mut [T], beside: &mut [T], row: usize, column: usize);
}

/// The sums are the result.
impl<T> Epilogue<T> for () {
    #[inline(always)]
    fn apply(&self, _: &mut [T], _: &mut [T], _: usize, _: usize) {}
}

/// `epilogue(the sum of left right over the terms)`, row-major `[rows, lanes of right]`, and the epilogue's second
/// result, as large, or empty if it is not wanted. The terms' right operands have the same lanes.
pub(crate) fn product<S: Simd, T: Epilogue<f32>>(
    terms: &[(Lines, &Panels)],
    rows: usize,
    second: bool,
    epilogue: &T,
) -> [Vec<f32>; 2] {
    let (columns, block) = (terms[0].1.lanes, block_rows::<S>(rows));
    let (n, len) = (rows * columns, block * columns);
    let (mut out, mut beside) = (UninitVec::new(n), UninitVec::new(if second { n } else { 0 }));
    if n > 0 {
        // An empty second result has as many empty parts as there are blocks.
        let parts = beside.chunks_of((0..n).step_by(len).map(|at| if second { len.min(n - at) } else { 0 }));
        out.chunks(len).zip(parts).enumerate().with_max_len(1).for_each(|(i, (out, beside))| {
            // Zeros bring the block into the cache in one sweep, before sums are added there.
            let (out, beside) = (out.filled(0.0), beside.filled(0.0));
            let (first, rows) = (i * block, out.len() / columns);
            let run = run::<S>(rows, terms[0].1.width);
            let blocks: Vec<_> =
                terms.iter().map(|(left, right)| (left.block::<S>(first, rows, run), *right)).collect();
            let task = Task { terms: &blocks, out, beside, first, add: false, epilogue };
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(task) }
        });
    }
    [out.into_vec(), beside.into_vec()]
}

/// `out += left right`, row-major; `left` is of [`across_left`](super::panel::across_left).
pub(crate) fn add_product<S: Simd>(left: &Panels, right: &Panels, out: &mut [f32]) {
    let lanes = left_lanes::<S>();
    out.par_chunks_mut((lanes * right.lanes).max(1)).enumerate().with_max_len(1).for_each(|(i, out)| {
        let terms = &[(Block::of_panel::<S>(left, i), right)];
        // SAFETY: this instruction set was chosen for this CPU.
        unsafe { S::run(Task { terms, out, beside: &mut [], first: i * lanes, add: true, epilogue: &() }) }
    });
}

/// A block of rows of the result.
struct Task<'a, T> {
    /// The rows of each term's left operand, and its right one.
    terms: &'a [(Block<'a>, &'a Panels)],
    out: &'a mut [f32],
    beside: &'a mut [f32],
    /// The result's row that is the block's first.
    first: usize,
    add: bool,
    epilogue: &'a T,
}

impl<T: Epilogue<f32>> Kernel for Task<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { terms, out, beside, first, add, epilogue } = self;
        let Panels { lanes: columns, width, .. } = *terms[0].1;
        let rows = out.len() / columns;
        let (mut edge, mut halves) = (None, None);
        let (most, run) = (words::<S>() / width, run::<S>(rows, width));
        for (i, (block, right)) in terms.iter().enumerate() {
            for from in (0..right.steps.max(1)).step_by(run) {
                let to = right.steps.min(from + run);
                let last = i + 1 == terms.len() && to == right.steps;
                for (panel, column) in (0..columns).step_by(width).enumerate() {
                    let end = columns.min(column + width);
                    let part = Part::new::<S>(rows, column..end, columns, width);
                    let targets = part.targets::<S>(out, &mut edge);
                    for step in (from..to).step_by(most) {
                        let steps = most.min(to - step);
                        let words = right.steps_of(panel, step, steps, &mut halves);
                        let right = Right { words: words.as_ptr(), step: width, column_block: 0 };
                        let add = add || i > 0 || step > 0;
                        for (row, target) in targets {
                            if target.rows > 0 {
                                let target = Out { add: add || target.add, ..target };
                                // SAFETY: the operands are as long as their steps say, and so are the targets' rows.
                                unsafe { S::product(steps, block.at::<S>(row, step), right, target) }
                            }
                        }
                    }
                    part.put_back(out, &mut edge);
                    // An epilogue takes as long a run of a row as stays in L2: narrow panels are taken together.
                    let start = panel / TOGETHER * TOGETHER * width;
                    if last && !add && ((panel + 1).is_multiple_of(TOGETHER) || end == columns) {
                        for row in 0..rows {
                            let part = row * columns + start..row * columns + end;
                            let beside = if beside.is_empty() { &mut [][..] } else { &mut beside[part.clone()] };
                            epilogue.apply(&mut out[part], beside, first + row, start);
                        }
                    }
                }
            }
        }
    }
}

/// Some columns of a block's result: rows that are whole tiles of whole vectors are summed where they lie, the others
/// in a buffer.
struct Part {
    rows: usize,
    /// Rows that are whole tiles, and those of them that are summed where they lie.
    tiles: usize,
    in_place: usize,
    columns: Range<usize>,
    /// From one row to the next.
    stride: usize,
    /// Columns of the buffer.
    width: usize,
}

impl Part {
    fn new<S: Simd>(rows: usize, columns: Range<usize>, stride: usize, width: usize) -> Self {
        let tiles = rows / S::ROWS * S::ROWS;
        let in_place = if columns.len().is_multiple_of(S::LANES) { tiles } else { 0 };
        Self { rows, tiles, in_place, columns, stride, width }
    }

    /// Where the sums of whole tiles and of the last rows are taken, each with its first row. What is summed in the
    /// buffer begins with the sums so far.
    fn targets<S: Simd>(&self, out: &mut [f32], buffer: &mut Option<Scratch>) -> [(usize, Out); 2] {
        let padded = self.rows.next_multiple_of(S::ROWS);
        let in_place = Out {
            values: out[self.columns.start..].as_mut_ptr(),
            stride: self.stride,
            rows: self.in_place,
            width: self.columns.len(),
            add: false,
        };
        if self.in_place == self.rows {
            return [(0, in_place), (self.rows, Out { rows: 0, ..in_place })];
        }
        let sums = buffer.get_or_insert_with(|| Scratch::take(padded * self.width)).floats();
        sums[..(padded - self.in_place) * self.width].fill(0.0);
        for (sums, row) in sums.chunks_exact_mut(self.width).zip(self.in_place..self.rows) {
            sums[..self.columns.len()].copy_from_slice(&out[self.of_row(row)]);
        }
        let mut buffered = |rows: Range<usize>| Out {
            values: sums[(rows.start - self.in_place) * self.width..].as_mut_ptr(),
            stride: self.width,
            rows: rows.len(),
            width: self.width,
            add: true,
        };
        let first = if self.in_place > 0 { in_place } else { buffered(0..self.tiles) };
        [(0, first), (self.tiles, buffered(self.tiles..padded))]
    }

    /// Copies the buffer's sums to where they belong.
    fn put_back(&self, out: &mut [f32], buffer: &mut Option<Scratch>) {
        let Some(buffer) = buffer else { return };
        for (sums, row) in buffer.floats().chunks_exact(self.width).zip(self.in_place..self.rows) {
            out[self.of_row(row)].copy_from_slice(&sums[..self.columns.len()]);
        }
    }

    fn of_row(&self, row: usize) -> Range<usize> {
        row * self.stride + self.columns.start..row * self.stride + self.columns.end
    }
}
