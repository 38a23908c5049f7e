//! One frame of pixels or features, the unit that streams through the VAE's layers.

use rayon::prelude::*;
use std::ops::Range;

use crate::simd::uninit_vec::UninitVec;

/// Features of one frame, or of a rectangle of it, as f32 `[rows, width, channels]`. The values of type `V` lie in
/// memory; between the layers they may lie on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame<V = Vec<f32>> {
    /// Row and column of the whole frame, at this frame's scale, that are the first here.
    pub origin: [usize; 2],
    /// Which sides the picture goes on beyond: above, below, left and right. The frame of a whole picture has none.
    pub cut: [bool; 4],
    pub rows: usize,
    pub width: usize,
    pub channels: usize,
    /// `rows * width * channels` values.
    pub values: V,
}

impl<V> Frame<V> {
    /// A frame of the same rectangle with other channels.
    pub(super) fn with<W>(&self, channels: usize, values: W) -> Frame<W> {
        self.rescaled(|at| at, [self.rows, self.width, channels], values)
    }

    /// A frame of the same rectangle at another scale, which `scale` brings rows and columns of this one to.
    pub(super) fn rescaled<W>(
        &self,
        scale: impl Fn(usize) -> usize,
        [rows, width, channels]: [usize; 3],
        values: W,
    ) -> Frame<W> {
        Frame { origin: self.origin.map(scale), cut: self.cut, rows, width, channels, values }
    }

    /// Pixels.
    pub(super) fn pixels(&self) -> usize {
        self.rows * self.width
    }

    /// The rectangle of these rows and columns, counted from this frame's first; its values are still to be made.
    ///
    /// # Panics
    /// If it is not within the frame.
    pub(super) fn rectangle(&self, rows: &Range<usize>, columns: &Range<usize>) -> Frame<()> {
        let size = [self.rows, self.width];
        assert!(rows.end <= size[0] && columns.end <= size[1], "{rows:?} x {columns:?} of a frame of {size:?}");
        let [above, below, left, right] = self.cut;
        Frame {
            origin: [self.origin[0] + rows.start, self.origin[1] + columns.start],
            cut: [
                above || rows.start > 0,
                below || rows.end < self.rows,
                left || columns.start > 0,
                right || columns.end < self.width,
            ],
            rows: rows.len(),
            width: columns.len(),
            channels: self.channels,
            values: (),
        }
    }
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
        let part = self.rectangle(&rows, &columns);
        let n = self.width * self.channels;
        let values = match columns.len() == self.width {
            true => joined(&[&self.values[rows.start * n..rows.end * n]]),
            false => {
                let columns = columns.start * part.channels..columns.end * part.channels;
                joined(&rows.map(|row| &self.row(row)[columns.clone()]).collect::<Vec<_>>())
            }
        };
        part.with(part.channels, values)
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
}

/// The parts one after the other, copied by all threads.
pub(super) fn joined(parts: &[&[f32]]) -> Vec<f32> {
    const RUN: usize = 1 << 15;
    let runs: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks(RUN)).collect();
    let mut values = UninitVec::new(runs.iter().map(|run| run.len()).sum());
    let slots = values.chunks_of(runs.iter().map(|run| run.len()));
    slots.into_par_iter().zip(runs).for_each(|(slot, run)| {
        slot.copy_of(run);
    });
    values.into_vec()
}
