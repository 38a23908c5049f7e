//! Splits heads into groups that attention takes one after another, so that its buffers are of one group's heads at a
//! time.
//!
//! Heads know nothing of each other, so groups change no bit. Each is an exchange of its own: to a group its heads are
//! all there are.

use candle_core::Tensor;
use std::ops::Range;

use crate::attention::SequenceAttention;
use crate::ops::bytes::in_order;
use crate::parallel::{Sequence, Split};
use crate::{Result, bail};

/// A run of the network's heads, and attention among all ranks for them.
pub(crate) struct HeadGroup {
    pub heads: Range<usize>,
    pub attention: SequenceAttention,
}

/// How `heads` are split into `groups` where a Ulysses group has `ranks` ranks.
pub(crate) fn shares(heads: usize, groups: usize, ranks: usize) -> Result<Split> {
    if groups == 0 || (heads / groups < ranks && groups > 1) {
        bail!(
            Shape,
            "parallel.head_groups = {groups}: {heads} heads cannot form so many groups with a head for each of the {ranks} \
             ranks of a Ulysses group; use 1 to {}, or a larger parallel.ring",
            (heads / ranks).max(1)
        );
    }
    Ok(Split::new(heads, groups))
}

impl HeadGroup {
    /// `heads` (H) as `groups` runs, as even as can be, for clips of `tokens`.
    pub fn split(sequence: &Sequence, tokens: usize, heads: usize, groups: usize) -> Result<Vec<Self>> {
        let split = shares(heads, groups, sequence.ulysses.size())?;
        let group = |i| {
            let heads = split.range(i);
            Ok(Self { attention: SequenceAttention::new(sequence, tokens, heads.len())?, heads })
        };
        (0..groups).map(group).collect()
    }

    /// The group's heads of `x` `[B, S_local, H, d]` or `[B, S_local, H]`, to `[B, my heads of them, S, d]` or
    /// `[B, my heads of them, S]`.
    pub fn to_heads(&self, x: &Tensor) -> Result<Tensor> {
        self.attention.to_heads(&x.narrow(2, self.heads.start, self.heads.len())?)
    }

    /// The group's columns of `x` `[rows, H d]`, contiguous.
    pub fn columns(&self, x: &Tensor, d: usize) -> Result<Tensor> {
        in_order(&x.narrow(1, self.heads.start * d, self.heads.len() * d)?)
    }
}
