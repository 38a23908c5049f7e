//! The backward pass recomputes and differentiates head and loss, then block by block, tile by tile, to the gradients
//! of all parameters.

use candle_core::Tensor;

use super::{Attention, Engine, Objective, Pass, Residuals, Stash};
use crate::Result;
use crate::attention::{Qkv, SavedRows, side_by_side};
use crate::model::{Block, Condition};
use crate::observe::meter::{Phase, Section, Traffic};
use crate::ops::bytes::set_rows;
use crate::ops::{Tape, add_assign, row_dot};

impl Engine<'_> {
    /// The loss of the residual stream `x` `[rows, D]`, and every parameter's gradient.
    pub(super) fn backward(
        &self,
        condition: &Condition,
        objective: &dyn Objective,
        x: Tensor,
        stash: &mut Stash,
    ) -> Result<f64> {
        self.enter(Phase::Head);
        let head = || self.head_and_loss(condition, objective, x);
        let (loss, dx) = self.with_unit(self.model.head.unit, Pass::Backward, head)?;
        for (i, block) in self.model.blocks.iter().enumerate().rev() {
            self.meter.enter_block(Some(i));
            let residuals = self.meter.during(Section::Stash, || stash.take(i))?;
            self.meter.moved(Traffic::StashRead, stash.copied());
            self.with_unit(block.unit, Pass::Backward, || self.block_backward(condition, block, residuals, &dx))?;
        }
        self.meter.enter_block(None);
        self.enter(Phase::Update);
        let embed = &self.model.embed;
        if !self.model.trains(embed.unit) {
            return Ok(loss);
        }
        self.with_unit(embed.unit, Pass::Backward, || {
            if !embed.is_frozen() {
                self.each_tile(self.per_row.embed, |tile| {
                    embed.backward(&self.input(objective, &tile)?, &self.rows_of(&dx, &tile)?)
                })?;
            }
            self.model.conditioner.backward(condition)
        })?;
        Ok(loss)
    }

    /// This rank's share of the loss, and the gradient `[rows, D]` of the last block's output.
    fn head_and_loss(&self, condition: &Condition, objective: &dyn Objective, x: Tensor) -> Result<(f64, Tensor)> {
        let head = self.model.head.begin(condition)?;
        let dx = self.buffer(self.model.config.width(), self.dtype())?;
        let mut loss = 0.0;
        self.each_tile(self.per_row.both * self.per_row.head, |tile| {
            let (tape, x) = (Tape::recording(), self.rows_of(&x, &tile)?);
            let output = self.model.head.forward(&tape, &x, &head, self.sample_rows(&tile))?;
            let (share, d_output) = objective.loss(tile.clone(), &output)?;
            let d_output = d_output.to_device(self.device())?;
            loss += share;
            set_rows(&dx, &tape.backward(&[(&output, &d_output)], &[&x])?[0], tile.start)
        })?;
        self.model.head.end(condition, &head)?;
        Ok((loss, dx))
    }

    /// Turns `dx`, the gradient of the block's output, into that of its input, in place.
    fn block_backward(&self, condition: &Condition, block: &Block, residuals: Residuals, dx: &Tensor) -> Result<()> {
        let Residuals { x, attention } = residuals;
        let mut cond = block.begin(condition)?;
        let Attention { o, lse } = match attention {
            Some(attention) => attention,
            None => self.attend(block, &cond, &x, [Phase::AgainExchange, Phase::AgainAttention])?,
        };
        self.enter(Phase::BackwardAfter);
        let d_o = self.buffer(self.model.config.width(), self.compute())?;
        let delta = self.buffer(self.heads(), self.dtype())?;
        self.each_tile(self.per_row.both * self.per_row.after, |tile| {
            let (tape, x, o) = (Tape::recording(), self.rows_of(&x, &tile)?, self.rows_of(&o, &tile)?);
            let y = block.after_unread(&tape, &x, &o, &cond, self.sample_rows(&tile))?;
            let gradients = tape.backward(&[(&y, &self.rows_of(dx, &tile)?)], &[&x, &o])?;
            set_rows(dx, &gradients[0], tile.start)?;
            set_rows(&d_o, &gradients[1], tile.start)?;
            set_rows(&delta, &row_dot(&gradients[1], &o, self.heads())?, tile.start)
        })?;
        drop(o);
        cond.unpin_after();

        let d_o = self.by_tokens(&d_o, self.model.config.attention_head_dim)?; // [B, local S, H, d]
        let delta = delta.reshape((self.batch, delta.dims()[0] / self.batch, self.heads()))?; // [B, local S, H]
        let mut done = 0; // my heads of the groups so far
        let [mut dq, mut dk, mut dv] = [vec![], vec![], vec![]];
        for group in &self.groups {
            self.enter(Phase::BackwardExchange);
            let [q, k, v] = self.queries_keys_values(block, &cond, &x, group)?;
            let to_heads = |x| self.meter.during(Section::Exchange, || group.to_heads(x));
            let (d_o, delta) = (to_heads(&d_o)?, to_heads(&delta)?); // [B, my heads, S, d], [B, my heads, S]
            let heads = delta.dims()[1];
            let lse = lse.narrow(1, done, heads)?;
            done += heads;
            self.enter(Phase::BackwardAttention);
            let (qkv, saved) = (Qkv::new(&q, &k, &v), SavedRows::new(&d_o, &lse, &delta));
            let backward = || group.attention.attend_backward(qkv, saved, self.scale());
            let gradients = self.meter.compute(backward)?;
            drop((q, k, v, d_o, delta));
            self.enter(Phase::BackwardReturn);
            dq.push(self.to_rows(&gradients.0, group)?);
            dk.push(self.to_rows(&gradients.1, group)?);
            dv.push(self.to_rows(&gradients.2, group)?);
        }
        // Whole, as a tile's share of all weights is added once: sums keep their order whatever the groups.
        let [dq, dk, dv] = [side_by_side(dq)?, side_by_side(dk)?, side_by_side(dv)?]; // [rows, D]

        self.enter(Phase::BackwardBefore);
        self.each_tile(self.per_row.both * self.per_row.before, |tile| {
            let (tape, x) = (Tape::recording(), self.rows_of(&x, &tile)?);
            let outputs = block.before(&tape, &x, &cond, &self.rope, self.sample_rows(&tile))?;
            let gradients = [self.rows_of(&dq, &tile)?, self.rows_of(&dk, &tile)?, self.rows_of(&dv, &tile)?];
            let pairs: Vec<(&Tensor, &Tensor)> = outputs.iter().zip(&gradients).collect();
            Ok(add_assign(&self.rows_of(dx, &tile)?, &tape.backward(&pairs, &[&x])?[0])?)
        })?;
        block.end(condition, &cond)
    }
}
