//! The patch embedding: a 3-D convolution whose stride is its kernel, that is, a linear map of each patch.

use candle_core::Tensor;

use super::{ModelConfig, Unit};
use crate::Result;
use crate::ops::Linear;

/// `patch_embedding`: rows of patches in (C, pt, ph, pw) order to the residual stream.
pub struct Embed(Linear);

impl Embed {
    /// Views the weights in `unit`.
    pub fn new(unit: &Unit, config: &ModelConfig, bf16: bool) -> Result<Self> {
        let mut linear = unit.linear("patch_embedding", bf16)?;
        let shape = (config.width(), config.patch_in());
        linear.weight.value = linear.weight.value.reshape(shape)?; // [D, C pt ph pw]
        linear.weight.grad = linear.weight.grad.reshape(shape)?;
        Ok(Self(linear))
    }

    /// `rows` `[n, C pt ph pw]` to `[n, D]`.
    pub fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(self.0.forward(rows)?)
    }

    /// Adds the weight gradients for a tile, given its rows and `dx` `[n, D]`.
    pub fn backward(&self, rows: &Tensor, dx: &Tensor) -> Result<()> {
        Ok(self.0.accumulate(rows, dx)?)
    }
}
