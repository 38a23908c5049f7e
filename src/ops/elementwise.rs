//! Small helpers over rows: column sums, per-head dot products, in-place addition, SiLU.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::Real;
use super::custom::{Custom, Op1, read, write};

/// Rows summed by one thread at a time: fixed, so that sums have the same bits for any number of threads.
pub(crate) const CHUNK: usize = 64;

/// The sums over rows of `values` `[n, width]`.
pub fn sum_columns<T: Real>(values: &[T], width: usize) -> Vec<T> {
    let parts: Vec<Vec<T>> = values
        .par_chunks(CHUNK * width)
        .map(|rows| {
            let mut sum = vec![T::zero(); width];
            for row in rows.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += *v);
            }
            sum
        })
        .collect();
    parts.into_iter().fold(vec![T::zero(); width], |mut sum, part| {
        sum.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        sum
    })
}

/// For each row and head, the dot product of `a` and `b` `[n, heads * d]`: `[n, heads]`, in f32 (f64 for f64).
pub fn row_dot(a: &Tensor, b: &Tensor, heads: usize) -> Result<Tensor> {
    fn go<T: Real>(a: &[T], b: &[T], d: usize) -> Vec<T> {
        a.par_chunks(d).zip(b.par_chunks(d)).map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| a * b).sum()).collect()
    }
    let (n, width) = a.dims2()?;
    let d = width / heads;
    match a.dtype() {
        DType::F64 => Tensor::from_vec(go::<f64>(&read(a)?, &read(b)?, d), (n, heads), a.device()),
        DType::F32 => Tensor::from_vec(go::<f32>(&read(a)?, &read(b)?, d), (n, heads), a.device()),
        _ => row_dot(&a.to_dtype(DType::F32)?, &b.to_dtype(DType::F32)?, heads),
    }
}

/// `to += values`, in place; both contiguous, of one shape and dtype (f32 or f64).
pub fn add_assign(to: &Tensor, values: &Tensor) -> Result<()> {
    fn go<T: Real>(to: &Tensor, values: &[T]) -> Result<()> {
        write(to, |to: &mut [T]| {
            to.par_chunks_mut(1 << 14).zip(values.par_chunks(1 << 14)).for_each(|(to, values)| {
                to.iter_mut().zip(values).for_each(|(t, v)| *t += *v);
            });
        })
    }
    if to.dims() != values.dims() {
        candle_core::bail!("add_assign: shapes {:?} and {:?} differ", to.dims(), values.dims())
    }
    match to.dtype() {
        DType::F64 => go::<f64>(to, &read(values)?),
        _ => go::<f32>(to, &read(values)?),
    }
}

/// x sigmoid(x), differentiable; for the small condition network.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Custom(Silu))
}

struct Silu;

impl Op1 for Silu {
    const NAME: &'static str = "silu";

    fn forward<T: Real>(&self, x: &[T], _: &[usize]) -> Result<Vec<T>> {
        Ok(x.iter().map(|&x| x / (T::one() + (-x).exp())).collect())
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], _: &[usize]) -> Result<Vec<T>> {
        let slope = |x: T| {
            let s = T::one() / (T::one() + (-x).exp());
            s * (T::one() + x * (T::one() - s))
        };
        Ok(x.iter().zip(dy).map(|(&x, &dy)| dy * slope(x)).collect())
    }
}
