//! Multiplies packed panels on register tiles: `out (+)= A B`.
//!
//! A tile of `R` rows and up to `COLS` vectors keeps all its sums in registers; every step of the contraction loads the
//! vectors of B once and one word of A a row, so each load feeds several multiply-adds. A is read word by word with
//! two strides, which lets one kernel serve A and its transpose; B's rows are contiguous words. Nothing here knows of
//! attention: any product of packed operands may use it.

pub(crate) use super::operands::{Left, Out, Right};
use super::vector::Simd;

/// Rows of a vector unit's register tile, [`Simd::ROWS`].
const ROWS: usize = 6;

impl<const ROW: usize> Left<ROW> {
    /// Rows `row` apart whose steps are neighbours; `row` is `ROW` on vector units.
    pub fn rows<S: Simd>(words: *const u32, row: usize) -> Self {
        debug_assert!(S::MATRIX || row == ROW);
        Self { words, tile: S::ROWS * row, row, step: 1 }
    }
}

impl Left<1> {
    /// Rows packed for the unit: as [`Self::steps`] for one tile after another, or row by row for a matrix unit.
    pub fn tiles<S: Simd>(words: *const u32, steps: usize) -> Self {
        let (row, step) = if S::MATRIX { (steps, 1) } else { (1, S::ROWS) };
        Self { words, tile: S::ROWS * steps, row, step }
    }

    /// Steps `step` apart, whose rows are neighbours: for vector units.
    pub fn steps<S: Simd>(words: *const u32, step: usize) -> Self {
        debug_assert!(!S::MATRIX);
        Self { words, tile: S::ROWS, row: 1, step }
    }
}

impl Right {
    /// `words` as `[column blocks][steps][column_block]`, of `width` columns.
    pub fn new<S: Simd>(words: &[u32], steps: usize, width: usize) -> Self {
        debug_assert!(words.len() >= Self::words::<S>(steps, width));
        let column_block = column_block::<S>(width);
        Self { words: words.as_ptr(), step: column_block, column_block: steps * column_block }
    }

    /// How many words that takes: the last column block may have columns of no use.
    pub fn words<S: Simd>(steps: usize, width: usize) -> usize {
        steps * width.next_multiple_of(column_block::<S>(width))
    }
}

/// Columns of a column block of a right operand with `width` of them: as even as register tiles allow, 5 vectors being
/// 3 + 2, not 4 + 1.
pub(crate) fn column_block<S: Simd>(width: usize) -> usize {
    let vectors = width / S::LANES;
    vectors.div_ceil(vectors.div_ceil(S::COLS)) * S::LANES
}

/// `out = A B` or `out += A B` over `steps` steps on a vector unit. `rows` is a multiple of [`ROWS`], or 4 more than
/// one; `width` a multiple of the instruction set's lanes. Called through [`Simd::product`], which compiles it once for
/// each instruction set; a matrix unit has its own.
///
/// # Safety
/// The CPU has the features of `S`; the operands hold what `out` and `steps` ask for; `out` is no one else's.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
    for (i, column) in (0..out.width).step_by(b.step).enumerate() {
        // SAFETY: a column block and its columns of the same operands.
        unsafe {
            let b = Right { words: b.words.add(i * b.column_block), ..b };
            let out = Out { values: out.values.add(column), ..out };
            match b.step.min(out.width - column) / S::LANES {
                1 => tiles::<S, ROW, 1>(steps, a, b, out),
                2 => tiles::<S, ROW, 2>(steps, a, b, out),
                3 => tiles::<S, ROW, 3>(steps, a, b, out),
                _ => tiles::<S, ROW, 4>(steps, a, b, out),
            }
        }
    }
}

