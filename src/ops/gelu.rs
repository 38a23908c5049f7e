//! GELU in its tanh form, gelu(x) = x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): the same function as
//! 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with one exponential (Hendrycks and Gimpel, arXiv 1606.08415).

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::Real;
use super::custom::{Custom, Op1};

const CHUNK: usize = 1 << 13;

/// GELU (tanh form), differentiable.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Custom(Gelu))
}

struct Gelu;

impl Op1 for Gelu {
    const NAME: &'static str = "gelu";

    fn forward<T: Real>(&self, x: &[T], _: &[usize]) -> Result<Vec<T>> {
        let mut y = vec![T::zero(); x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| forward(y, x));
        Ok(y)
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], _: &[usize]) -> Result<Vec<T>> {
        let mut dx = vec![T::zero(); x.len()];
        dx.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
            .for_each(|(dx, (x, dy))| backward(dx, x, dy));
        Ok(dx)
    }
}

/// (2 sqrt(2 / pi), the same times 0.044715)
#[inline(always)]
fn coefficients<T: Real>() -> (T, T) {
    let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    (T::of(c), T::of(c * 0.044715))
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward<T: Real>(y: &mut [T], x: &[T]) {
    let (a, b) = coefficients::<T>();
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x / (T::one() + (-x * (a + b * x * x)).fast_exp());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward<T: Real>(dx: &mut [T], x: &[T], dy: &[T]) {
    let (a, b) = coefficients::<T>();
    let b3 = T::of(3.0) * b;
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let xx = x * x;
        let s = T::one() / (T::one() + (-x * (a + b * xx)).fast_exp());
        *dx = dy * (s + x * s * (T::one() - s) * (a + b3 * xx));
    }
}
