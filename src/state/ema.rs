//! The moving average of the weights, which sampling and the held-out loss use. It is moved by the optimizer, in its
//! pass.

use multiversion::multiversion;

/// The decay of update number `n`, counted from 0: `min(decay, (1 + n) / (10 + n))`, so that the first weights, which
/// are random, are soon forgotten.
pub fn ema_decay(decay: f64, n: u64) -> f64 {
    decay.min((1.0 + n as f64) / (10.0 + n as f64))
}

/// `average += rest * (params - average)`, where `rest` is 1 - decay; nothing if there is no average. Exact where both
/// are equal.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn follow(rest: f32, average: &mut [f32], params: &[f32]) {
    for (average, param) in average.iter_mut().zip(params) {
        *average += rest * (param - *average);
    }
}
