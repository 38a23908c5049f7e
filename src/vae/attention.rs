//! Attention of one head over all pixels of one frame, in the middle of the VAE's encoder and decoder.
//!
//! Softmax is taken over whole rows of scores, a block of queries at a time, so memory is linear in the pixels. A
//! query's row is computed in one order whatever the block, so results have the same bits for any split of the rows.

use rayon::prelude::*;
use std::sync::Arc;

use super::conv::{Arithmetic, Pointwise};
use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;
use crate::ops::products::{Packed, Products, WeightMatrix, WeightValues};
use crate::ops::softmax;
use crate::simd::product::Epilogue;

/// Scores that are held at a time, in elements.
const SCORES: usize = 4 << 20;

/// `x + proj(attention(norm(x)))`.
#[derive(Clone)]
pub(super) struct Attention {
    pub arithmetic: Arithmetic,
    /// Factors of the norm, a channel each.
    pub norm: Arc<Vec<f32>>,
    pub query: Pointwise,
    pub key: Pointwise,
    pub value: Pointwise,
    pub proj: Pointwise,
}

impl Attention {
    pub fn push(&self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let normed = self.normed(&x);
        let query = self.query.push(&normed);
        let (key, value) = (shards.gather(&self.key.push(&normed))?, shards.gather(&self.value.push(&normed))?);
        let mut y = self.proj.push(&x.with(x.channels, self.attend(&query, &key, &value)));
        y.add(&x);
        Ok(y)
    }

    /// Each pixel's channels scaled to norm 1, times the factors.
    fn normed(&self, x: &Frame) -> Frame {
        let mut values = x.values.clone();
        values.par_chunks_exact_mut(x.channels).for_each(|pixel| {
            let norm = pixel.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            pixel.iter_mut().zip(&*self.norm).for_each(|(x, factor)| *x = *x / norm * factor);
        });
        x.with(x.channels, values)
    }

    /// `softmax(q kᵀ / sqrt(channels)) v`; `key` and `value` are `[pixels of the whole frame, channels]`.
    fn attend(&self, query: &Frame, key: &[f32], value: &[f32]) -> Vec<f32> {
        let (inner, Arithmetic { isa, bf16 }) = (query.channels, self.arithmetic);
        let keys = key.len() / inner;
        let (packed_keys, packed_values) = (Packed::default(), Packed::default());
        let key = WeightMatrix { values: WeightValues::Same(key), out: keys, inner, isa, bf16, packed: &packed_keys };
        let value =
            WeightMatrix { values: WeightValues::Same(value), out: keys, inner, isa, bf16, packed: &packed_values };
        let queries = (SCORES / keys.max(1)).max(1);
        let mut out = Vec::with_capacity(query.values.len());
        for block in query.values.chunks(queries * inner) {
            let n = block.len() / inner;
            let [mut scores, _] = f32::forward(&key, block, n, false, &Scaled(1.0 / (inner as f32).sqrt()));
            scores.par_chunks_exact_mut(keys).for_each(softmax);
            out.extend(f32::input_gradient(&value, &scores, n));
        }
        out
    }

    /// Bytes of weights.
    pub fn bytes(&self) -> usize {
        [&self.query, &self.key, &self.value, &self.proj].map(Pointwise::bytes).iter().sum()
    }
}

/// Multiplies scores.
struct Scaled(f32);

impl Epilogue<f32> for Scaled {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, _: usize) {
        out.iter_mut().for_each(|x| *x *= self.0);
    }
}
