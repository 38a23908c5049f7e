//! What a layer needs of the frame's rows that are elsewhere, where several processes share a frame by rows.

use crate::Result;

/// The rows of the frame that this process does not hold. Every process makes the same calls in the same order.
pub trait RowShards {
    /// Whether this process holds the whole frame, so that it need not ask.
    fn is_whole(&self) -> bool;

    /// The row above this process's first and the row below its last, given these two, `width * channels` values each;
    /// none where the picture ends.
    ///
    /// # Errors
    /// Those of the exchange.
    fn neighbours(&self, ends: [&[f32]; 2]) -> Result<[Option<Vec<f32>>; 2]>;

    /// The values of all processes' rows of a frame, from the first row to the last, given those of this one's.
    ///
    /// # Errors
    /// Those of the exchange.
    fn gather(&self, values: &[f32]) -> Result<Vec<f32>>;
}

/// The whole frame is here.
pub struct Whole;

impl RowShards for Whole {
    fn is_whole(&self) -> bool {
        true
    }

    fn neighbours(&self, _: [&[f32]; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        Ok([None, None])
    }

    fn gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }
}
