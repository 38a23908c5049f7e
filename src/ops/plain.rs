//! The ops again, out of Candle's own differentiable operations: slow, obvious, and what the fused forms are tested
//! against.
//!
//! Weights are plain tensors here, so that Candle's autograd gives their gradients too.

use candle_core::{D, Result, Tensor};

/// x Wᵀ + b.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

/// (x - mean) / sqrt(variance + eps), row by row.
pub fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

/// x / sqrt(mean(x^2) + eps) * weight, row by row.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * (inner.tanh()? + 1.0)?)? * 0.5
}

/// Rows `x` `[n, heads * d]` turned by `angles` `[n, d / 2]`, pairs of neighbouring features of every head.
pub fn rope(x: &Tensor, angles: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let pairs = x.reshape((n, heads, width / heads / 2, 2))?;
    let (even, odd) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
    let (cos, sin) = (angles.cos()?.unsqueeze(1)?, angles.sin()?.unsqueeze(1)?);
    let turned_even = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
    let turned_odd = (even.broadcast_mul(&sin)? + odd.broadcast_mul(&cos)?)?;
    Tensor::stack(&[turned_even, turned_odd], 3)?.reshape((n, width))
}
