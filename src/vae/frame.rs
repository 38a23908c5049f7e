//! One frame of pixels or features, the unit that streams through the VAE's layers.

use std::ops::Range;

/// Features of one frame, or of a rectangle of it, as f32 `[rows, width, channels]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Row and column of the whole frame, at this frame's scale, that are the first here.
    pub origin: [usize; 2],
    /// Which sides the picture goes on beyond: above, below, left and right. The frame of a whole picture has none.
    pub cut: [bool; 4],
    pub rows: usize,
    pub width: usize,
    pub channels: usize,
    /// `rows * width * channels` values.
    pub values: Vec<f32>,
}

impl Frame {
    /// A whole frame.
    ///
    /// # Panics
    /// If the values are not `rows * width * channels`.
    pub fn new([rows, width, channels]: [usize; 3], values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * width * channels, "values of a frame of {rows} x {width} x {channels}");
        Self { origin: [0; 2], cut: [false; 4], rows, width, channels, values }
    }

    /// A frame of the same rectangle with other channels.
    pub(super) fn with(&self, channels: usize, values: Vec<f32>) -> Self {
        self.rescaled(|at| at, [self.rows, self.width, channels], values)
    }

    /// A frame of the same rectangle at another scale, which `scale` brings rows and columns of this one to.
    pub(super) fn rescaled(&self, scale: impl Fn(usize) -> usize, shape: [usize; 3], values: Vec<f32>) -> Self {
        Self { origin: self.origin.map(scale), cut: self.cut, ..Self::new(shape, values) }
    }

    /// A frame of the same rectangle whose pixels are all `pixel`.
    pub(super) fn filled(&self, pixel: &[f32]) -> Self {
        self.with(pixel.len(), pixel.repeat(self.rows * self.width))
    }

    /// From planes `[channels, rows, width]`.
    pub fn from_planes([channels, rows, width]: [usize; 3], planes: &[f32]) -> Self {
        let n = rows * width;
        let mut values = vec![0.0; channels * n];
        for (c, plane) in planes.chunks_exact(n.max(1)).enumerate().take(channels) {
            for (pixel, value) in values.chunks_exact_mut(channels).zip(plane) {
                pixel[c] = *value;
            }
        }
        Self::new([rows, width, channels], values)
    }

    /// Writes the values of channel `c`, row-major, into `plane`.
    pub fn plane(&self, c: usize, plane: &mut [f32]) {
        for (value, pixel) in plane.iter_mut().zip(self.values.chunks_exact(self.channels)) {
            *value = pixel[c];
        }
    }

    /// The first or last row.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        let n = self.width * self.channels;
        &self.values[row * n..][..n]
    }

    /// The rectangle of these rows and columns, counted from this frame's first.
    ///
    /// # Panics
    /// If it is not within the frame.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && columns.end <= self.width, "{rows:?} x {columns:?} of {self:?}");
        let c = self.channels;
        let mut values = Vec::with_capacity(rows.len() * columns.len() * c);
        for row in rows.clone() {
            values.extend_from_slice(&self.row(row)[columns.start * c..columns.end * c]);
        }
        let [above, below, left, right] = self.cut;
        Self {
            origin: [self.origin[0] + rows.start, self.origin[1] + columns.start],
            cut: [
                above || rows.start > 0,
                below || rows.end < self.rows,
                left || columns.start > 0,
                right || columns.end < self.width,
            ],
            ..Self::new([rows.len(), columns.len(), c], values)
        }
    }

    /// Drops `n` rows or columns, `[above, below, left, right]`, on sides that are cut: they were made without what
    /// lies beyond.
    pub(super) fn trimmed(self, n: [usize; 4]) -> Self {
        let [above, below, left, right] = std::array::from_fn(|side| if self.cut[side] { n[side] } else { 0 });
        if above + below + left + right == 0 {
            return self;
        }
        self.part(above..self.rows - below, left..self.width - right)
    }

    /// The rectangle of this frame where `other` lies.
    pub(super) fn within(&self, other: &Self) -> Self {
        let [y, x] = [0, 1].map(|axis| other.origin[axis] - self.origin[axis]);
        self.part(y..y + other.rows, x..x + other.width)
    }

    /// Copies another frame's values to where its origin says it lies in this one.
    ///
    /// # Panics
    /// If it does not lie within this frame, or has other channels.
    pub fn put(&mut self, other: &Self) {
        assert_eq!(self.channels, other.channels);
        let [y, x] = [0, 1].map(|axis| other.origin[axis] - self.origin[axis]);
        for row in 0..other.rows {
            let at = ((y + row) * self.width + x) * self.channels;
            self.values[at..at + other.width * self.channels].copy_from_slice(other.row(row));
        }
    }

    /// Adds the rows that come below.
    pub fn append(&mut self, other: &Self) {
        debug_assert_eq!([self.width, self.channels], [other.width, other.channels]);
        self.values.extend_from_slice(&other.values);
        self.rows += other.rows;
    }

    /// Adds another frame of the same shape.
    pub(super) fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.values.len(), other.values.len());
        self.values.iter_mut().zip(&other.values).for_each(|(x, y)| *x += y);
    }
}
