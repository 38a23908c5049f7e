//! Attention of one head over all pixels of one frame, in the middle of the VAE's encoder and decoder.
//!
//! Softmax is taken over whole rows of scores, a block of queries at a time, so memory is linear in the pixels. On the
//! CPU a query's row is computed in one order whatever the block, so results have the same bits for any split of the
//! rows.

use super::backend::Backend;
use super::conv::Pointwise;
use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;

/// `x + proj(attention(norm(x)))`.
#[derive(Clone)]
pub(super) struct Attention<B: Backend> {
    pub on: B,
    /// Factors of the norm, a channel each.
    pub norm: B::Row,
    pub query: Pointwise<B>,
    pub key: Pointwise<B>,
    pub value: Pointwise<B>,
    pub proj: Pointwise<B>,
}

impl<B: Backend> Attention<B> {
    pub fn push(&self, x: Frame<B::Values>, shards: &dyn RowShards) -> Result<Frame<B::Values>> {
        let on = &self.on;
        let normed = x.with(x.channels, on.normed(&x, &self.norm)?);
        let query = self.query.push(&normed)?;
        let key = on.gather(self.key.push(&normed)?.values, shards)?;
        let value = on.gather(self.value.push(&normed)?.values, shards)?;
        let mut y = self.proj.push(&x.with(x.channels, on.attend(&query, &key, &value)?))?;
        on.add(&mut y.values, &x.values)?;
        Ok(y)
    }

    /// Bytes of weights.
    pub fn bytes(&self) -> usize {
        [&self.query, &self.key, &self.value, &self.proj].map(Pointwise::bytes).iter().sum()
    }
}
