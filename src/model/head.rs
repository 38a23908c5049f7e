//! The head maps the residual stream to patches: LayerNorm modulated by the time embedding, then a linear layer, in
//! (pt, ph, pw, C) order.

use candle_core::Tensor;
use std::sync::Arc;

use super::condition::leaf;
use super::{Condition, Layers, ModelConfig, RowGroups, UnitId};
use crate::Result;
use crate::ops::{Affine, Linear, PackedGuard, Param, Rows, Tape, layer_norm};

/// `proj_out` and the head's `scale_shift_table`.
pub struct Head {
    /// Where its parameters are.
    pub unit: UnitId,
    out: Linear,
    table: Param, // [1, 2, D]
    eps: f64,
}

/// Shift and scale of each sample, once for all tiles: table + time embedding.
pub struct HeadCondition {
    modulation: Param, // [B, 2, D]
    groups: Option<Arc<RowGroups>>,
    _packed: PackedGuard,
}

impl Head {
    /// Views the weights in a unit.
    pub fn new(layers: &Layers, config: &ModelConfig, bf16: bool) -> Result<Self> {
        Ok(Self {
            unit: layers.unit.id,
            out: layers.linear("proj_out", bf16)?,
            table: layers.param("scale_shift_table")?,
            eps: config.eps,
        })
    }

    /// The head's view of the condition.
    pub fn begin(&self, condition: &Condition) -> Result<HeadCondition> {
        let modulation = condition.time.value.unsqueeze(1)?.broadcast_add(&self.table.value)?;
        let frozen = self.table.is_frozen() && condition.time.is_frozen();
        Ok(HeadCondition {
            modulation: leaf("head modulation", modulation, frozen)?,
            groups: condition.groups.clone(),
            _packed: self.out.pin_packed(),
        })
    }

    /// Takes the gradients that the tiles have left in `cond` on to the table and to `condition`.
    pub fn end(&self, condition: &Condition, cond: &HeadCondition) -> Result<()> {
        let Some(grad) = &cond.modulation.grad else { return Ok(()) };
        self.table.accumulate(&grad.sum_keepdim(0)?)?;
        Ok(condition.time.accumulate(&grad.sum(1)?)?)
    }

    /// Predictions `[n, pt ph pw C]` of a tile `x` `[n, D]`. Differentiable in x.
    pub fn forward(&self, tape: &Tape, x: &Tensor, cond: &HeadCondition, rows: Rows) -> Result<Tensor> {
        let modulated = cond.groups.as_ref().map_or(rows, |groups| groups.modulations(rows));
        let affine = Affine::Modulation { modulation: cond.modulation.clone(), shift: 0, scale: 1, rows: modulated };
        Ok(self.out.at(rows, true).forward(tape, &layer_norm(tape, x, affine, self.eps)?)?)
    }
}
