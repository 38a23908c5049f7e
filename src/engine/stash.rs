//! The stash: what is remembered of each block between forward and backward. Here it is memory; tensors are handed over, not copied.

use candle_core::Tensor;

use crate::{Error, Result};

/// What backward needs of a block.
pub struct Saved {
    /// The block's input `[rows, D]`.
    pub x: Tensor,
    /// Attention's output `[rows, D]`.
    pub o: Tensor,
    /// Attention's row statistic `[B, my heads, S]`, S being my Ulysses group's tokens.
    pub lse: Tensor,
}

/// A place for each block's [`Saved`].
pub struct Stash(Vec<Option<Saved>>);

impl Stash {
    /// An empty stash for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self((0..blocks).map(|_| None).collect())
    }

    /// Keeps what block `i` needs.
    pub fn put(&mut self, i: usize, saved: Saved) {
        self.0[i] = Some(saved);
    }

    /// Gives back what block `i` needs; each once.
    pub fn take(&mut self, i: usize) -> Result<Saved> {
        self.0[i].take().ok_or_else(|| Error::Invalid(format!("stash: block {i} was not put, or was taken twice")))
    }
}
