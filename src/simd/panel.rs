//! Packs row-major f32 matrices into the words that [`super::tile`] multiplies.
//!
//! A word holds one f32 or, on instruction sets with pairs, two bf16 that are neighbours along the contracted
//! dimension; instruction sets for bf16 round on the way. Contractions are padded with a zero where pairs do not divide
//! them. Three layouts serve all products of a linear layer:
//! - [`across`]: `[columns / w][rows / PAIR][w]`, contraction over the matrix' rows, a lane a column;
//! - [`along`]: `[rows / w][columns / PAIR][w]`, contraction over its columns, a lane a row;
//! - [`Lines`]: `[rows][columns / PAIR]`, contraction over its columns, word after word.
//!
//! A right operand's panel is as wide as the instruction set's register tile, so that a step reads one contiguous run.
//! A matrix unit's left operands are all row by row, so [`across_left`] turns its panels for it: `[columns][rows /
//! PAIR]`.
//!
//! Attention packs strided heads of any element by its own functions (`attention::cpu::pack`).

use rayon::prelude::*;

use super::scratch::Scratch;
use super::tile::Left;
use super::vector::{Kernel, Simd};

/// A row-major matrix of f32.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
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

    pub(super) fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// `count` rows from `first` on.
    fn part(&self, first: usize, count: usize) -> Self {
        let values = &self.values[first * self.columns..][..count * self.columns];
        Self { values, rows: count, columns: self.columns }
    }
}

/// Lanes of a panel that is a left operand: whole register tiles, and whole vectors.
pub(crate) const fn left<S: Simd>() -> usize {
    if S::MATRIX { 2 * S::ROWS } else { 8 * S::ROWS }
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
    /// Words of a panel.
    len: usize,
}

impl Panels {
    fn new<S: Simd>(contraction: usize, lanes: usize, width: usize, turned: bool) -> Self {
        let steps = steps::<S>(contraction);
        let len = if turned { width * apart::<S>(steps) } else { Self::len::<S>(contraction, width) };
        Self { words: Scratch::take(lanes.div_ceil(width) * len), steps, lanes, width, len }
    }

    /// Words of a panel.
    fn len<S: Simd>(contraction: usize, width: usize) -> usize {
        // room for rows that come in twos
        (contraction.next_multiple_of(2) / S::PAIR).next_multiple_of(S::STEPS) * width
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The words of panel `i`.
    pub fn panel(&self, i: usize) -> &[u32] {
        &self.words[i * self.len..][..self.len]
    }
}

/// Words of a right operand's panels.
#[cfg(feature = "media")]
pub(crate) fn right_words<S: Simd>(contraction: usize, lanes: usize) -> usize {
    lanes.div_ceil(right::<S>()) * along_words::<S>(contraction)
}

/// The columns of `m` as a right operand, contraction over its rows.
pub(crate) fn across<S: Simd>(m: Matrix) -> Panels {
    across_by::<S>(m, right::<S>(), false)
}

/// The columns of `m` as a left operand, contraction over its rows.
pub(crate) fn across_left<S: Simd>(m: Matrix) -> Panels {
    across_by::<S>(m, left::<S>(), S::MATRIX)
}

/// The columns of `m` in panels of `width`, contraction over its rows; `turned`: a row a lane.
pub(crate) fn across_by<S: Simd>(m: Matrix, width: usize, turned: bool) -> Panels {
    let mut panels = Panels::new::<S>(m.rows, m.columns, width, turned);
    let len = panels.len;
    if len > 0 {
        panels.words.par_chunks_exact_mut(len).enumerate().for_each(|(i, words)| {
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(Across { m, first: i * width, width, turned, words }) }
        });
    }
    panels
}

struct Across<'a> {
    m: Matrix<'a>,
    first: usize,
    width: usize,
    /// A row a lane: for pairs, and steps that are whole squares.
    turned: bool,
    words: &'a mut [u32],
}

impl Kernel for Across<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { m, first, width, turned, words } = self;
        let count = width.min(m.columns - first);
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
pub(crate) fn along<S: Simd>(m: Matrix) -> Panels {
    let width = right::<S>();
    let mut panels = Panels::new::<S>(m.columns, m.rows, width, false);
    let len = panels.len;
    if len > 0 {
        panels.words.par_chunks_exact_mut(len).enumerate().for_each(|(i, words)| {
            along_into::<S>(m.part(i * width, width.min(m.rows - i * width)), words);
        });
    }
    panels
}

/// Words of a panel of [`along`].
pub(crate) fn along_words<S: Simd>(contraction: usize) -> usize {
    Panels::len::<S>(contraction, right::<S>())
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
        let values = &m.values[first * m.columns..(first + count) * m.columns];
        if !S::HALF && count.is_multiple_of(S::ROWS) {
            return Block { words: Words::Lent(bytemuck::cast_slice(values)), left };
        }
        let mut words = Scratch::take(count.next_multiple_of(S::ROWS) * stride);
        let (rows, none) = words.split_at_mut(count * stride);
        if S::HALF {
            // SAFETY: this instruction set was chosen for this CPU.
            unsafe { S::run(Rows { m, first, stride, words: rows }) }
        } else {
            rows.copy_from_slice(bytemuck::cast_slice(values));
        }
        none.fill(0);
        Block { words: Words::Packed(words), left }
    }
}

/// A run of a left operand's rows, whole register tiles of them.
pub(crate) struct Block<'a> {
    words: Words<'a>,
    left: Left<0>,
}

enum Words<'a> {
    Packed(Scratch),
    /// Of a panel, or of the matrix itself.
    Lent(&'a [u32]),
}

impl<'a> Block<'a> {
    /// The lanes of panel `i` of [`across_left`] as rows.
    pub fn of_panel<S: Simd>(panels: &'a Panels, i: usize) -> Self {
        let (row, step) = if S::MATRIX { (panels.len / panels.width, 1) } else { (1, left::<S>()) };
        let left = Left { words: std::ptr::null(), tile: S::ROWS * row, row, step };
        Self { words: Words::Lent(panels.panel(i)), left }
    }

    /// The operand from step `step` on.
    pub fn at_step(&self, step: usize) -> Left<0> {
        let words = match &self.words {
            Words::Packed(words) => words,
            Words::Lent(words) => *words,
        };
        Left { words: words[step * self.left.step..].as_ptr(), ..self.left }
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
