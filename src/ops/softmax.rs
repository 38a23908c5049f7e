//! Computes softmax of a row of scores in place.

use multiversion::multiversion;

use super::Real;

/// Sums and maxima that are taken side by side, so that they vectorise; the order is the same everywhere.
const LANES: usize = 16;

/// `exp(x - max) / sum` of a row. An empty row stays one.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn softmax(row: &mut [f32]) {
    let mut most = [f32::NEG_INFINITY; LANES];
    for run in row.chunks(LANES) {
        most.iter_mut().zip(run).for_each(|(most, &x)| *most = if x > *most { x } else { *most });
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; LANES];
    for run in row.chunks_mut(LANES) {
        for (x, sum) in run.iter_mut().zip(&mut sums) {
            *x = (*x - most).fast_exp();
            *sum += *x;
        }
    }
    let sum = sums.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x /= sum);
}
