//! The residual block: norm, SiLU and a causal convolution, twice, added to the input.

use super::conv::{CausalConv, Pointwise};
use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a product of x instead of x where the channels change.
#[derive(Clone)]
pub(super) struct ResidualBlock {
    pub conv1: CausalConv,
    pub conv2: CausalConv,
    pub shortcut: Option<Pointwise>,
}

impl ResidualBlock {
    pub fn push(&mut self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let h = self.conv1.push(&x, shards)?;
        let base = match &self.shortcut {
            Some(shortcut) => shortcut.push(&x),
            None => x,
        };
        Ok(self.conv2.push_onto(&h, base, shards)?.trimmed([2; 4]))
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        let [[w1, f1], [w2, f2]] = [self.conv1.bytes(), self.conv2.bytes()];
        [w1 + w2 + self.shortcut.as_ref().map_or(0, Pointwise::bytes), f1 + f2]
    }
}
