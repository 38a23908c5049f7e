//! Packs row-major f32 matrices into the words that [`super::tile`] multiplies.
//!
//! A word holds one f32 or, on instruction sets with pairs, two bf16 that are neighbours along the contracted
//! dimension; instruction sets for bf16 round on the way. Contractions are padded with a zero where pairs do not divide
//! them. Three layouts serve all products of a linear layer:
//! - [`across`]: `[columns / w][rows / PAIR][w]`, contraction over the matrix' rows, a lane a column;
//! - [`along`]: `[rows / w][columns / PAIR][w]`, contraction over its columns, a lane a row;
//! - [`Lines`](super::left::Lines): `[rows][columns / PAIR]`, contraction over its columns, word after word.
//!
//! A right operand's panel is as wide as the instruction set's register tile, so that a step reads one contiguous run.
//! A matrix unit's left operands are all row by row, so [`across_left`] turns its panels for it: `[columns][rows /
//! PAIR]`.
//!
//! Attention packs strided heads of any element by its own functions (`attention::cpu::pack`).

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::ops::Range;

use super::halves::{halve, widen};
use super::left::{apart, left, line_of_words};
use super::scratch::Scratch;
use super::vector::{Kernel, Simd};

/// A row-major matrix of f32.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub columns: usize,
}

/// A row-major matrix to be packed.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    F32(Matrix<'a>),
    /// `[rows, columns]` of bf16.
    Bf16(&'a [bf16], [usize; 2]),
}

impl<'a> From<Matrix<'a>> for Source<'a> {
    fn from(m: Matrix<'a>) -> Self {
        Self::F32(m)
    }
}

impl<'a> Source<'a> {
    fn dims(&self) -> [usize; 2] {
        match self {
            Self::F32(m) => [m.rows, m.columns],
            Self::Bf16(_, dims) => *dims,
        }
    }

    /// Calls `f` with a matrix of f32 that has these rows and columns, and with the first of them in it.
    fn with_part(&self, rows: Range<usize>, columns: Range<usize>, f: impl FnOnce(Matrix, usize, usize)) {
        match self {
            Self::F32(m) => f(*m, rows.start, columns.start),
            Self::Bf16(values, [_, stride]) => {
                let mut part = Scratch::take(rows.len() * columns.len());
                for (line, row) in part.chunks_exact_mut(columns.len().max(1)).zip(rows.clone()) {
                    widen(values[row * stride..][columns.clone()].reinterpret_cast(), line);
                }
                f(Matrix::new(part.floats(), rows.len(), columns.len()), 0, 0)
            }
        }
    }
}

impl<'a> Matrix<'a> {
    /// `values` as `[rows, columns]`.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// `count` rows from `first` on.
    fn part(&self, first: usize, count: usize) -> Self {
        let values = &self.values[first * self.columns..][..count * self.columns];
        Self { values, rows: count, columns: self.columns }
    }
}

/// Lanes of a panel that is a right operand.
pub(crate) const fn right<S: Simd>() -> usize {
    S::COLS * S::LANES
}

/// Steps of a contraction.
pub(super) fn steps<S: Simd>(contraction: usize) -> usize {
    contraction.div_ceil(S::PAIR).next_multiple_of(S::STEPS)
}

/// Lanes of the widest panel.
const WIDEST: usize = 64;

/// Panels, see the module.
pub(crate) struct Panels {
    words: Scratch,
    /// Steps of the contraction.
    pub steps: usize,
    /// Lanes that hold something.
    pub lanes: usize,
    /// Lanes of a panel.
    pub width: usize,
    /// Words of a panel, as it is held.
    len: usize,
    /// Words are held by halves: two of them in one.
    halved: bool,
}

/// Whether right operands hold their words by halves.
const fn halved<S: Simd>() -> bool {
    S::HALF && S::PAIR == 1
}

impl Panels {
    fn new<S: Simd>(contraction: usize, lanes: usize, width: usize, turned: bool, halved: bool) -> Self {
        let steps = steps::<S>(contraction);
        let len = if turned { width * apart::<S>(steps) } else { Self::len::<S>(contraction, width, halved) };
        Self { words: Scratch::take(lanes.div_ceil(width) * len), steps, lanes, width, len, halved }
    }

