//! Computes a transformer block in the two token-local halves around attention: [`Block::before`] and [`Block::after`].
//!
//! With scale_shift_table + modulation as six rows of width D, a shift, a scale and a gate of attention (msa) and of
//! the MLP:
//!
//! ```text
//! q, k, v = rope(rms(Wq h)), rope(rms(Wk h)), Wv h     h = LN(x) (1 + scale_msa) + shift_msa     before
//! o = attention(q, k, v)                                                                         elsewhere
//! x = x + gate_msa Wo o                                                                          after
//! x = x + Wo' cross(rms(Wq' LN(x)), text)                                                        if the model has text
//! x = x + gate_mlp W2 gelu(W1 h)                       h = LN(x) (1 + scale_mlp) + shift_mlp
//! ```
//!
//! RMSNorm of q and k is over the whole width, before the split into heads.

use candle_core::{DType, Tensor};

use super::block_weights::{Attention, Cross};
use super::cross::cross_attention;
use super::{BlockCondition, UnitId};
use crate::Result;
use crate::ops::{Affine, Linear, Param, Rope, Rows, Tape, cast, layer_norm, rms_norm, rms_rope};

/// One block's weights.
pub struct Block {
    /// Where its parameters are.
    pub unit: UnitId,
    pub(super) attention: Attention,
    pub(super) cross: Option<Cross>,
    pub(super) ffn: (Linear, Linear),
    pub(super) table: Param, // [1, 6, D]
    pub(super) heads: usize,
    pub(super) eps: f64,
    pub(super) bf16: bool,
}

impl Block {
    /// q, k, v `[n, D]` of a tile `x` `[n, D]`, in the compute dtype. Differentiable in x.
    pub fn before(
        &self,
        tape: &Tape,
        x: &Tensor,
        cond: &BlockCondition,
        rope: &Rope,
        rows: Rows,
    ) -> Result<[Tensor; 3]> {
        let a = &self.attention;
        let h = layer_norm(tape, x, cond.modulate_msa(rows), self.eps)?;
        let [to_q, to_k, to_v] = [&a.q, &a.k, &a.v].map(|layer| layer.at(rows, true));
        let q = rms_rope(tape, &to_q.forward(tape, &h)?, &a.norm_q, self.eps, rope, rows)?;
        let k = rms_rope(tape, &to_k.forward(tape, &h)?, &a.norm_k, self.eps, rope, rows)?;
        let v = to_v.forward(tape, &h)?;
        let dtype = if self.bf16 && x.dtype() == DType::F32 { DType::BF16 } else { x.dtype() };
        Ok([cast(tape, &q, dtype)?, cast(tape, &k, dtype)?, cast(tape, &v, dtype)?])
    }

    /// The block's output `[n, D]` from its input `x` and the attention output `o` (compute dtype), both `[n, D]`.
    /// Differentiable in x and o.
    pub fn after(&self, tape: &Tape, x: &Tensor, o: &Tensor, cond: &BlockCondition, rows: Rows) -> Result<Tensor> {
        let (x, h) = self.up_to_mlp_output(tape, x, o, cond, rows)?;
        Ok(self.ffn.1.at(rows, true).gate_to(tape, &x, &h, cond.gate_mlp(), cond.modulations(rows))?)
    }

    /// [`after`](Self::after) for a backward pass, which does not read the output: it may be zeros, and is no more
    /// computed than gradients need.
    pub fn after_unread(
        &self,
        tape: &Tape,
        x: &Tensor,
        o: &Tensor,
        cond: &BlockCondition,
        rows: Rows,
    ) -> Result<Tensor> {
        let (x, h) = self.up_to_mlp_output(tape, x, o, cond, rows)?;
        Ok(self.ffn.1.at(rows, true).gate_to_unread(tape, &x, &h, cond.gate_mlp(), cond.modulations(rows))?)
    }

    /// The stream and the hidden rows that the MLP's last layer takes.
    fn up_to_mlp_output(
        &self,
        tape: &Tape,
        x: &Tensor,
        o: &Tensor,
        cond: &BlockCondition,
        rows: Rows,
    ) -> Result<(Tensor, Tensor)> {
        let o = cast(tape, o, x.dtype())?;
        let out = self.attention.out.at(rows, true);
        let mut x = out.gate_to(tape, x, &o, cond.gate_msa(), cond.modulations(rows))?;
        if let (Some(cross), Some(text)) = (&self.cross, &cond.text) {
            let a = &cross.attention;
            let h = match &cross.norm {
                Some((weight, bias)) => {
                    let affine = Affine::Weights { weight: weight.clone(), bias: bias.clone() };
                    layer_norm(tape, &x, affine, self.eps)?
                }
                None => x.clone(),
            };
            let q = rms_norm(tape, &a.q.at(rows, true).forward(tape, &h)?, &a.norm_q, self.eps)?;
            let o = cross_attention(tape, &q, text, self.heads, rows, self.bf16)?;
            x = a.out.at(rows, true).add_to(tape, &x, &o)?;
        }
        let h = layer_norm(tape, &x, cond.modulate_mlp(rows), self.eps)?;
        let h = self.ffn.0.at(rows, true).gelu(tape, &h)?;
        Ok((x, h))
    }
}
