//! Takes the condition (time, class, text) to a block before its tiles, and its gradient back after them.

use candle_core::Tensor;
use std::sync::Arc;

use super::block::Block;
use super::block_weights::Cross;
use super::condition::leaf;
use super::cross::CrossText;
use super::{Condition, RowGroups};
use crate::Result;
use crate::ops::{Affine, Linear, PackedGuard, Param, Rows, Tape, rms_norm};

/// Rows of a block's modulation, in diffusers' order.
const SHIFT_MSA: usize = 0;
const SCALE_MSA: usize = 1;
const GATE_MSA: usize = 2;
const SHIFT_MLP: usize = 3;
const SCALE_MLP: usize = 4;
const GATE_MLP: usize = 5;

/// What a block makes of the condition, once for all tiles.
pub struct BlockCondition {
    modulation: Param, // [B, 6, D]
    groups: Option<Arc<RowGroups>>,
    pub(super) text: Option<CrossText>,
    // The tiles' weights stay packed, those before attention and those after it.
    _packed_before: [PackedGuard; 3],
    packed_after: Vec<PackedGuard>,
}

impl BlockCondition {
    /// Gives back the packed weights of what comes after attention.
    pub fn unpin_after(&mut self) {
        self.packed_after.clear();
    }

    /// The modulations of a tile's rows.
    pub(super) fn modulations(&self, rows: Rows) -> Rows {
        self.groups.as_ref().map_or(rows, |groups| groups.modulations(rows))
    }

    /// What follows the normalisation before attention: (1 + scale) and shift.
    pub(super) fn modulate_msa(&self, rows: Rows) -> Affine {
        self.modulate(SHIFT_MSA, SCALE_MSA, rows)
    }

    /// The gate of attention's output: a row of the modulation.
    pub(super) fn gate_msa(&self) -> (&Param, usize) {
        (&self.modulation, GATE_MSA)
    }

    /// What follows the normalisation before the MLP: (1 + scale) and shift.
    pub(super) fn modulate_mlp(&self, rows: Rows) -> Affine {
        self.modulate(SHIFT_MLP, SCALE_MLP, rows)
    }

    /// The gate of the MLP's output: a row of the modulation.
    pub(super) fn gate_mlp(&self) -> (&Param, usize) {
        (&self.modulation, GATE_MLP)
    }

    fn modulate(&self, shift: usize, scale: usize, rows: Rows) -> Affine {
        Affine::Modulation { modulation: self.modulation.clone(), shift, scale, rows: self.modulations(rows) }
    }
}

impl Block {
    /// The block's view of the condition: modulations, and keys and values of the text.
    pub fn begin(&self, condition: &Condition) -> Result<BlockCondition> {
        let modulation = condition.modulation.value.broadcast_add(&self.table.value)?;
        let text = match (&self.cross, &condition.text) {
            (Some(cross), Some(text)) => {
                let (k, v) = self.text_rows(&Tape::off(), cross, &text.embedded.value)?;
                let (keys, values) = (Param::leaf("text keys", k)?, Param::leaf("text values", v)?);
                Some(CrossText { keys, values, rows: text.rows.clone() })
            }
            _ => None,
        };
        let _packed_before = self.layers_before().map(Linear::pin_packed);
        let packed_after = self.layers_after().map(Linear::pin_packed).collect();
        let frozen = self.table.is_frozen() && condition.modulation.is_frozen();
        let modulation = leaf("modulation", modulation, frozen)?;
        let groups = condition.groups.clone();
        Ok(BlockCondition { modulation, groups, text, _packed_before, packed_after })
    }

    /// Takes the gradients that the tiles have left in `cond` on to the block's weights and to `condition`.
    pub fn end(&self, condition: &Condition, cond: &BlockCondition) -> Result<()> {
        if let Some(grad) = &cond.modulation.grad {
            self.table.accumulate(&grad.sum_keepdim(0)?)?;
            condition.modulation.accumulate(grad)?;
        }
        if let (Some(cross), Some(text), Some(of_block)) = (&self.cross, &condition.text, &cond.text) {
            let (tape, input) = (Tape::recording(), text.embedded.value.clone());
            let (keys, values) = self.text_rows(&tape, cross, &input)?;
            let outputs = [(&keys, of_block.keys.grad()?), (&values, of_block.values.grad()?)];
            text.embedded.accumulate(&tape.backward(&outputs, &[&input])?.remove(0))?;
        }
        Ok(())
    }

    /// Keys and values `[rows, D]` of text rows.
    fn text_rows(&self, tape: &Tape, cross: &Cross, text: &Tensor) -> Result<(Tensor, Tensor)> {
        let tokens = text.dims()[0];
        let a = &cross.attention;
        let [k, v] = [&a.k, &a.v].map(|layer| layer.at(Rows { start: 0, tokens }, false));
        Ok((rms_norm(tape, &k.forward(tape, text)?, &a.norm_k, self.eps)?, v.forward(tape, text)?))
    }
}
