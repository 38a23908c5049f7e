//! Views a block's weights in its unit, by their names in a checkpoint.

use super::block::Block;
use super::{Layers, ModelConfig};
use crate::Result;
use crate::ops::{Linear, Param};

/// Weights of self- or cross-attention.
pub(super) struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub out: Linear,
    pub norm_q: Param,
    pub norm_k: Param,
}

/// Cross-attention and the affine norm before it.
pub(super) struct Cross {
    pub attention: Attention,
    pub norm: Option<(Param, Param)>,
}

impl Attention {
    fn new(layers: &Layers, name: &str, bf16: bool) -> Result<Self> {
        let linear = |part: &str| layers.linear(&format!("{}.{name}.{part}", layers.unit.name), bf16);
        let param = |part: &str| layers.param(&format!("{}.{name}.{part}.weight", layers.unit.name));
        Ok(Self {
            q: linear("to_q")?,
            k: linear("to_k")?,
            v: linear("to_v")?,
            out: linear("to_out.0")?,
            norm_q: param("norm_q")?,
            norm_k: param("norm_k")?,
        })
    }
}

impl Block {
    /// Views the weights in a unit.
    pub fn new(layers: &Layers, config: &ModelConfig, bf16: bool) -> Result<Self> {
        let name = |part: &str| format!("{}.{part}", layers.unit.name);
        let cross = if config.text_dim == 0 {
            None
        } else {
            let norm = match config.cross_attn_norm {
                true => Some((layers.param(&name("norm2.weight"))?, layers.param(&name("norm2.bias"))?)),
                false => None,
            };
            Some(Cross { attention: Attention::new(layers, "attn2", bf16)?, norm })
        };
        Ok(Self {
            unit: layers.unit.id,
            attention: Attention::new(layers, "attn1", bf16)?,
            cross,
            ffn: (layers.linear(&name("ffn.net.0.proj"), bf16)?, layers.linear(&name("ffn.net.2"), bf16)?),
            table: layers.param(&name("scale_shift_table"))?,
            heads: config.num_attention_heads,
            eps: config.eps,
            bf16,
        })
    }

    /// The layers that every tile goes through before attention.
    pub(super) fn layers_before(&self) -> [&Linear; 3] {
        let a = &self.attention;
        [&a.q, &a.k, &a.v]
    }

    /// The layers that every tile goes through after attention.
    pub(super) fn layers_after(&self) -> impl Iterator<Item = &Linear> {
        let cross = self.cross.iter().flat_map(|cross| [&cross.attention.q, &cross.attention.out]);
        [&self.attention.out, &self.ffn.0, &self.ffn.1].into_iter().chain(cross)
    }
}
