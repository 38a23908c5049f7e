//! Computes plain attention, which materialises every logit, to test the fast kernels against it and to run f64.
//!
//! The formulas are written once with Candle's ops and serve f64, f32 and bf16. Each op rounds its result to the
//! tensors' dtype, so bf16 input gives the error of a plain bf16 implementation, which is the measure for the fast one
//! (only the exponentials and their sums are then taken in f32). Memory grows with Sq * Sk: not for long sequences.
//! Differentiation by Candle's autograd is not wanted here; the backward formulas are spelled out (softmax: dS = P *
//! (dP - delta)).

use candle_core::{D, DType, Tensor};

use super::{Qkv, SavedRows};
use crate::Result;

/// softmax(scale q kᵀ) v and the row statistic, with all logits in memory.
///
/// q, k and v may have any strides. Returns o `[B, H, Sq, d]` in q's dtype and lse `[B, H, Sq]`, the natural log of the
/// sum of exponentials of the scaled logits, in f64 for f64 input and f32 otherwise.
pub fn attention(qkv: Qkv, scale: f64) -> Result<(Tensor, Tensor)> {
    let Qkv { q, k, v } = qkv;
    let s = logits(q, k, scale)?; // [B, H, Sq, Sk]
    let max = s.max_keepdim(D::Minus1)?; // subtracted, so that no logit overflows
    let e = s.broadcast_sub(&max)?.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    let p = e.broadcast_div(&sum)?.to_dtype(q.dtype())?;
    let o = p.matmul(&v.contiguous()?)?; // [B, H, Sq, d]
    let lse = (max + sum.log()?)?.squeeze(D::Minus1)?;
    Ok((o, lse))
}

/// Gradients of [`attention`] with respect to q, k and v. They come in q's dtype.
pub fn attention_backward(qkv: Qkv, saved: SavedRows, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
    let (Qkv { q, k, v }, SavedRows { d_o, lse, delta }) = (qkv, saved);
    let dtype = q.dtype();
    let p = logits(q, k, scale)?.broadcast_sub(&lse.unsqueeze(D::Minus1)?)?.exp()?; // [B, H, Sq, Sk]
    let d_o = d_o.contiguous()?;
    let dp = d_o.matmul(&transposed(v)?)?.to_dtype(p.dtype())?; // [B, H, Sq, Sk]
    let ds = (&p * dp.broadcast_sub(&delta.unsqueeze(D::Minus1)?)?)?;
    let ds = (ds * scale)?.to_dtype(dtype)?;
    let dq = ds.matmul(&k.contiguous()?)?; // [B, H, Sq, d]
    let dk = transposed(&ds)?.matmul(&q.contiguous()?)?; // [B, H, Sk, d]
    let dv = transposed(&p.to_dtype(dtype)?)?.matmul(&d_o)?; // [B, H, Sk, d]
    Ok((dq, dk, dv))
}

/// scale q kᵀ, rounded to q's dtype, then held in f32 at least.
fn logits(q: &Tensor, k: &Tensor, scale: f64) -> Result<Tensor> {
    let s = q.contiguous()?.matmul(&transposed(k)?)?;
    let s = if s.dtype() == DType::F64 { s } else { s.to_dtype(DType::F32)? };
    Ok((s * scale)?)
}

fn transposed(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(D::Minus2, D::Minus1)?.contiguous()?)
}
