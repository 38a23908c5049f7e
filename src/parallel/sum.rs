//! Elementwise reductions over ranks, in rank order: ((x0 + x1) + x2) + ... for every element.
//!
//! The order is part of the contract: it gives every rank and every backend the same bits. A NaN on any rank is a NaN
//! in the maximum and the minimum too, so that no rank's trouble is reduced away.

use bytemuck::Pod;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{Reduce, ordered};
use crate::ops::bytes;
use crate::{Result, bail};

/// Elements that one task reduces: its accumulator stays in the first-level cache.
const PIECE: usize = 4096;

/// Reduces contiguous `parts`, one for each rank, into the contiguous `out` of their shape, all on one device.
pub(super) fn reduce_tensors(out: &Tensor, parts: &[Tensor], op: Reduce) -> Result<()> {
    if !out.device().is_cpu() {
        return bytes::set_rows(out, &ordered::reduce(parts.iter().cloned(), op)?, 0);
    }
    let views: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
    let read = |(storage, layout)| bytes::view(bytes::raw(storage)?, layout, out.dtype());
    let parts = views.iter().map(|(storage, layout)| read((&**storage, *layout))).collect::<Result<Vec<_>>>()?;
    bytes::overwrite(out, |out_bytes| reduce(out_bytes, &parts, out.dtype(), op))
}

/// Reduces `parts` (one for each rank, all as long as `out`) into `out`; all are f32 or f64 elements as bytes.
pub(super) fn reduce(out: &mut [u8], parts: &[&[u8]], dtype: DType, op: Reduce) -> Result<()> {
    match dtype {
        DType::F32 => elements::<f32>(out, parts, op),
        DType::F64 => elements::<f64>(out, parts, op),
        other => bail!(Shape, "only f32 and f64 are reduced over ranks, got {other:?}; convert the buffer first"),
    }
    Ok(())
}

fn elements<T: Pod + PartialOrd + std::ops::AddAssign + Send + Sync>(out: &mut [u8], parts: &[&[u8]], op: Reduce) {
    let out: &mut [T] = bytemuck::cast_slice_mut(out);
    let parts: Vec<&[T]> = parts.iter().map(|part| bytemuck::cast_slice(part)).collect();
    out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
        let range = piece * PIECE..piece * PIECE + out.len();
        out.copy_from_slice(&parts[0][range.clone()]);
        for part in &parts[1..] {
            let pairs = out.iter_mut().zip(&part[range.clone()]);
            match op {
                Reduce::Sum => pairs.for_each(|(acc, &x)| *acc += x),
                Reduce::Max => pairs.for_each(|(acc, &x)| take_if(acc, x, x > *acc)),
                Reduce::Min => pairs.for_each(|(acc, &x)| take_if(acc, x, x < *acc)),
            }
        }
    });
}

/// Replaces `acc` by `x` if it is `better` or the first NaN.
#[expect(clippy::eq_op, reason = "x != x is how a generic float is asked whether it is NaN")]
fn take_if<T: Copy + PartialOrd>(acc: &mut T, x: T, better: bool) {
    if better || x != x {
        *acc = x;
    }
}