    /// Words of a panel, as it is held.
    fn len<S: Simd>(contraction: usize, width: usize, halved: bool) -> usize {
        // room for rows that come in twos
        let words = (contraction.next_multiple_of(2) / S::PAIR).next_multiple_of(S::STEPS) * width;
        if halved { words / 2 } else { words }
    }

    /// The panels after `fill` has written the words of each, all of them.
    fn filled(mut self, fill: impl Fn(usize, &mut [u32]) + Sync) -> Self {
        if self.len > 0 {
            self.words.par_chunks_exact_mut(self.len).enumerate().for_each(|(i, words)| {
                if !self.halved {
                    return fill(i, words);
                }
                let mut wide = Scratch::take(2 * words.len());
                fill(i, &mut wide);
                halve(&wide, bytemuck::cast_slice_mut(words));
            });
        }
        self
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The words of panel `i`.
    ///
    /// # Panics
    /// If they are held by halves.
    pub fn panel(&self, i: usize) -> &[u32] {
        assert!(!self.halved, "panels held by halves are read through a buffer");
        &self.words[i * self.len..][..self.len]
    }

    /// The words of panel `i` from step `from` on, `steps` of them; halves are widened into `buffer`.
    pub fn steps_of<'a>(&'a self, i: usize, from: usize, steps: usize, buffer: &'a mut Option<Scratch>) -> &'a [u32] {
        let words = from * self.width..(from + steps) * self.width;
        if !self.halved {
            return &self.panel(i)[words];
        }
        if buffer.as_ref().is_none_or(|buffer| buffer.len() < words.len()) {
            *buffer = Some(Scratch::take(words.len()));
        }
        let buffer = buffer.as_mut().expect("just taken");
        let halves: &[u16] = bytemuck::cast_slice(&self.words[i * self.len..][..self.len]);
        widen(&halves[words.clone()], &mut buffer[..words.len()]);
        &buffer[..words.len()]
    }
}

/// Words that the panels of a right operand take.
#[cfg(feature = "media")]
pub(crate) fn right_words<S: Simd>(contraction: usize, lanes: usize) -> usize {
    lanes.div_ceil(right::<S>()) * Panels::len::<S>(contraction, right::<S>(), halved::<S>())
}

/// The columns of `m` as a right operand, contraction over its rows.
pub(crate) fn across<'a, S: Simd>(m: impl Into<Source<'a>>) -> Panels {
    across_by::<S>(m.into(), right::<S>(), false, halved::<S>())
}

/// The columns of `m` as a left operand, contraction over its rows.
pub(crate) fn across_left<S: Simd>(m: Matrix) -> Panels {
    across_by::<S>(m.into(), left::<S>(), S::MATRIX, false)
}

/// The columns of `m` in panels of `width`, contraction over its rows; `turned`: a row a lane; `halved`: held by
/// halves.
pub(crate) fn across_by<S: Simd>(m: Source, width: usize, turned: bool, halved: bool) -> Panels {
    let [rows, columns] = m.dims();
    Panels::new::<S>(rows, columns, width, turned, halved).filled(|i, words| {
        let lanes = i * width..columns.min((i + 1) * width);
        m.with_part(0..rows, lanes.clone(), |m, _, first| {
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(Across { m, first, count: lanes.len(), width, turned, words }) }
        });
    })
}

struct Across<'a> {
    m: Matrix<'a>,
    /// The panel's first column in it, and how many it has.
    first: usize,
    count: usize,
    width: usize,
    /// A row a lane: for pairs, and steps that are whole squares.
    turned: bool,
    words: &'a mut [u32],
}

