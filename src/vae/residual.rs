//! The residual block: norm, SiLU and a causal convolution, twice, added to the input.

use super::backend::Backend;
use super::conv::{CausalConv, Pointwise};
use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a product of x instead of x where the channels change.
#[derive(Clone)]
pub(super) struct ResidualBlock<B: Backend> {
    pub conv1: CausalConv<B>,
    pub conv2: CausalConv<B>,
    pub shortcut: Option<Pointwise<B>>,
}

impl<B: Backend> ResidualBlock<B> {
    pub fn push(&mut self, x: Frame<B::Values>, shards: &dyn RowShards) -> Result<Frame<B::Values>> {
        let h = self.conv1.push(&x, shards)?;
        let base = match &self.shortcut {
            Some(shortcut) => shortcut.push(&x)?,
            None => x,
        };
        self.conv2.push_onto(&h, base, shards)?.trimmed(self.conv2.on(), [2; 4])
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        let [[w1, f1], [w2, f2]] = [self.conv1.bytes(), self.conv2.bytes()];
        [w1 + w2 + self.shortcut.as_ref().map_or(0, Pointwise::bytes), f1 + f2]
    }
}
