//! Runs attention, the one operation over all tokens: a plain reference, blocked flash kernels on the CPU and on a GPU,
//! and Ulysses and the ring over ranks.
//!
//! Non-causal, no mask. All tensors are `[B, H, S, d]`; the row statistic `lse` (log of the sum of exponentials of the
//! scaled logits, natural) is `[B, H, S]`. Nothing here sees a file or a model.

mod check;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod moves;
pub mod reference;
mod ring;
mod sequence;
mod ulysses;

use candle_core::Tensor;

use crate::Result;
use crate::observe::meter::StepMeter;
pub use check::{BACKWARD, FORWARD};
pub use ring::Ring;
pub use sequence::SequenceAttention;
pub use ulysses::Ulysses;

/// softmax(scale q kᵀ) v by blocks with an online softmax, and the row statistic.
///
/// q `[B, H, Sq, d]`, k and v `[B, H, Sk, d]`, of one dtype (f32, bf16 or f64), last dim contiguous, other strides
/// free. Returns o `[B, H, Sq, d]` contiguous in q's dtype, and lse `[B, H, Sq]` in f32 (f64 for f64 input). f64 goes
/// to the plain [`reference`]. FlashAttention-2, arXiv 2307.08691.
pub fn flash(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    attend(q, k, v, scale, true, &StepMeter::default())
}

/// Gradients of [`flash`] with respect to q, k and v, given the cotangent `d_o`, the saved `lse` and
/// `delta` = rowsum(d_o * o) `[B, H, Sq]` (in lse's dtype). They come contiguous, in q's dtype.
pub fn flash_backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    lse: &Tensor,
    delta: &Tensor,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    differentiate(q, k, v, d_o, [lse, delta], scale, true, &StepMeter::default())
}

/// Contiguous tensors of groups of heads side by side along dim 1; the tensor itself if there is one group. The parts
/// are taken, as their memory is wanted for what comes next.
pub(crate) fn side_by_side(parts: Vec<Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if parts.len() > 1 && parts[0].device().is_cuda() {
        return cuda::side_by_side(&parts);
    }
    Ok(Tensor::cat(&parts, 1)?)
}

/// [`flash`] for a metered rank, where q, k and v are. If not `rounded`, its results are still to be merged with those
/// of other keys: o is f32 for bf16 too, and lse is f64.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    rounded: bool,
    meter: &StepMeter,
) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return cuda::attend(q, k, v, scale, rounded, meter);
    }
    cpu::attend(q, k, v, scale, rounded, meter)
}

/// [`flash_backward`] for a metered rank. If not `rounded`, its results are still to be added to those of other keys:
/// they are f32 for bf16 too.
#[allow(clippy::too_many_arguments)]
fn differentiate(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    statistics: [&Tensor; 2],
    scale: f64,
    rounded: bool,
    meter: &StepMeter,
) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return cuda::differentiate(q, k, v, d_o, statistics, scale, rounded, meter);
    }
    cpu::differentiate(q, k, v, d_o, statistics, scale, rounded, meter)
}
