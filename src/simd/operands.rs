//! Describes where the operands and the result of a product of packed panels lie. [`super::tile`] makes them.

/// The left operand: word (tile, row in it, step) lies at `words + tile * tile_stride + row * row_stride + step *
/// step_stride`. A matrix unit's steps are neighbours, and its tiles follow each other: all rows are `row` apart.
///
/// `ROW` is the stride of a vector unit's rows where the compiler knows it, and a tile's addresses then need no
/// arithmetic; where it is 0, `row` is the stride.
#[derive(Clone, Copy)]
pub(crate) struct Left<const ROW: usize> {
    pub words: *const u32,
    pub tile: usize,
    pub row: usize,
    pub step: usize,
}

/// The right operand, in column blocks of [`column_block`](super::tile::column_block) columns: step k's words of column
/// block s are contiguous from `words + s * column_block + k * step`. What a register tile reads is then one run, which
/// hardware prefetches; of rows of all columns it would be every fourth line.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub words: *const u32,
    pub step: usize,
    pub column_block: usize,
}

/// The row-major f32 result: `rows` by `width`, each row `stride` from the last, added to what is there if `add`.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub values: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub width: usize,
    pub add: bool,
}
