//! The linear layer y = x Wᵀ + b, which adds its weight gradients in place.
//!
//! With bf16 compute both operands of each of the three products are rounded to bf16 and summed in f32, as a dot-product unit
//! does; activations and gradients stay f32.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::custom::{Custom, Op1, read, write};
use super::elementwise::sum_columns;
use super::{Matrix, Param, Real, gemm};

/// A linear layer over weights `[out, in]` and bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Param,
    pub bias: Param,
    /// Round operands to bf16 (f32 data only).
    pub bf16: bool,
}

impl Linear {
    /// `[n, in]` to `[n, out]`, differentiable in x.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(Custom(self.clone()))
    }

    /// Adds the weight and bias gradients for input `x` `[n, in]` and output gradient `dy` `[n, out]`, for where the input's
    /// own gradient is not wanted.
    pub fn accumulate(&self, x: &Tensor, dy: &Tensor) -> Result<()> {
        match x.dtype() {
            candle_core::DType::F64 => self.add_grads::<f64>(&read(x)?, &read(dy)?),
            _ => self.add_grads::<f32>(&read(x)?, &read(dy)?),
        }
    }

    /// (out, in)
    fn dims(&self) -> Result<(usize, usize)> {
        self.weight.value.dims2()
    }

    fn add_grads<T: Real>(&self, x: &[T], dy: &[T]) -> Result<()> {
        let (out, inner) = self.dims()?;
        let n = dy.len() / out;
        let (x, rounded) = (self.operand(x), self.operand(dy));
        write(&self.weight.grad, |dw: &mut [T]| {
            gemm(dw, Matrix::new(&rounded, n, out).t(), Matrix::new(&x, n, inner), true);
        })?;
        self.bias.add_grad(0, &sum_columns(dy, out))
    }

    /// `x` as the products see it.
    fn operand<'a, T: Real>(&self, x: &'a [T]) -> std::borrow::Cow<'a, [T]> {
        if !self.bf16 || T::DTYPE != candle_core::DType::F32 {
            return x.into();
        }
        let mut rounded = x.to_vec();
        rounded.par_chunks_mut(1 << 14).for_each(|chunk| chunk.iter_mut().for_each(|v| *v = v.round_bf16()));
        rounded.into()
    }
}

impl Op1 for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, x: &[usize]) -> Vec<usize> {
        vec![x[0], self.weight.value.dims()[0]]
    }

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (out, inner) = self.dims()?;
        if dims != [dims[0], inner] {
            candle_core::bail!("{}: input [n, {inner}] wanted, got {dims:?}", self.weight.name)
        }
        let (w, b) = (read::<T>(&self.weight.value)?, read::<T>(&self.bias.value)?);
        let mut y = Vec::with_capacity(dims[0] * out);
        for _ in 0..dims[0] {
            y.extend_from_slice(&b);
        }
        gemm(
            &mut y,
            Matrix::new(&self.operand(x), dims[0], inner),
            Matrix::new(&self.operand(&w), out, inner).t(),
            true,
        );
        Ok(y)
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (out, inner) = self.dims()?;
        self.add_grads(x, dy)?;
        let w = read::<T>(&self.weight.value)?;
        let mut dx = vec![T::zero(); x.len()];
        gemm(&mut dx, Matrix::new(&self.operand(dy), dims[0], out), Matrix::new(&self.operand(&w), out, inner), false);
        Ok(dx)
    }
}
