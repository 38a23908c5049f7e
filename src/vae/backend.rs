//! What the VAE's layers ask of what computes them: [`Cpu`](super::cpu::Cpu) in memory, or a GPU with the frames on it.

use std::ops::Range;

use super::conv::Taps;
use super::frame::Frame;
use super::resample::{AverageDown, CopyUp};
use super::shards::RowShards;
use crate::Result;

/// A processor and how it holds frames and weights. Operations that take `&mut` change values in place; all others make
/// new ones.
///
/// # Errors
/// A CPU's own work does not fail. A GPU's may: memory runs out, or a kernel cannot be launched. Exchanges with other
/// ranks may on both.
pub(super) trait Backend: Clone + Send + Sync + 'static {
    /// A frame's values, `[rows, width, channels]` in f32. They are not cloned, as a clone on a GPU is another name.
    type Values: Send + Sync;
    /// A number for each channel: a bias, a norm's factors. A clone is another name for it.
    type Row: Clone + Send + Sync;
    /// A frame made ready to be convolved, which nothing changes any more. A clone is another name for it.
    type Packed: Clone + Send + Sync;
    /// A convolution's weights.
    type Weights: Send + Sync;
    /// The weights of a product of each pixel with a matrix.
    type Matrix: Send + Sync;

    /// A frame from memory.
    fn upload(&self, frame: Frame) -> Result<Frame<Self::Values>>;
    /// A frame to memory.
    fn download(&self, frame: Frame<Self::Values>) -> Result<Frame>;
    fn row(&self, values: Vec<f32>) -> Result<Self::Row>;
    /// Of `[out, channels, frames, rows, columns]`.
    fn weights(&self, values: &[f32], shape: [usize; 5]) -> Result<Self::Weights>;
    /// Of `[out, channels]`.
    fn matrix(&self, values: Vec<f32>, shape: [usize; 2]) -> Result<Self::Matrix>;

    /// `pixels` times the same pixel.
    fn repeat(&self, pixel: &Self::Row, pixels: usize) -> Result<Self::Values>;
    /// Adds a row to each pixel.
    fn add_row(&self, to: &mut Frame<Self::Values>, row: &Self::Row) -> Result<()>;
    /// Adds as many values.
    fn add(&self, to: &mut Self::Values, values: &Self::Values) -> Result<()>;
    /// The values of some rows and columns, counted from the frame's first.
    fn part(&self, x: &Frame<Self::Values>, rows: Range<usize>, columns: Range<usize>) -> Result<Self::Values>;
    /// All ranks' values of a frame.
    fn gather(&self, values: Self::Values, shards: &dyn RowShards) -> Result<Self::Values>;

    /// A frame with a border of zeros, or, given `near`, with the rows of ranks above and below. Given the factors of a
    /// norm, its pixels are SiLU of those of norm 1 times the factors.
    fn pack(
        &self,
        x: &Frame<Self::Values>,
        norm: Option<&Self::Row>,
        near: Option<&dyn RowShards>,
    ) -> Result<Self::Packed>;
    /// `out += the convolution`.
    fn convolve(&self, taps: &Taps<Self>, out: &mut Frame<Self::Values>) -> Result<()>;
    /// Each pixel times the matrix, plus a bias.
    fn multiply(&self, x: &Frame<Self::Values>, matrix: &Self::Matrix, bias: &Self::Row) -> Result<Self::Values>;

    /// Each pixel's channels scaled to norm 1, times the factors.
    fn normed(&self, x: &Frame<Self::Values>, factors: &Self::Row) -> Result<Self::Values>;
    /// `softmax(q kᵀ / sqrt(channels)) v`; `key` and `value` are of all pixels of the whole frame.
    fn attend(&self, query: &Frame<Self::Values>, key: &Self::Values, value: &Self::Values) -> Result<Self::Values>;

    /// Means over the groups of a shortcut; a frame that is missing is zeros. Squares begin `skip` rows and columns
    /// into the frames, the means are of `size` `[rows, width]`.
    fn mean(
        &self,
        groups: &AverageDown<Self>,
        frames: [Option<&Frame<Self::Values>>; 2],
        skip: [usize; 2],
        size: [usize; 2],
    ) -> Result<Self::Values>;
    /// The channels of a shortcut spread over larger pixels: the frame at place `time`.
    fn spread(&self, groups: &CopyUp, x: &Frame<Self::Values>, time: usize) -> Result<Self::Values>;

    fn bytes_of_values(values: &Self::Values) -> usize;
    fn bytes_of_packed(packed: &Self::Packed) -> usize;
    fn bytes_of_weights(weights: &Self::Weights) -> usize;
    fn bytes_of_matrix(matrix: &Self::Matrix) -> usize;
}

impl<V> Frame<V> {
    /// A frame of the same rectangle whose pixels are all `pixel`, of so many channels.
    pub(super) fn filled<B: Backend<Values = V>>(&self, on: &B, pixel: &B::Row, channels: usize) -> Result<Self> {
        Ok(self.with(channels, on.repeat(pixel, self.pixels())?))
    }

    /// Drops `n` rows or columns, `[above, below, left, right]`, on sides that are cut: they were made without what
    /// lies beyond.
    pub(super) fn trimmed<B: Backend<Values = V>>(self, on: &B, n: [usize; 4]) -> Result<Self> {
        let [above, below, left, right] = std::array::from_fn(|side| if self.cut[side] { n[side] } else { 0 });
        if above + below + left + right == 0 {
            return Ok(self);
        }
        self.cropped(on, above..self.rows - below, left..self.width - right)
    }

    /// The rectangle of this frame where `other` lies.
    pub(super) fn within<B: Backend<Values = V>>(&self, on: &B, other: &Self) -> Result<Self> {
        let [y, x] = [0, 1].map(|axis| other.origin[axis] - self.origin[axis]);
        self.cropped(on, y..y + other.rows, x..x + other.width)
    }

    fn cropped<B: Backend<Values = V>>(&self, on: &B, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        let rectangle = self.rectangle(&rows, &columns);
        Ok(rectangle.with(self.channels, on.part(self, rows, columns)?))
    }
}
