//! What the network predicts: the loss of a prediction, and its gradient.
//!
//! Both predictions are judged by the squared error of the velocity. A v-prediction is the velocity `eps - x0` itself.
//! An x-prediction (JiT, Li and He 2025) is the clean clip, from which `v = (x_sigma - x_hat) / sigma`; in the loss
//! sigma is clamped from below in prediction and target alike, so `x_sigma` cancels and the loss is that of `x_hat`
//! over the clamped sigma squared. The clamp weighs the loss only: in sampling it would bend the flow near sigma = 0.

use super::options::{DiffusionOptions, Prediction};
use crate::{Result, bail};
use rayon::prelude::*;

/// Elements of a partial sum: fixed, so that the loss has the same bits for any number of threads.
pub(super) const CHUNK: usize = 4096;

/// The network's target and its loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub(super) prediction: Prediction,
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
        let others = [x0.len(), eps.len(), grad.len()];
        assert!(others == [n; 3], "loss: {n} {others:?}");
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

    /// What the prediction should be.
    pub(super) fn target(&self, x0: f32, eps: f32) -> f32 {
        match self.prediction {
            Prediction::V => eps - x0,
            Prediction::X => x0,
        }
    }

    /// How far the loss's velocity moves with the prediction, up to sign.
    pub(super) fn velocity_per_unit(&self, sigma: f64) -> f64 {
        match self.prediction {
            Prediction::V => 1.0,
            Prediction::X => 1.0 / sigma.max(self.clamp),
        }
    }
}
