//! Multiplies rows with weights that come panel by panel, as they are read from a file, and applies an epilogue.
//!
//! A task is one or two panels, where in [`super::product`] it is a block of rows: it makes its panels, multiplies all
//! rows with them, and needs them no more. So weights need no memory of their own, every thread reads and packs while
//! others multiply, and a panel goes from the reader into the product while it is in cache. The rows are packed once in
//! the order in which tasks read them: a run of the contraction after the other, and in it tile after tile.
//!
//! Sums are taken in the order of [`super::product`]'s, so results have the same bits as its.

use rayon::prelude::*;
use std::ops::Deref;

use super::left::{apart, line_of_words};
use super::panel::{Matrix, right, steps};
use super::product::{Epilogue, words};
use super::scratch::Scratch;
use super::tile::{Left, Out, Right};
use super::uninit_vec::UninitVec;
use super::vector::{Kernel, Simd};
use crate::Result;

/// Rows whose sums are taken together: whole register tiles on every instruction set. Beside their sums for two panels
/// (192 KiB with AVX-512), a run of the rows themselves stays in L2 for the second panel.
const BLOCK: usize = 384;

/// Values of a row that are packed at a time.
const PIECE: usize = 64;

/// A matrix packed as the left operand of [`product`].
pub(crate) struct RowTiles {
    /// `[runs]` of `[tiles]`, each `[steps][ROWS]`; on a matrix unit, `[ROWS][steps]`.
    words: Vec<u32>,
    rows: usize,
    /// Steps of the whole contraction.
    steps: usize,
    /// Steps of a run.
    run: usize,
}

/// Words that a row takes in a run of `steps`.
fn stride<S: Simd>(steps: usize) -> usize {
    if S::MATRIX { apart::<S>(steps) } else { steps }
}

impl RowTiles {
    /// Packs `m`.
    pub fn pack<S: Simd>(m: Matrix) -> Self {
        let (steps, padded) = (steps::<S>(m.columns()), m.rows().next_multiple_of(S::ROWS));
        let run = words::<S>() / right::<S>();
        let len = |steps| if steps == 0 { 0 } else { padded * stride::<S>(steps) };
        let mut words = UninitVec::new(steps / run * len(run) + len(steps % run));
        words.chunks(len(run)).enumerate().for_each(|(i, chunk)| {
            let task = PackRun { m, first: i * run * S::PAIR, steps: run.min(steps - i * run), words: chunk.filled(0) };
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(task) }
        });
        Self { words: words.into_vec(), rows: m.rows(), steps, run }
    }

    /// The tiles from row `row` on, which is a tile's first, in the run of `steps` steps from step `step` on.
    fn tiles<S: Simd>(&self, row: usize, step: usize, steps: usize) -> Left<1> {
        let (padded, stride) = (self.rows.next_multiple_of(S::ROWS), stride::<S>(steps));
        let words = &self.words[step / self.run * padded * self::stride::<S>(self.run) + row * stride..];
        assert!(words.len() >= (padded - row) * stride, "whole tiles");
        let (row, step) = if S::MATRIX { (stride, 1) } else { (1, S::ROWS) };
        Left { words: words.as_ptr(), tile: S::ROWS * stride, row, step }
    }
}

/// A run of the contraction, from column `first` on.
struct PackRun<'a> {
    m: Matrix<'a>,
    first: usize,
    steps: usize,
    /// Zeros.
    words: &'a mut [u32],
}

impl Kernel for PackRun<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { m, first, steps, words } = self;
        let columns = first..(first + steps * S::PAIR).min(m.columns());
        let stride = stride::<S>(steps);
        let mut lines = [[0u32; PIECE + 32]; 6];
        for (tile, words) in words.chunks_exact_mut(S::ROWS * stride).enumerate() {
            let rows = tile * S::ROWS..m.rows().min((tile + 1) * S::ROWS);
            if S::MATRIX {
                for (row, words) in rows.zip(words.chunks_exact_mut(stride)) {
                    // SAFETY: a matrix unit's steps are whole vectors, two and two.
                    unsafe { line_of_words::<S>(&m.row(row)[columns.clone()], words.as_mut_ptr()) }
                }
                continue;
            }
            for (piece, words) in words.chunks_mut(PIECE / S::PAIR * S::ROWS).enumerate() {
                let from = columns.start + piece * PIECE;
                for (row, line) in rows.clone().zip(&mut lines) {
                    let values = &m.row(row)[from..(from + PIECE).min(columns.end)];
                    // SAFETY: a piece and a vector's slack fit into the line.
                    unsafe { line_of_words::<S>(values, line.as_mut_ptr()) }
                }
                for (step, words) in words.chunks_exact_mut(S::ROWS).enumerate() {
                    words.iter_mut().zip(&lines[..rows.len()]).for_each(|(word, line)| *word = line[step]);
                }
            }
        }
    }
}

