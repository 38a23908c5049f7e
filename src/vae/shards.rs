//! What a layer needs of the frame's rows that are elsewhere, where several processes share a frame by rows.

use super::frame::Frame;
use crate::Result;

/// The rows of the frame that this process does not hold. Every process makes the same calls in the same order.
pub trait RowShards {
    /// The row above this frame's first and the row below its last, `width * channels` each; none where the picture
    /// ends.
    ///
    /// # Errors
    /// Those of the exchange.
    fn neighbours(&self, frame: &Frame) -> Result<[Option<Vec<f32>>; 2]>;

    /// The values of all processes' rows of a frame, from the first row to the last.
    ///
    /// # Errors
    /// Those of the exchange.
    fn gather(&self, frame: &Frame) -> Result<Vec<f32>>;
}

/// The whole frame is here.
pub struct Whole;

impl RowShards for Whole {
    fn neighbours(&self, _: &Frame) -> Result<[Option<Vec<f32>>; 2]> {
        Ok([None, None])
    }

    fn gather(&self, frame: &Frame) -> Result<Vec<f32>> {
        Ok(frame.values.clone())
    }
}
