//! Computes small things over rows: column sums, per-head dot products, in-place addition, SiLU.

use candle_core::{DType, Result, Tensor};
use half::bf16;
use multiversion::multiversion;
use rayon::prelude::*;

use super::custom::{Custom, Element, Op1, Op2, read, write};
use super::{Real, Tape};
use crate::simd::uninit_vec::UninitVec;

/// Rows summed by one thread at a time: fixed, so that sums have the same bits for any number of threads.
pub(crate) const CHUNK: usize = 64;

/// Elements that one thread takes at a time, of what goes one by one.
const RUN: usize = 1 << 14;

/// The sums over rows of `values` `[n, width]`.
pub fn sum_columns<T: Real>(values: &[T], width: usize) -> Vec<T> {
    let parts: Vec<Vec<T>> = values
        .par_chunks(CHUNK * width)
        .map(|rows| {
            let mut sum = vec![T::zero(); width];
            rows.chunks_exact(width).for_each(|row| add_to(&mut sum, row));
            sum
        })
        .collect();
    parts.into_iter().fold(vec![T::zero(); width], |mut sum, part| {
        add_to(&mut sum, &part);
        sum
    })
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_to<T: Real>(to: &mut [T], values: &[T]) {
    for (t, &v) in to.iter_mut().zip(values) {
        *t += v;
    }
}

/// For each row and head, the dot product of `a` and `b` `[n, heads * d]`: `[n, heads]`, in f32 (f64 for f64).
pub fn row_dot(a: &Tensor, b: &Tensor, heads: usize) -> Result<Tensor> {
    fn go<E: Element + Sync, T: Real>(a: &Tensor, b: &Tensor, d: usize, to: fn(E) -> T) -> Result<Vec<T>> {
        let (a, b) = (read::<E>(a)?, read::<E>(b)?);
        let (a, b): (&[E], &[E]) = (&a, &b);
        let dot = |(a, b): (&[E], &[E])| a.iter().zip(b).map(|(&a, &b)| to(a) * to(b)).sum();
        Ok(a.par_chunks(d).zip(b.par_chunks(d)).with_min_len(64).map(dot).collect())
    }
    let (n, width) = a.dims2()?;
    let d = width / heads;
    if !a.device().is_cpu() {
        let products = (a.to_dtype(DType::F32)? * b.to_dtype(DType::F32)?)?;
        return products.reshape((n, heads, d))?.sum(2);
    }
    match a.dtype() {
        DType::F64 => Tensor::from_vec(go::<f64, f64>(a, b, d, |x| x)?, (n, heads), a.device()),
        DType::BF16 => Tensor::from_vec(go::<bf16, f32>(a, b, d, crate::simd::widened)?, (n, heads), a.device()),
        _ => Tensor::from_vec(go::<f32, f32>(a, b, d, |x| x)?, (n, heads), a.device()),
    }
}

/// `a + b` of one shape and dtype (f32 or f64), threaded.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    fn go<T: Real>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let [a, b] = [a.contiguous()?, b.contiguous()?];
        let (x, y) = (read::<T>(&a)?, read::<T>(&b)?);
        let mut out = UninitVec::new(x.len());
        out.copied_chunks(&x, RUN).zip(y.par_chunks(RUN)).for_each(|(out, y)| add_to(out, y));
        Tensor::from_vec(out.into_vec(), a.shape(), a.device())
    }
    if !a.device().is_cpu() {
        return a + b;
    }
    if a.dims() != b.dims() {
        candle_core::bail!("sum: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    if a.dtype() == DType::F64 { go::<f64>(a, b) } else { go::<f32>(a, b) }
}

/// `to += values`, threaded; both of one length.
pub(crate) fn add_into<T: Real>(to: &mut [T], values: &[T]) {
    to.par_chunks_mut(RUN).zip(values.par_chunks(RUN)).for_each(|(to, values)| add_to(to, values));
}

/// `to += values`, in place; both contiguous, of one shape and dtype (f32 or f64).
pub fn add_assign(to: &Tensor, values: &Tensor) -> Result<()> {
    fn go<T: Real>(to: &Tensor, values: &[T]) -> Result<()> {
        write(to, |to: &mut [T]| add_into(to, values))
    }
    if to.dims() != values.dims() {
        candle_core::bail!("add_assign: shapes {:?} and {:?} differ", to.dims(), values.dims())
    }
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return crate::cuda::add_assign(to, values);
    }
    match to.dtype() {
        DType::F64 => go::<f64>(to, &read(values)?),
        _ => go::<f32>(to, &read(values)?),
    }
}

/// Sets the elements of a contiguous tensor (f32 or, on a CPU, f64) to zero.
pub fn clear(t: &Tensor) -> Result<()> {
    if t.elem_count() == 0 {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if t.device().is_cuda() {
        return crate::cuda::clear(t);
    }
    match t.dtype() {
        DType::F64 => write(t, |values: &mut [f64]| values.par_chunks_mut(RUN).for_each(|run| run.fill(0.0))),
        _ => write(t, |values: &mut [f32]| values.par_chunks_mut(RUN).for_each(|run| run.fill(0.0))),
    }
}

/// a + b, differentiable; for the small condition network.
pub fn add(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tape.two(a, b, Custom(Add))
}

struct Add;

impl Op2 for Add {
    const NAME: &'static str = "add";

    fn forward<T: Real>(&self, a: &[T], b: &[T], dims: [&[usize]; 2]) -> Result<Vec<T>> {
        if dims[0] != dims[1] {
            candle_core::bail!("add: shapes {:?} and {:?} differ", dims[0], dims[1])
        }
        Ok(a.iter().zip(b).map(|(&a, &b)| a + b).collect())
    }

    fn backward<T: Real>(&self, _: [&[T]; 2], _: &[T], _: [&[usize]; 2]) -> Result<[Option<Vec<T>>; 2]> {
        Ok([None, None])
    }
}

/// x sigmoid(x), differentiable; for the small condition network.
pub fn silu(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    tape.one(x, Custom(Silu))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::storage_bytes;
    use candle_core::Device;

    #[test]
    fn sum_of_views_allocates_only_its_result() {
        let whole = Tensor::arange(0f32, 60.0, &Device::Cpu).and_then(|t| t.reshape((10, 6))).unwrap();
        let (a, b) = (whole.narrow(0, 2, 3).unwrap(), whole.narrow(0, 4, 3).unwrap());
        let c = sum(&a, &b).unwrap();
        let expected = (a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
        for ((c, a), b) in
            c.to_vec2::<f32>().unwrap().iter().flatten().zip(expected.0.concat()).zip(expected.1.concat())
        {
            assert_eq!(*c, a + b);
        }
        assert_eq!(storage_bytes(&c), 4 * 3 * 6);
    }
}
