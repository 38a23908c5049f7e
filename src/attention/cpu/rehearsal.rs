//! Sizes and takes the kernels' memory without their arithmetic: `longreel plan` counts it, rehearsals of a step take
//! it.
//!
//! Sizes come from the functions that the kernels themselves allocate by. Results hold a constant, written so that
//! their pages are really there.

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::{Isa, backward, forward};
use crate::Result;
use crate::attention::check::{operands, statistic};
use crate::attention::{Qkv, SavedRows};
use crate::simd::scratch::Scratch;
use crate::simd::with_isa;

/// Called while all of a pass's memory is held. Passes take time, so ranks hold theirs at the same time; a rank that
/// computes nothing has to wait for the others to do the same.
pub type Meet<'a> = &'a dyn Fn() -> Result<()>;

/// Small, so that a rehearsed step overflows nowhere; not 0, whose pages need not be touched.
const FILL: f32 = 1e-6;

/// Words of packed keys and values that a forward pass holds, over `heads` heads with `sk` keys of `d` features.
pub fn forward_words(half: bool, heads: usize, sk: usize, d: usize) -> usize {
    match half {
        true => with_isa!(Isa::best(), true, S => forward::packed::<S>(heads, sk, d).1),
        false => with_isa!(Isa::best(), false, S => forward::packed::<S>(heads, sk, d).1),
    }
}

/// Words of packed queries, and of sums, that a backward pass holds, over `heads` heads with `sq` queries of `d`
/// features.
pub fn backward_words(half: bool, heads: usize, sq: usize, d: usize) -> [usize; 2] {
    match half {
        true => with_isa!(Isa::best(), true, S => backward::packed::<S>(heads, sq, d).1),
        false => with_isa!(Isa::best(), false, S => backward::packed::<S>(heads, sq, d).1),
    }
}

/// As [`attend`](super::attend), in shapes and memory.
pub fn rehearse_forward(qkv: Qkv, scale: f64, rounded: bool, meet: Meet) -> Result<(Tensor, Tensor)> {
    let [b, h, sq, d] = operands(qkv, scale)?;
    let Qkv { q, k, .. } = qkv;
    let o = filled(&[b, h, sq, d], result(q.dtype(), rounded))?;
    let lse = filled(&[b, h, sq], DType::F64)?;
    let _packed = touched(forward_words(q.dtype() == DType::BF16, b * h, k.dims()[2], d));
    meet()?;
    let lse = if rounded { lse.to_dtype(statistic(q.dtype()))? } else { lse };
    Ok((o, lse))
}

/// As [`differentiate`](super::differentiate), in shapes and memory.
pub fn rehearse_backward(
    qkv: Qkv,
    saved: SavedRows,
    scale: f64,
    rounded: bool,
    meet: Meet,
) -> Result<(Tensor, Tensor, Tensor)> {
    let [b, h, sq, d] = operands(qkv, scale)?;
    let (Qkv { q, k, v }, SavedRows { lse, delta, .. }) = (qkv, saved);
    let _statistics = [lse.flatten_all()?.to_vec1::<f32>()?, delta.flatten_all()?.to_vec1::<f32>()?];
    let dtype = result(q.dtype(), rounded);
    let gradients = (filled(&[b, h, sq, d], dtype)?, filled(k.dims(), dtype)?, filled(v.dims(), dtype)?);
    let _packed = backward_words(q.dtype() == DType::BF16, b * h, sq, d).map(touched);
    meet()?;
    Ok(gradients)
}

/// A buffer of `len` words whose pages are really there.
fn touched(len: usize) -> Scratch {
    let mut words = Scratch::take(len);
    words.fill(FILL.to_bits());
    words
}

fn result(dtype: DType, rounded: bool) -> DType {
    if rounded { dtype } else { statistic(dtype) }
}

fn filled(dims: &[usize], dtype: DType) -> Result<Tensor> {
    let n = dims.iter().product();
    Ok(match dtype {
        DType::BF16 => Tensor::from_vec(vec![bf16::from_f32(FILL); n], dims, &Device::Cpu)?,
        DType::F64 => Tensor::from_vec(vec![f64::from(FILL); n], dims, &Device::Cpu)?,
        _ => Tensor::from_vec(vec![FILL; n], dims, &Device::Cpu)?,
    })
}
