//! What a prediction stands for when a clip is sampled: a velocity, or the clean clip.

use super::objective::Objective;
use super::options::Prediction;
use crate::{Result, bail};
use candle_core::Tensor;

impl Objective {
    /// The velocity that `prediction` stands for at the state `x` and `sigma`, in any shape.
    ///
    /// # Errors
    /// If sigma is 0 for an x-prediction, whose velocity is not defined there, or if shapes or dtypes differ.
    pub fn velocity(&self, prediction: &Tensor, x: &Tensor, sigma: f64) -> Result<Tensor> {
        match self.prediction {
            Prediction::V => Ok(prediction.clone()),
            Prediction::X if sigma > 0.0 => Ok((x - prediction)?.affine(1.0 / sigma, 0.0)?),
            Prediction::X => bail!(Config, "an x-prediction has no velocity at sigma = {sigma}"),
        }
    }

    /// The clean clip that `prediction` stands for at the state `x` and `sigma`, in any shape.
    ///
    /// # Errors
    /// If shapes or dtypes differ.
    pub fn clean(&self, prediction: &Tensor, x: &Tensor, sigma: f64) -> Result<Tensor> {
        match self.prediction {
            Prediction::V => Ok((x - prediction.affine(sigma, 0.0)?)?),
            Prediction::X => Ok(prediction.clone()),
        }
    }
}
