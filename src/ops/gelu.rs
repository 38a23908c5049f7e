//! Computes GELU in its tanh form, gelu(x) = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): the same function as
//! 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with one exponential (Hendrycks and Gimpel, arXiv 1606.08415).
//!
//! These are functions of slices only: the op is [`Linear::gelu`](super::Linear::gelu).

use multiversion::multiversion;
use rayon::prelude::*;

use super::Real;
use crate::simd::uninit_vec::UninitVec;

const CHUNK: usize = 1 << 13;

/// gelu(x).
#[inline(always)]
pub(crate) fn gelu<T: Real>(x: T) -> T {
    let (a, b) = coefficients::<T>();
    x / (T::one() + (-x * (a + b * x * x)).fast_exp())
}

/// The gradient of x, given that of gelu(x).
pub(super) fn gelu_backward<T: Real>(dy: &[T], x: &[T]) -> Vec<T> {
    let mut dx = UninitVec::new(dy.len());
    dx.copied_chunks(dy, CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dx, x)| slopes(dx, x));
    dx.into_vec()
}

/// (2 sqrt(2 / pi), the same times 0.044715)
#[inline(always)]
fn coefficients<T: Real>() -> (T, T) {
    let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    (T::of(c), T::of(c * 0.044715))
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn slopes<T: Real>(dy: &mut [T], x: &[T]) {
    let (a, b) = coefficients::<T>();
    let b3 = T::of(3.0) * b;
    for (dy, &x) in dy.iter_mut().zip(x) {
        let xx = x * x;
        let s = T::one() / (T::one() + (-x * (a + b * xx)).fast_exp());
        *dy *= s + x * s * (T::one() - s) * (a + b3 * xx);
    }
}
