//! Names what attention takes, so that no call has a row of tensors that could change places unseen.

use candle_core::Tensor;

use crate::observe::meter::StepMeter;

/// Queries, keys and values of heads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Qkv<'a> {
    /// `[B, H, Sq, d]`
    pub q: &'a Tensor,
    /// `[B, H, Sk, d]`
    pub k: &'a Tensor,
    /// `[B, H, Sk, d]`
    pub v: &'a Tensor,
}

impl<'a> Qkv<'a> {
    /// Borrows them.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self { q, k, v }
    }
}

/// What backward takes of each query beside q, k and v.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SavedRows<'a> {
    /// The cotangent of the output o, `[B, H, Sq, d]`.
    pub d_o: &'a Tensor,
    /// The row statistic that forward returned, `[B, H, Sq]`.
    pub lse: &'a Tensor,
    /// rowsum(d_o * o) `[B, H, Sq]`, in lse's dtype.
    pub delta: &'a Tensor,
}

impl<'a> SavedRows<'a> {
    /// Borrows them.
    pub fn new(d_o: &'a Tensor, lse: &'a Tensor, delta: &'a Tensor) -> Self {
        Self { d_o, lse, delta }
    }
}

/// How the kernels compute.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    /// Factor of the logits.
    pub scale: f64,
    /// Whether results are final: in q's dtype, and lse in its [`statistic`](super::check::statistic)'s. If not, they
    /// are still to be merged with those of other keys: f32 for bf16 too, and lse in f64.
    pub rounded: bool,
    /// Counts the work, and says when to stop.
    pub meter: &'a StepMeter,
}
