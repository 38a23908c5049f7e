//! The loss in the forms that training on a CPU does not need: on any device, and without its gradient.

use super::objective::{CHUNK, Objective};
use super::options::Prediction;
use crate::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

impl Objective {
    /// [`Objective::loss`] and its gradient by Candle's operations, of `[prediction, x0, eps]` on any device.
    ///
    /// # Errors
    /// If shapes or dtypes differ.
    pub fn loss_of(&self, rows: [&Tensor; 3], sigma: f64, weight: f64) -> Result<(f64, Tensor)> {
        let [prediction, x0, eps] = rows;
        let error = match self.prediction {
            Prediction::V => (prediction - (eps - x0)?)?,
            Prediction::X => (prediction - x0)?,
        };
        let per_error = self.velocity_per_unit(sigma).powi(2);
        let sum = error.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok((per_error * sum, error.affine(2.0 * weight * per_error, 0.0)?))
    }

    /// The loss of [`Objective::loss`] alone, for held-out clips.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn loss_only(&self, prediction: &[f32], x0: &[f32], eps: &[f32], sigma: f64) -> f64 {
        let n = prediction.len();
        assert!(x0.len() == n && eps.len() == n, "loss_only: {n} {} {}", x0.len(), eps.len());
        let parts: Vec<f64> = prediction
            .par_chunks(CHUNK)
            .zip(x0.par_chunks(CHUNK).zip(eps.par_chunks(CHUNK)))
            .map(|(prediction, (x0, eps))| {
                let errors =
                    prediction.iter().zip(x0.iter().zip(eps)).map(|(&p, (&x0, &eps))| p - self.target(x0, eps));
                errors.fold(0.0, |sum, error| sum + f64::from(error) * f64::from(error))
            })
            .collect();
        self.velocity_per_unit(sigma).powi(2) * parts.iter().sum::<f64>()
    }
}
