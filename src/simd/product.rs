//! Multiplies whole matrices with a packed right operand, and applies an *epilogue* to the sums while they are still in
//! cache.
//!
//! Rows are shared out to threads, which pack those of the left operand; columns are taken panel by panel, and the
//! contraction in runs that stay in cache.
//!
//! Each element's sum is taken in one order whatever the threads, so results have the same bits for any number of them.

use rayon::prelude::*;

use super::panel::{Block, Lines, Panels, left as left_lanes};
use super::scratch::Scratch;
use super::tile::{Out, Right};
use super::uninit_vec::UninitVec;
use super::vector::{Kernel, Simd};

/// Words of the right operand taken at a time: 20 KiB, which stay in L1 beside the rows of the left one. A matrix unit,
/// which takes longer over its sums than over its operands, has more.
pub(super) fn words<S: Simd>() -> usize {
    if S::MATRIX { 16 << 10 } else { 5 << 10 }
}

/// Panels of the right operand whose sums become results together.
const TOGETHER: usize = 8;

/// Rows of a task: whole left panels.
fn block_rows<S: Simd>() -> usize {
    2 * left_lanes::<S>()
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

/// `epilogue(left right)`, row-major `[rows, lanes of right]`, and the epilogue's second result, as large, or empty if
/// it is not wanted.
pub(crate) fn product<S: Simd, T: Epilogue<f32>>(
    left: &Lines,
    right: &Panels,
    rows: usize,
    second: bool,
    epilogue: &T,
) -> [Vec<f32>; 2] {
    let (columns, block) = (right.lanes, block_rows::<S>());
    let (n, len) = (rows * columns, block * columns);
    let (mut out, mut beside) = (UninitVec::new(n), UninitVec::new(if second { n } else { 0 }));
    if n > 0 {
        // An empty second result has as many empty parts as there are blocks.
        let parts = beside.chunks_of((0..n).step_by(len).map(|at| if second { len.min(n - at) } else { 0 }));
        out.chunks(len).zip(parts).enumerate().with_max_len(1).for_each(|(i, (out, beside))| {
            // Zeros bring the block into the cache in one sweep, before sums are added there.
            let (out, beside) = (out.filled(0.0), beside.filled(0.0));
            let (first, rows) = (i * block, out.len() / columns);
            let task = Task { block: &left.block::<S>(first, rows), right, out, beside, first, add: false, epilogue };
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
        let block = &Block::of_panel::<S>(left, i);
        // SAFETY: this instruction set was chosen for this CPU.
        unsafe { S::run(Task { block, right, out, beside: &mut [], first: i * lanes, add: true, epilogue: &() }) }
    });
}

/// A block of rows of the result.
struct Task<'a, T> {
    block: &'a Block<'a>,
    right: &'a Panels,
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
        let Self { block, right, out, beside, first, add, epilogue } = self;
        let columns = right.lanes;
        let rows = out.len() / columns;
        let padded = rows.next_multiple_of(S::ROWS);
        let mut edge: Option<Scratch> = None; // sums of a part that is not whole tiles and vectors
        let width = right.width;
        let most = words::<S>() / width;
        for (panel, column) in (0..columns).step_by(width).enumerate() {
            let count = width.min(columns - column);
            let words = right.panel(panel);
            let direct = rows == padded && count.is_multiple_of(S::LANES);
            let (values, stride, vectors) = if direct {
                (out[column..].as_mut_ptr(), columns, count)
            } else {
                let edge = edge.get_or_insert_with(|| Scratch::take(block_rows::<S>() * width));
                (edge.floats().as_mut_ptr(), width, width)
            };
            for step in (0..right.steps).step_by(most) {
                let steps = most.min(right.steps - step);
                let left = block.at_step(step);
                let right = Right { words: words[step * width..].as_ptr(), step: width, column_block: 0 };
                let add = step > 0 || (add && direct);
                // SAFETY: the operands are as long as their steps say; out or the scratch holds `padded` rows of
                // `vectors`.
                unsafe { S::product(steps, left, right, Out { values, stride, rows: padded, width: vectors, add }) }
            }
            if let (false, Some(edge)) = (direct, &mut edge) {
                for (row, sums) in out.chunks_exact_mut(columns).zip(edge.floats().chunks_exact(width)) {
                    let row = &mut row[column..column + count];
                    if add {
                        row.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                    } else {
                        row.copy_from_slice(&sums[..count]);
                    }
                }
            }
            // An epilogue takes as long a run of a row as stays in L2: narrow panels are taken together.
            let (from, to) = (panel / TOGETHER * TOGETHER * width, column + count);
            if !add && ((panel + 1).is_multiple_of(TOGETHER) || to == columns) {
                for i in 0..rows {
                    let part = i * columns + from..i * columns + to;
                    let beside = if beside.is_empty() { &mut [][..] } else { &mut beside[part.clone()] };
                    epilogue.apply(&mut out[part], beside, first + i, from);
                }
            }
        }
    }
}
