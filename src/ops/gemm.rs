//! Matrix products on slices: `c = a b` or `c += a b`, for any strides, through the `gemm` crate.
//!
//! The one unsafe call of the linear layers is here. Threads are those of the current rayon pool.

use super::Real;

/// A matrix in a slice: element (i, j) is `values[i * row + j * column]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix `[rows, columns]`.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row: columns, column: 1 }
    }

    /// The transpose, over the same values.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `c = a b`, or `c += a b` if `accumulate`; `c` is row-major `[a.rows, b.columns]`.
pub fn gemm<T: Real>(c: &mut [T], a: Matrix<T>, b: Matrix<T>, accumulate: bool) {
    assert_eq!(a.columns, b.rows, "the contraction's lengths");
    assert_eq!(c.len(), a.rows * b.columns, "the product's size");
    if c.is_empty() {
        return;
    }
    if a.columns == 0 {
        if !accumulate {
            c.fill(T::zero());
        }
        return;
    }
    let threads = rayon::current_num_threads();
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the asserts above and in `Matrix::new` make every (i, j) within rows x columns lie inside its slice, and `c` is
    // borrowed mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            c.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}
