//! What the network predicts: the loss of a prediction, its gradient, and the velocity it stands for.
//!
//! Both predictions are judged by the squared error of the velocity. A v-prediction is the velocity `eps - x0` itself.
//! An x-prediction (JiT, Li and He 2025) is the clean clip, from which `v = (x_sigma - x_hat) / sigma`; in the loss
//! sigma is clamped from below in prediction and target alike, so `x_sigma` cancels and the loss is that of `x_hat`
//! over the clamped sigma squared. The clamp weighs the loss only: in sampling it would bend the flow near sigma = 0.

use super::options::{DiffusionOptions, Prediction};
use crate::{Result, bail};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Elements of a partial sum: fixed, so that the loss has the same bits for any number of threads.
const CHUNK: usize = 4096;

/// The network's target and its loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    prediction: Prediction,
    clamp: f64,
}

impl Objective {
    /// The objective that `options` ask for.
    ///
    /// # Errors
    /// If the clamp is not in (0, 1].
    pub fn new(options: &DiffusionOptions) -> Result<Self> {
        if !(options.clamp > 0.0 && options.clamp <= 1.0) {
            bail!(Config, "[diffusion] clamp = {}: must be above 0 and at most 1", options.clamp);
        }
        Ok(Self { prediction: options.prediction, clamp: options.clamp })
    }

    /// The loss of a tile of one sample's rows, and its gradient.
    ///
    /// Returns the squared velocity error summed over elements, unweighted. Writes into `grad` the gradient of `weight`
    /// times that sum with respect to `prediction`; a mean over the global batch has weight 1 / (its number of
    /// elements). All slices are rows of the same tokens in the same order.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn loss(&self, prediction: &[f32], x0: &[f32], eps: &[f32], sigma: f64, weight: f64, grad: &mut [f32]) -> f64 {
        let n = prediction.len();
        assert!(
            x0.len() == n && eps.len() == n && grad.len() == n,
            "loss: {n} {} {} {}",
            x0.len(),
            eps.len(),
            grad.len()
        );
        // The squared velocity error of a unit error of the prediction.
        let per_error = self.velocity_per_unit(sigma).powi(2);
        let slope = (2.0 * weight * per_error) as f32;
        let parts: Vec<f64> = grad
            .par_chunks_mut(CHUNK)
            .zip(prediction.par_chunks(CHUNK))
            .zip(x0.par_chunks(CHUNK).zip(eps.par_chunks(CHUNK)))
            .map(|((grad, prediction), (x0, eps))| {
                let mut sum = 0.0;
                for ((grad, &prediction), (&x0, &eps)) in grad.iter_mut().zip(prediction).zip(x0.iter().zip(eps)) {
                    let error = prediction - self.target(x0, eps);
                    *grad = slope * error;
                    sum += f64::from(error) * f64::from(error);
                }
                sum
            })
            .collect();
        per_error * parts.iter().sum::<f64>()
    }

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

    /// What the prediction should be.
    fn target(&self, x0: f32, eps: f32) -> f32 {
        match self.prediction {
            Prediction::V => eps - x0,
            Prediction::X => x0,
        }
    }

    /// How far the loss's velocity moves with the prediction, up to sign.
    fn velocity_per_unit(&self, sigma: f64) -> f64 {
        match self.prediction {
            Prediction::V => 1.0,
            Prediction::X => 1.0 / sigma.max(self.clamp),
        }
    }
}
