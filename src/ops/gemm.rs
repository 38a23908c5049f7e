//! Matrix products on f64 slices, for checks: `c = a b` or `c += a b`, for any strides, through the `gemm` crate.
//!
//! Threads are those of the current rayon pool.

/// A matrix in a slice: element (i, j) is `values[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f64],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix `[rows, columns]`.
    pub fn new(values: &'a [f64], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row: columns, column: 1 }
    }

    /// The transpose, over the same values.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `c = a b`, or `c += a b` if `accumulate`; `c` is row-major `[a.rows, b.columns]`.
pub(super) fn gemm(c: &mut [f64], a: Matrix, b: Matrix, accumulate: bool) {
    assert_eq!(a.columns, b.rows, "the contraction's lengths");
    assert_eq!(c.len(), a.rows * b.columns, "the product's size");
    if c.is_empty() {
        return;
    }
    if a.columns == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    let threads = rayon::current_num_threads();
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the asserts above and in `Matrix::new` make every (i, j) within rows x columns lie inside its slice, and
    // `c` is borrowed mutably, so it overlaps neither `a` nor `b`.
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
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