impl Kernel for Across<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { m, first, count, width, turned, words } = self;
        let none = [0f32; WIDEST];
        let mut ends = [[0f32; WIDEST]; 2]; // rows of a panel that is not full
        let mut lines = [0u32; 16 * WIDEST]; // steps that are yet to be turned
        let (in_two, steps) = (2 * width / S::PAIR, words.len() / width);
        for i in 0..words.len() / in_two {
            let mut rows = [none.as_ptr(); 2];
            for (r, (row, end)) in rows.iter_mut().zip(&mut ends).enumerate() {
                if 2 * i + r < m.rows {
                    let values = &m.row(2 * i + r)[first..first + count];
                    *row = if count == width {
                        values.as_ptr()
                    } else {
                        end[..count].copy_from_slice(values);
                        end.as_ptr()
                    };
                }
            }
            let to = if turned { &mut lines[i % S::LANES * width..] } else { &mut words[i * in_two..] };
            for lane in (0..width).step_by(S::LANES) {
                // SAFETY: both rows hold `width` values; the words have room for two rows, as pairs or one after the
                // other.
                unsafe {
                    let (a, b) = (S::element(S::load(rows[0].add(lane))), S::element(S::load(rows[1].add(lane))));
                    S::put_rows(to.as_mut_ptr().add(lane), width, a, b);
                }
            }
            if turned && (i + 1).is_multiple_of(S::LANES) {
                for lane in (0..width).step_by(S::LANES) {
                    let to = &mut words[lane * steps + i + 1 - S::LANES..];
                    // SAFETY: a square of lines, and one of a panel of `width` rows of `steps`.
                    unsafe { S::transpose(lines[lane..].as_ptr(), width, to.as_mut_ptr(), steps) }
                }
            }
        }
    }
}

/// The rows of `m` as a right operand, contraction over its columns.
pub(crate) fn along<'a, S: Simd>(m: impl Into<Source<'a>>) -> Panels {
    let (m, width) = (m.into(), right::<S>());
    let [rows, columns] = m.dims();
    Panels::new::<S>(columns, rows, width, false, halved::<S>()).filled(|i, words| {
        let lanes = i * width..rows.min((i + 1) * width);
        m.with_part(lanes.clone(), 0..columns, |m, first, _| {
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(Along { m: m.part(first, lanes.len()), words }) }
        });
    })
}

/// Words of a panel of [`along`].
pub(crate) fn along_words<S: Simd>(contraction: usize) -> usize {
    Panels::len::<S>(contraction, right::<S>(), false)
}

/// Packs the rows of `m`, at most [`right`], as one panel of [`along`].
pub(crate) fn along_into<S: Simd>(m: Matrix, words: &mut [u32]) {
    assert!(m.rows <= right::<S>() && words.len() == along_words::<S>(m.columns), "one panel");
    // SAFETY: this instruction set was chosen for this CPU.
    unsafe { S::run(Along { m, words }) }
}

struct Along<'a> {
    m: Matrix<'a>,
    words: &'a mut [u32],
}

impl Kernel for Along<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { m, words } = self;
        let width = right::<S>();
        words[m.columns.div_ceil(S::PAIR) * width..].fill(0);
        // Runs of a few lines of the target at a time, so that a row's words meet lines that the row before has
        // touched.
        const RUN: usize = 64;
        const LINE: usize = RUN + 32;
        let mut lines = [0u32; 16 * LINE];
        for (start, lane) in (0..m.columns).step_by(RUN).flat_map(|x| (0..width).step_by(S::LANES).map(move |y| (x, y)))
        {
            let end = (start + RUN).min(m.columns);
            for (r, line) in lines.chunks_exact_mut(LINE).take(S::LANES).enumerate() {
                if lane + r < m.rows {
                    // SAFETY: a run and a vector's slack fit into the line.
                    unsafe { line_of_words::<S>(&m.row(lane + r)[start..end], line.as_mut_ptr()) };
                } else {
                    line.fill(0);
                }
            }
            let steps = (end - start).div_ceil(S::PAIR);
            for step in (0..steps).step_by(S::LANES) {
                let to = &mut words[(start / S::PAIR + step) * width..][..(steps - step) * width];
                // SAFETY: a line has words beyond its run.
                unsafe { turn::<S>(lines[step..].as_ptr(), LINE, to, width, lane) }
            }
        }
    }
}

/// Writes a square of words, whose rows are `stride` apart, as `LANES` columns from `lane` on of `to`, rows of `width`:
/// as many of its columns as `to` has rows.
///
/// # Safety
/// The CPU has the features of `S`; `from` holds a square of `LANES`.
#[inline(always)]
pub(crate) unsafe fn turn<S: Simd>(from: *const u32, stride: usize, to: &mut [u32], width: usize, lane: usize) {
    let mut square = [0u32; 16 * 16];
    // SAFETY: the caller's promise; no instruction set has more lanes.
    unsafe { S::transpose(from, stride, square.as_mut_ptr(), S::LANES) }
    for (to, words) in to.chunks_exact_mut(width).zip(square.chunks_exact(S::LANES).take(S::LANES)) {
        to[lane..lane + S::LANES].copy_from_slice(words);
    }
}