/// `epilogue(rows Wᵀ)`, row-major `[rows, columns]`, of W whose rows `panel(0, i)` gives, [`right`] of them, packed as
/// by [`along_into`](super::panel::along_into). `second`: the epilogue finds the sums with `panel(1, i)` beside. Each
/// panel is asked for once.
///
/// # Errors
/// Those of `panel`.
pub(crate) fn product<S: Simd, P: Deref<Target = Scratch>>(
    rows: &RowTiles,
    columns: usize,
    second: bool,
    panel: impl Fn(usize, usize) -> Result<P> + Sync,
    epilogue: &impl Epilogue<f32>,
) -> Result<Vec<f32>> {
    let (panels, matrices) = (columns.div_ceil(right::<S>()), if second { 2 } else { 1 });
    // Two panels share the reading of rows, if there are tasks enough.
    let together = if second || panels < 8 * rayon::current_num_threads() { 1 } else { 2 };
    let n = rows.rows * columns;
    let mut out = Vec::with_capacity(n);
    let target = Target { values: out.as_mut_ptr(), columns };
    (0..panels.div_ceil(together)).into_par_iter().with_max_len(1).try_for_each(|task| -> Result<()> {
        let first = task * together;
        let all = (first..panels.min(first + together)).flat_map(|i| (0..matrices).map(move |m| (m, i)));
        let panels = all.map(|(m, i)| panel(m, i)).collect::<Result<Vec<P>>>()?;
        let column = first * right::<S>();
        let words: Vec<&[u32]> = panels.iter().map(|panel| &panel[..]).collect();
        // SAFETY: this instruction set was chosen for this CPU.
        unsafe { S::run(Task { rows, panels: &words, matrices, column, target: &target, epilogue }) }
        Ok(())
    })?;
    // SAFETY: tasks have written all rows of their columns, and every column is a task's.
    unsafe { out.set_len(n) }
    Ok(out)
}

/// The result's elements, none initialised, which tasks write by columns.
struct Target {
    values: *mut f32,
    columns: usize,
}

// SAFETY: each task writes columns that no other does.
unsafe impl Sync for Target {}

/// All rows with a few panels.
struct Task<'a, T> {
    rows: &'a RowTiles,
    /// As many neighbours of each matrix, one matrix after the other at each place.
    panels: &'a [&'a [u32]],
    matrices: usize,
    /// The first panel's first.
    column: usize,
    target: &'a Target,
    epilogue: &'a T,
}