/// `C` vectors of columns, tile after tile: B's part of the panel stays in L1.
#[inline(always)]
unsafe fn tiles<S: Simd, const ROW: usize, const C: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
    if C > S::COLS {
        return; // never asked for: `product` cuts to COLS; said here so that no code is made for it
    }
    let mut row = 0;
    while row < out.rows {
        // SAFETY: rows row.. of the same operands.
        unsafe {
            let a = Left { words: a.words.add(row / ROWS * a.tile), ..a };
            let out = Out { values: out.values.add(row * out.stride), ..out };
            if out.rows - row >= ROWS {
                tile::<S, ROW, ROWS, C>(steps, a, b, out);
            } else {
                tile::<S, ROW, 4, C>(steps, a, b, out);
            }
        }
        row += ROWS;
    }
}

/// One register tile of [`product`].
#[inline(always)]
unsafe fn tile<S: Simd, const ROW: usize, const R: usize, const C: usize>(
    steps: usize,
    a: Left<ROW>,
    b: Right,
    out: Out,
) {
    let between = if ROW > 0 { ROW } else { a.row };
    // SAFETY: the caller's promise; every access is within R rows, C vectors and `steps` steps.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        let (mut ap, mut bp) = (a.words, b.words);
        for _ in 0..steps {
            let mut right = [S::words(bp); C];
            for (c, right) in right.iter_mut().enumerate().skip(1) {
                *right = S::words(bp.add(c * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = S::word(ap.add(r * between));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = S::dot(*sum, left, right);
                }
            }
            ap = ap.add(a.step);
            bp = bp.add(b.step);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (c, sum) in sums.into_iter().enumerate() {
                let target = out.values.add(r * out.stride + c * S::LANES);
                // Added last, not first: the first steps then wait for no load, and adders are idle anyway.
                S::store(target, if out.add { S::add(S::load(target), sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::portable::Portable;
    use super::*;

    type Unit = Portable<false>;

    /// Strips of 8, 8 and 4 columns, tiles of 6 and 4 rows, with both kinds of left operand, against sums word by word.
    #[test]
    fn partial_last_column_block_gives_exact_products() {
        let (rows, steps, width) = (10, 7, 20);
        let value = |i: usize, k: usize| (i * 31 + k * 17) as f32 % 11.0 - 5.0;
        let column_block = column_block::<Unit>(width);
        assert_eq!((column_block, Right::words::<Unit>(steps, width)), (8, steps * 24));
        let mut right = vec![f32::NAN.to_bits(); steps * 24]; // what no column needs is not used
        for (k, column) in (0..steps).flat_map(|k| (0..width).map(move |column| (k, column))) {
            right[column / column_block * steps * column_block + k * column_block + column % column_block] =
                value(column + 100, k).to_bits();
        }
        const STRIDE: usize = 16;
        let (mut by_step, mut by_row) = (vec![0u32; 2 * ROWS * steps], vec![0u32; 2 * ROWS * STRIDE]);
        for (i, k) in (0..rows).flat_map(|i| (0..steps).map(move |k| (i, k))) {
            by_step[i / ROWS * ROWS * steps + k * ROWS + i % ROWS] = value(i, k).to_bits();
            by_row[i * STRIDE + k] = value(i, k).to_bits();
        }
        let b = Right::new::<Unit>(&right, steps, width);
        let mut sums = vec![0.0; rows * width];
        for add in [false, true] {
            let out = Out { values: sums.as_mut_ptr(), stride: width, rows, width, add };
            // SAFETY: the portable code needs no features; operands and result are as long as they say.
            unsafe {
                match add {
                    false => product::<Unit, 1>(steps, Left::tiles::<Unit>(by_step.as_ptr(), steps), b, out),
                    true => product::<Unit, STRIDE>(steps, Left::rows::<Unit>(by_row.as_ptr(), STRIDE), b, out),
                }
            }
        }
        for (i, row) in sums.chunks_exact(width).enumerate() {
            for (column, sum) in row.iter().enumerate() {
                let exact: f32 = (0..steps).map(|k| value(i, k) * value(column + 100, k)).sum();
                assert_eq!(*sum, 2.0 * exact, "row {i}, column {column}");
            }
        }
    }
}
