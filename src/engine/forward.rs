//! The forward pass takes the residual stream through embedding and blocks, and stashes each block's residuals for
//! backward.

use candle_core::Tensor;

use super::heads::HeadGroup;
use super::{Attention, Engine, Pass, Residuals, Source, Stash};
use crate::Result;
use crate::attention::{Qkv, side_by_side};
use crate::model::{Block, BlockCondition, Condition, Conditioning};
use crate::observe::meter::{Phase, Section, Traffic};
use crate::ops::Tape;
use crate::ops::bytes::set_rows;

impl Engine<'_> {
    /// The condition, and the residual stream `[rows, D]` before the first block.
    pub(super) fn embed(&self, conditioning: &Conditioning, source: &dyn Source) -> Result<(Condition, Tensor)> {
        self.enter(Phase::Embed);
        self.with_unit(self.model.embed.unit, Pass::Forward, || {
            let condition = self.model.conditioner.forward_in_groups(conditioning, self.times.clone())?;
            let x = self.buffer(self.model.config.width(), self.dtype())?;
            self.each_tile(self.per_row.embed, |tile| {
                let input = self.input(source, &tile)?;
                let embedded = self.model.embed.forward(&input, self.grid, &self.tokens_of(&tile))?;
                set_rows(&x, &embedded, tile.start)
            })?;
            Ok((condition, x))
        })
    }

    /// The residual stream `[rows, D]` after the last block, from that before the first, `x`. With a stash, each
    /// block's input, attention output and row statistic are put there.
    pub(super) fn forward(
        &self,
        condition: &Condition,
        mut x: Tensor,
        mut stash: Option<&mut Stash>,
    ) -> Result<Tensor> {
        for (i, block) in self.model.blocks.iter().enumerate() {
            self.meter.enter_block(Some(i));
            let (next, attention) = self.with_unit(block.unit, Pass::Forward, || {
                let cond = block.begin(condition)?;
                let phases = [Phase::ForwardExchange, Phase::ForwardAttention];
                let attention = self.attend(block, &cond, &x, phases)?;
                self.enter(Phase::ForwardAfter);
                let next = self.buffer(self.model.config.width(), self.dtype())?;
                self.each_tile(self.per_row.after, |tile| {
                    let (x, o) = (self.rows_of(&x, &tile)?, self.rows_of(&attention.o, &tile)?);
                    set_rows(&next, &block.after(&Tape::off(), &x, &o, &cond, self.sample_rows(&tile))?, tile.start)
                })?;
                Ok((next, attention))
            })?;
            let input = std::mem::replace(&mut x, next);
            if let Some(stash) = &mut stash {
                let residuals = Residuals { x: input, attention: Some(attention) };
                self.meter.during(Section::Stash, || stash.put(i, residuals))?;
                self.meter.moved(Traffic::StashWritten, stash.copied());
            }
        }
        self.meter.enter_block(None);
        Ok(x)
    }

    /// A block's attention, from its input: my heads of each group in turn. `phases`: what its exchange and attention
    /// are.
    pub(super) fn attend(
        &self,
        block: &Block,
        cond: &BlockCondition,
        x: &Tensor,
        phases: [Phase; 2],
    ) -> Result<Attention> {
        let (mut outputs, mut statistics) = (vec![], vec![]);
        for group in &self.groups {
            self.enter(phases[0]);
            let [q, k, v] = self.queries_keys_values(block, cond, x, group)?;
            self.enter(phases[1]);
            let forward = || group.attention.attend(Qkv::new(&q, &k, &v), self.scale());
            let (o, lse) = self.meter.compute(forward)?; // [B, my heads, S, d], [B, my heads, S]
            drop((q, k, v));
            outputs.push(self.to_rows(&o, group)?);
            statistics.push(lse);
        }
        Ok(Attention { o: side_by_side(outputs)?, lse: side_by_side(statistics)? })
    }

    /// A group's q, k and v, `[B, my heads, S, d]`, from its block's input.
    ///
    /// All heads are computed (their norm is over all of them) and one group's are kept, so that only these are ever
    /// whole.
    pub(super) fn queries_keys_values(
        &self,
        block: &Block,
        cond: &BlockCondition,
        x: &Tensor,
        group: &HeadGroup,
    ) -> Result<[Tensor; 3]> {
        let d = self.model.config.attention_head_dim;
        let buffer = || self.buffer(group.heads.len() * d, self.compute());
        let [q, k, v] = [buffer()?, buffer()?, buffer()?];
        self.each_tile(self.per_row.before, |tile| {
            let parts =
                block.before(&Tape::off(), &self.rows_of(x, &tile)?, cond, &self.rope, self.sample_rows(&tile))?;
            for (whole, part) in [&q, &k, &v].into_iter().zip(parts) {
                set_rows(whole, &group.columns(&part, d)?, tile.start)?;
            }
            Ok(())
        })?;
        let to_heads = |x| group.attention.to_heads(&self.by_tokens(x, d)?);
        self.meter.during(Section::Exchange, || Ok([to_heads(&q)?, to_heads(&k)?, to_heads(&v)?]))
    }
}
