//! Matrix products of packed panels on register tiles: `out (+)= A B`.
//!
//! A tile of `R` rows and up to `COLS` vectors keeps all its sums in registers; every step of the contraction loads the
//! vectors of B once and one word of A a row, so each load feeds several multiply-adds. A is read word by word with
//! two strides, which lets one kernel serve A and its transpose; B's rows are contiguous words. Nothing here knows of
//! attention: any product of packed operands may use it.

use super::simd::Simd;

/// Rows of a register tile: 6 x 4 vectors are 24 of AVX-512's 32 registers, 6 x 2 are 12 of AVX2's 16.
pub(super) const ROWS: usize = 6;

/// The left operand: word (row, step) lies at `words + row * row + step * step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub words: *const u32,
    pub row: usize,
    pub step: usize,
}

/// The right operand: step k's words are contiguous from `words + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub words: *const u32,
    pub step: usize,
}

/// Row-major f32 result.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub values: *mut f32,
    pub row: usize,
}

/// `out[R, width] = A B`, or `+= A B` if `ADD`; `width` is a multiple of the unit's lanes.
///
/// # Safety
/// The CPU has the unit's features; the operands hold R rows, `steps` steps and `width` columns; `out` is no one else's.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const R: usize, const ADD: bool>(
    steps: usize,
    a: Left,
    b: Right,
    out: Out,
    width: usize,
) {
    let vectors = width / S::LANES;
    let parts = vectors.div_ceil(S::COLS);
    let mut done = 0;
    for part in 0..parts {
        let cols = (vectors - done).div_ceil(parts - part); // even parts: 5 vectors are 3 + 2, not 4 + 1
        // SAFETY: columns done.. of the same operands.
        unsafe {
            let b = Right { words: b.words.add(done * S::LANES), ..b };
            let out = Out { values: out.values.add(done * S::LANES), ..out };
            match cols {
                1 => tile::<S, R, 1, ADD>(steps, a, b, out),
                2 => tile::<S, R, 2, ADD>(steps, a, b, out),
                3 => tile::<S, R, 3, ADD>(steps, a, b, out),
                _ => tile::<S, R, 4, ADD>(steps, a, b, out),
            }
        }
        done += cols;
    }
}

/// One register tile of [`product`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const C: usize, const ADD: bool>(steps: usize, a: Left, b: Right, out: Out) {
    if C > S::COLS {
        return; // never asked for: `product` cuts to COLS; said here so that no code is made for it
    }
    // SAFETY: the caller's promise; every access is within R rows, C vectors and `steps` steps.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        if ADD {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = S::load(out.values.add(r * out.row + c * S::LANES));
                }
            }
        }
        let (mut ap, mut bp) = (a.words, b.words);
        for _ in 0..steps {
            let mut right = [S::words(bp); C];
            for c in 1..C {
                right[c] = S::words(bp.add(c * S::LANES));
            }
            for r in 0..R {
                let left = S::word(ap.add(r * a.row));
                for c in 0..C {
                    sums[r][c] = S::dot(sums[r][c], left, right[c]);
                }
            }
            ap = ap.add(a.step);
            bp = bp.add(b.step);
        }
        for r in 0..R {
            for c in 0..C {
                S::store(out.values.add(r * out.row + c * S::LANES), sums[r][c]);
            }
        }
    }
}
