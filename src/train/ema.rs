//! The moving average of the weights, which sampling and the held-out loss use.

use crate::{Result, bail};
use rayon::prelude::*;

/// The decay of update number `n`, counted from 0: `min(decay, (1 + n) / (10 + n))`, so that the first weights, which
/// are random, are soon forgotten.
pub fn ema_decay(decay: f64, n: u64) -> f64 {
    decay.min((1.0 + n as f64) / (10.0 + n as f64))
}

/// Moves `average` towards `params`: `average = decay * average + (1 - decay) * params`.
///
/// # Errors
/// If the slices differ in length.
pub fn ema_update(decay: f64, average: &mut [f32], params: &[f32]) -> Result<()> {
    if average.len() != params.len() {
        bail!("EMA: an average of {} values for {} parameters", average.len(), params.len());
    }
    let rest = (1.0 - decay) as f32;
    average.par_chunks_mut(1 << 14).zip(params.par_chunks(1 << 14)).for_each(|(average, params)| {
        for (average, param) in average.iter_mut().zip(params) {
            *average += rest * (param - *average); // exact where the two are equal
        }
    });
    Ok(())
}