impl<T: Epilogue<f32>> Kernel for Task<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, panels, matrices, column, target, epilogue } = self;
        let width = right::<S>();
        let most = BLOCK.min(rows.rows.next_multiple_of(S::ROWS));
        let mut sums = Scratch::take(panels.len() * most * width);
        for first in (0..rows.rows).step_by(BLOCK) {
            let count = BLOCK.min(rows.rows - first);
            let padded = count.next_multiple_of(S::ROWS);
            for step in (0..rows.steps).step_by(rows.run) {
                let steps = rows.run.min(rows.steps - step);
                let left = rows.tiles::<S>(first, step, steps);
                for (panel, sums) in panels.iter().zip(sums.floats().chunks_exact_mut(most * width)) {
                    let right =
                        Right { words: panel[step * width..][..steps * width].as_ptr(), step: width, column_block: 0 };
                    let out = Out { values: sums.as_mut_ptr(), stride: width, rows: padded, width, add: step > 0 };
                    // SAFETY: the operands are as long as their steps say, and there are sums for `padded` rows.
                    unsafe { S::product(steps, left, right, out) }
                }
            }
            for row in 0..count {
                for (i, sums) in sums.floats().chunks_exact_mut(matrices * most * width).enumerate() {
                    let column = column + i * width;
                    let len = width.min(target.columns - column);
                    let (sums, beside) = sums.split_at_mut(most * width);
                    let beside = if matrices > 1 { &mut beside[row * width..][..len] } else { &mut [][..] };
                    // SAFETY: the result has this row and these columns, which are this task's alone, and the part is
                    // written before it is a slice.
                    let part = unsafe {
                        let at = target.values.add((first + row) * target.columns + column);
                        std::ptr::copy_nonoverlapping(sums[row * width..][..len].as_ptr(), at, len);
                        std::slice::from_raw_parts_mut(at, len)
                    };
                    epilogue.apply(part, beside, first + row, column);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::left::Lines;
    use super::super::panel::{along, along_into, along_words};
    use super::super::{Isa, product::product as by_rows, with_isa};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Adds what is beside, and where it is.
    struct Adding;

    impl Epilogue<f32> for Adding {
        #[inline(always)]
        fn apply(&self, out: &mut [f32], beside: &mut [f32], row: usize, column: usize) {
            assert!(beside.is_empty() || beside.len() == out.len());
            for (i, x) in out.iter_mut().enumerate() {
                *x += (row * 7 + column + i) as f32 + beside.get(i).map_or(0.0, |beside| *beside);
            }
        }
    }

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 2_654_435_761 + seed * 97) % 1009) as f32 / 500.0 - 1.0).collect()
    }

    fn check<S: Simd>(rows: usize, columns: usize, inner: usize) {
        let x = values(rows * inner, 1);
        let weights = [2, 3].map(|seed| values(columns * inner, seed));
        let tiles = RowTiles::pack::<S>(Matrix::new(&x, rows, inner));
        let asked = AtomicUsize::new(0);
        let panel = |matrix: usize, i: usize| {
            asked.fetch_add(1, Ordering::Relaxed);
            let first = i * right::<S>();
            let count = right::<S>().min(columns - first);
            let mut words = Scratch::take(along_words::<S>(inner));
            let values = &weights[matrix][first * inner..][..count * inner];
            along_into::<S>(Matrix::new(values, count, inner), &mut words);
            Ok(Box::new(words))
        };
        let plain = |matrix: usize| {
            let right = along::<S>(Matrix::new(&weights[matrix], columns, inner));
            by_rows::<S, _>(&[(Lines(Matrix::new(&x, rows, inner)), &right)], rows, false, &())[0].clone()
        };
        let wanted = |second: bool| {
            let (mut out, mut beside) = (plain(0), if second { plain(1) } else { vec![] });
            for (i, out) in out.chunks_exact_mut(columns.max(1)).enumerate() {
                let beside = if second { &mut beside[i * columns..][..columns] } else { &mut [][..] };
                Adding.apply(out, beside, i, 0);
            }
            out
        };
        for second in [false, true] {
            let before = asked.load(Ordering::Relaxed);
            let got = product::<S, _>(&tiles, columns, second, panel, &Adding).unwrap();
            assert!(got == wanted(second), "{rows} x {inner} x {columns}, second {second}");
            let panels = columns.div_ceil(right::<S>()) * if second { 2 } else { 1 };
            assert_eq!(asked.load(Ordering::Relaxed) - before, panels);
        }
        let failing = |matrix, i| if i == 0 { Err(crate::Error::Data("torn".into())) } else { panel(matrix, i) };
        let failed = product::<S, Box<Scratch>>(&tiles, columns, false, failing, &Adding);
        assert!(failed.is_err_and(|why| why.to_string().contains("torn")));
    }

    /// Rows, columns and contractions that are whole tiles, panels and runs, and such that are not; several blocks of
    /// rows; so many panels that two are taken together.
    #[test]
    fn bits_are_those_of_products_by_rows_on_every_isa() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (rows, columns, inner) in
                [(1, 1, 1), (7, 70, 33), (96, 128, 160), (850, 33, 90), (13, 2100, 17), (5, 40, 1700)]
            {
                with_isa!(isa, false, S => check::<S>(rows, columns, inner));
                with_isa!(isa, true, S => check::<S>(rows, columns, inner));
            }
        }
    }
}
