//! A transformer block, in the two token-local halves around attention: [`Block::before`] and [`Block::after`].
//!
//! With m = scale_shift_table + modulation, six rows of width D:
//!
//! ```text
//! q, k, v = rope(rms(Wq h)), rope(rms(Wk h)), Wv h        h = LN(x) (1 + m1) + m0        before
//! o = attention(q, k, v)                                                                 elsewhere
//! x = x + m2 Wo o                                                                        after
//! x = x + Wo' cross(rms(Wq' LN(x)), text)                                                if the model has text
//! x = x + m5 W2 gelu(W1 h)                                h = LN(x) (1 + m4) + m3
//! ```
//!
//! RMSNorm of q and k is over the whole width, before the split into heads.

use candle_core::{DType, Tensor, Var};

use super::cross::cross_attention;
use super::{Condition, ModelConfig, Unit};
use crate::Result;
use crate::ops::{Affine, Linear, Param, Rope, Rows, gate_residual, gelu, layer_norm, rms_norm, rope, vjp};

/// One block's weights.
pub struct Block {
    attention: Attention,
    cross: Option<Cross>,
    ffn: (Linear, Linear),
    table: Param, // [1, 6, D]
    heads: usize,
    eps: f64,
    bf16: bool,
}

/// Weights of self- or cross-attention.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm_q: Param,
    norm_k: Param,
}

/// Cross-attention and the affine norm before it.
struct Cross {
    attention: Attention,
    norm: Option<(Param, Param)>,
}

/// What a block makes of the condition, once for all tiles.
pub struct BlockCondition {
    modulation: Param,            // [B, 6, D]
    text: Option<(Param, Param)>, // keys, values [B, L, D]
}

impl Attention {
    fn new(unit: &Unit, name: &str, bf16: bool) -> Result<Self> {
        let linear = |part: &str| unit.linear(&format!("{}.{name}.{part}", unit.name), bf16);
        let param = |part: &str| unit.param(&format!("{}.{name}.{part}.weight", unit.name));
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
    /// Views the weights in `unit`.
    pub fn new(unit: &Unit, config: &ModelConfig, bf16: bool) -> Result<Self> {
        let name = |part: &str| format!("{}.{part}", unit.name);
        let cross = if config.text_dim == 0 {
            None
        } else {
            let norm = match config.cross_attn_norm {
                true => Some((unit.param(&name("norm2.weight"))?, unit.param(&name("norm2.bias"))?)),
                false => None,
            };
            Some(Cross { attention: Attention::new(unit, "attn2", bf16)?, norm })
        };
        Ok(Self {
            attention: Attention::new(unit, "attn1", bf16)?,
            cross,
            ffn: (unit.linear(&name("ffn.net.0.proj"), bf16)?, unit.linear(&name("ffn.net.2"), bf16)?),
            table: unit.param(&name("scale_shift_table"))?,
            heads: config.num_attention_heads,
            eps: config.eps,
            bf16,
        })
    }

    /// The block's view of the condition: modulations, and keys and values of the text.
    pub fn begin(&self, condition: &Condition) -> Result<BlockCondition> {
        let modulation = condition.modulation.value.broadcast_add(&self.table.value)?;
        let text = match (&self.cross, &condition.text) {
            (Some(cross), Some(text)) => {
                let (k, v) = self.text_rows(cross, &text.value.flatten(0, 1)?)?;
                let shape = text.value.shape();
                Some((Param::leaf("text keys", k.reshape(shape)?)?, Param::leaf("text values", v.reshape(shape)?)?))
            }
            _ => None,
        };
        Ok(BlockCondition { modulation: Param::leaf("modulation", modulation)?, text })
    }

    /// Takes the gradients that the tiles have left in `mine` on to the block's weights and to `condition`.
    pub fn end(&self, condition: &Condition, mine: &BlockCondition) -> Result<()> {
        self.table.accumulate(&mine.modulation.grad.sum_keepdim(0)?)?;
        condition.modulation.accumulate(&mine.modulation.grad)?;
        if let (Some(cross), Some(text), Some((k, v))) = (&self.cross, &condition.text, &mine.text) {
            let input = Var::from_tensor(&text.value.flatten(0, 1)?)?;
            let (keys, values) = self.text_rows(cross, &input)?;
            let outputs = [(&keys, &k.grad.flatten(0, 1)?), (&values, &v.grad.flatten(0, 1)?)];
            let d_text = vjp(&outputs, &[&input])?.remove(0);
            text.accumulate(&d_text.reshape(text.grad.shape())?)?;
        }
        Ok(())
    }

    /// Keys and values `[B L, D]` of text rows.
    fn text_rows(&self, cross: &Cross, text: &Tensor) -> Result<(Tensor, Tensor)> {
        let a = &cross.attention;
        Ok((rms_norm(&a.k.forward(text)?, &a.norm_k, self.eps)?, a.v.forward(text)?))
    }

    /// q, k, v `[n, D]` of a tile `x` `[n, D]`, in the compute dtype. Differentiable in x.
    pub fn before(&self, x: &Tensor, mine: &BlockCondition, turn: &Rope, rows: Rows) -> Result<[Tensor; 3]> {
        let a = &self.attention;
        let h = self.modulated(x, mine, 0, 1, rows)?;
        let q = rope(&rms_norm(&a.q.forward(&h)?, &a.norm_q, self.eps)?, turn, rows)?;
        let k = rope(&rms_norm(&a.k.forward(&h)?, &a.norm_k, self.eps)?, turn, rows)?;
        let v = a.v.forward(&h)?;
        Ok([self.compute(q)?, self.compute(k)?, self.compute(v)?])
    }

    /// The block's output `[n, D]` from its input `x` and the attention output `o` (compute dtype), both `[n, D]`.
    /// Differentiable in x and o.
    pub fn after(&self, x: &Tensor, o: &Tensor, mine: &BlockCondition, rows: Rows) -> Result<Tensor> {
        let o = self.attention.out.forward(&o.to_dtype(x.dtype())?)?;
        let mut x = gate_residual(x, &o, &mine.modulation, 2, rows)?;
        if let (Some(cross), Some((k, v))) = (&self.cross, &mine.text) {
            let a = &cross.attention;
            let h = match &cross.norm {
                Some((weight, bias)) => {
                    let affine = Affine::Weights { weight: weight.clone(), bias: bias.clone() };
                    layer_norm(&x, affine, self.eps)?
                }
                None => x.clone(),
            };
            let q = rms_norm(&a.q.forward(&h)?, &a.norm_q, self.eps)?;
            let o = cross_attention(&q, k, v, self.heads, rows, self.bf16)?;
            x = (x + a.out.forward(&o)?)?;
        }
        let h = self.modulated(&x, mine, 3, 4, rows)?;
        let h = self.ffn.1.forward(&gelu(&self.ffn.0.forward(&h)?)?)?;
        Ok(gate_residual(&x, &h, &mine.modulation, 5, rows)?)
    }

    /// LN(x) (1 + scale) + shift.
    fn modulated(&self, x: &Tensor, mine: &BlockCondition, shift: usize, scale: usize, rows: Rows) -> Result<Tensor> {
        let affine = Affine::Modulation { modulation: mine.modulation.clone(), shift, scale, rows };
        Ok(layer_norm(x, affine, self.eps)?)
    }

    /// In the dtype attention computes in.
    fn compute(&self, x: Tensor) -> Result<Tensor> {
        Ok(if self.bf16 && x.dtype() == DType::F32 { x.to_dtype(DType::BF16)? } else { x })
    }
}
