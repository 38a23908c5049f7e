//! Runs attention, the one operation over all tokens: a plain reference, blocked flash kernels on the CPU and on a GPU,
//! and Ulysses and the ring over ranks.
//!
//! Non-causal, no mask. All tensors are `[B, H, S, d]`; the row statistic `lse` (log of the sum of exponentials of the
//! scaled logits, natural) is `[B, H, S]`. Nothing here sees a file or a model.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use longreel::attention::{Qkv, flash};
//!
//! let [q, k, v] = [1, 2, 3].map(|_| Tensor::randn(0f32, 1.0, (1, 4, 100, 64), &Device::Cpu));
//! let (q, k, v) = (q?, k?, v?);
//! let (o, lse) = flash(Qkv::new(&q, &k, &v), 0.125)?; // no matrix of 100 x 100 logits is made
//! assert_eq!((o.dims(), lse.dims()), (&[1, 4, 100, 64][..], &[1, 4, 100][..]));
//! # Ok::<(), longreel::Error>(())
//! ```

#![warn(missing_docs)]

mod check;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod moves;
mod operands;
pub mod reference;
mod repeated;
mod ring;
mod sequence;
mod ulysses;

use candle_core::Tensor;

use crate::Result;
use crate::observe::meter::StepMeter;
pub use check::{BACKWARD, FORWARD};
use operands::Options;
pub use operands::{Qkv, SavedRows};
pub use repeated::{KeyRun, flash_repeated, flash_repeated_backward};
pub use ring::Ring;
pub use sequence::SequenceAttention;
pub use ulysses::Ulysses;
#[cfg(feature = "cuda")]
pub(crate) use {cuda::copy_rows, moves::Move};

/// softmax(scale q kᵀ) v by blocks with an online softmax, and the row statistic.
///
/// q, k and v are of one dtype (f32, bf16 or f64), last dim contiguous, other strides free. Returns o `[B, H, Sq, d]`
/// contiguous in q's dtype, and lse `[B, H, Sq]` in f32 (f64 for f64 input). f64 goes to the plain [`reference`].
/// FlashAttention-2, arXiv 2307.08691.
pub fn flash(qkv: Qkv, scale: f64) -> Result<(Tensor, Tensor)> {
    attend(qkv, Options { scale, rounded: true, meter: &StepMeter::default() })
}

/// Gradients of [`flash`] with respect to q, k and v. They come contiguous, in q's dtype.
pub fn flash_backward(qkv: Qkv, saved: SavedRows, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
    differentiate(qkv, saved, Options { scale, rounded: true, meter: &StepMeter::default() })
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

/// [`flash`] with these options, where q, k and v are.
fn attend(qkv: Qkv, options: Options) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if qkv.q.device().is_cuda() {
        return cuda::attend(qkv, options);
    }
    cpu::attend(qkv, options)
}

/// [`flash_backward`] with these options.
fn differentiate(qkv: Qkv, saved: SavedRows, options: Options) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if qkv.q.device().is_cuda() {
        return cuda::differentiate(qkv, saved, options);
    }
    cpu::differentiate(qkv, saved, options)
}
