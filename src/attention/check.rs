//! Checks the arguments of attention, the same for all kernels, and counts its operations.

use candle_core::{DType, Tensor};

use super::operands::{Qkv, SavedRows};
use crate::{Result, bail};

/// Operations for each query, key and feature: two products forward, five backward.
pub const FORWARD: u64 = 4;
/// What backward allows.
pub const BACKWARD: u64 = 10;

/// Head dims above this would overflow the blocks' share of the caches.
const MAX_DIM: usize = 256;

/// `each` operations for every query of `[B, H, Sq, d]`, every key and feature.
pub(super) fn operations(each: u64, q: [usize; 4], k: &Tensor) -> u64 {
    each * (q.iter().product::<usize>() * k.dims()[2]) as u64
}

/// The dtype of lse and delta beside tensors of `dtype`.
pub(super) fn statistic(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Checks what both passes take; returns `[B, H, Sq, d]`.
pub(super) fn operands(qkv: Qkv, scale: f64) -> Result<[usize; 4]> {
    let Qkv { q, k, v } = qkv;
    let &[b, h, sq, d] = q.dims() else {
        bail!(Shape, "attention: q is {:?}, expected [B, H, Sq, d]", q.dims());
    };
    let sk = k.dims().get(2).copied().unwrap_or(0);
    if !matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F64) {
        bail!(Shape, "attention: q is {:?}; it runs in f32, bf16 or, on the CPU, f64", q.dtype());
    }
    operand("q", q, q.dims(), q)?;
    operand("k", k, &[b, h, sk, d], q)?;
    operand("v", v, &[b, h, sk, d], q)?;
    if b * h * sq * sk == 0 {
        bail!(
            Shape,
            "attention: q {:?} and k {:?} need at least one row, key, head and batch entry",
            q.dims(),
            k.dims()
        );
    }
    if d % 8 != 0 || d == 0 || d > MAX_DIM {
        bail!(Shape, "attention: the head dim is {d}; it must be a multiple of 8 from 8 to {MAX_DIM}");
    }
    if !(scale.is_finite() && scale > 0.0) {
        bail!(Shape, "attention: the scale is {scale}; it must be positive and finite");
    }
    Ok([b, h, sq, d])
}

/// Checks what backward takes beside checked operands.
pub(super) fn saved_rows(q: &Tensor, saved: SavedRows) -> Result<()> {
    let SavedRows { d_o, lse, delta } = saved;
    operand("d_o", d_o, q.dims(), q)?;
    let (expected, stat) = (&q.dims()[..3], statistic(q.dtype()));
    for (name, x) in [("lse", lse), ("delta", delta)] {
        if x.dims() != expected || x.dtype() != stat || !x.device().same_device(q.device()) {
            let (shape, dtype, location) = (x.dims(), x.dtype(), q.device().location());
            bail!(
                Shape,
                "attention backward: {name} is {dtype:?} {shape:?}, expected {stat:?} {expected:?} on {location:?}"
            );
        }
    }
    Ok(())
}

/// `like`: of whose dtype and where the operand must be.
fn operand(name: &str, x: &Tensor, shape: &[usize], like: &Tensor) -> Result<()> {
    let dtype = like.dtype();
    if x.dims() != shape || x.dtype() != dtype || !x.device().same_device(like.device()) {
        let (has, is, location) = (x.dims(), x.dtype(), like.device().location());
        bail!(Shape, "attention: {name} is {is:?} {has:?}, expected {dtype:?} {shape:?} on {location:?}");
    }
    if x.dim(3)? > 1 && x.stride()[3] != 1 {
        bail!(
            Shape,
            "attention: {name}'s last dim is not contiguous (strides {:?}); call contiguous() on it",
            x.stride()
        );
    }
    Ok(())
}
