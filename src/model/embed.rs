//! The patch embedding: a 3-D convolution whose stride is its kernel, that is, a linear map of each patch; and, if the
//! model asks for them, fixed sine-cosine positions (as in ViT, DiT and JiT, here over three axes).

use candle_core::Tensor;

use super::{Layers, ModelConfig, UnitId};
use crate::Result;
use crate::ops::{Linear, Tape};

/// Base of the positions' frequencies.
const THETA: f64 = 10_000.0;

/// `patch_embedding`: rows of patches in (C, pt, ph, pw) order to the residual stream.
pub struct Embed {
    /// Where its parameters are, and the conditioner's.
    pub unit: UnitId,
    linear: Linear,
    positions: bool,
}

impl Embed {
    /// Views the weights in a unit.
    pub fn new(layers: &Layers, config: &ModelConfig, bf16: bool) -> Result<Self> {
        let mut linear = layers.linear("patch_embedding", bf16)?;
        linear.weight = linear.weight.reshape((config.width(), config.patch_in()))?; // [D, C pt ph pw]
        Ok(Self { unit: layers.unit.id, linear, positions: config.pos_embed })
    }

    /// `rows` `[n, C pt ph pw]`, the patches of `tokens` of a clip of `grid` (time, height, width) tokens, to `[n, D]`.
    pub fn forward(&self, rows: &Tensor, grid: [usize; 3], tokens: &[usize]) -> Result<Tensor> {
        let x = self.linear.forward(&Tape::off(), rows)?;
        if !self.positions {
            return Ok(x);
        }
        let (n, width) = x.dims2()?;
        let values: Vec<f64> = tokens.iter().flat_map(|&token| position(token, grid, width)).collect();
        Ok((x + Tensor::from_vec(values, (n, width), rows.device())?.to_dtype(rows.dtype())?)?)
    }

    /// Whether it has no gradients.
    pub fn is_frozen(&self) -> bool {
        self.linear.weight.is_frozen()
    }

    /// Adds the weight gradients for a tile, given its rows and `dx` `[n, D]`. Positions have none.
    pub fn backward(&self, rows: &Tensor, dx: &Tensor) -> Result<()> {
        Ok(self.linear.accumulate(rows, dx)?)
    }
}

/// The `width` features of a token's position: the width's sixths are sines and cosines along time, height and width
/// (what 6 does not divide stays 0).
fn position(token: usize, grid: [usize; 3], width: usize) -> Vec<f64> {
    let [_, rows, columns] = grid;
    let pairs = width / 6;
    let mut features = Vec::with_capacity(width);
    for at in [token / (rows * columns), token / columns % rows, token % columns] {
        let angle = |i: usize| at as f64 * THETA.powf(-(i as f64) / pairs as f64);
        features.extend((0..pairs).map(|i| angle(i).sin()));
        features.extend((0..pairs).map(|i| angle(i).cos()));
    }
    features.resize(width, 0.0);
    features
}
