//! Forward: the residual stream through embed and blocks, remembering for backward what the stash is given.

use candle_core::Tensor;

use super::{Engine, Saved, Source, Stash};
use crate::Result;
use crate::model::{Block, BlockCondition, Condition};

impl Engine<'_> {
    /// The residual stream `[rows, D]` after the last block. With a stash, each block's input, attention output and row
    /// statistic are put there.
    pub(super) fn forward(
        &self,
        condition: &Condition,
        source: &dyn Source,
        mut stash: Option<&mut Stash>,
    ) -> Result<Tensor> {
        let mut x = self.buffer(self.model.config.width(), self.dtype())?;
        for tile in self.tiles() {
            let embedded = self.model.embed.forward(&source.input(tile.clone())?, self.grid, &self.tokens_of(&tile))?;
            x.slice_set(&embedded, 0, tile.start)?;
        }
        for (i, block) in self.model.blocks.iter().enumerate() {
            let mine = block.begin(condition)?;
            let [q, k, v] = self.queries_keys_values(block, &mine, &x)?;
            let (o, lse) = self.attention.attend(&q, &k, &v, self.scale())?; // [B, my heads, S, d]
            drop((q, k, v));
            let o = self.to_rows(&o)?; // [rows, D]
            let next = self.buffer(self.model.config.width(), self.dtype())?;
            for tile in self.tiles() {
                let (x, o) = (self.rows_of(&x, &tile)?, self.rows_of(&o, &tile)?);
                next.slice_set(&block.after(&x, &o, &mine, self.at(&tile))?, 0, tile.start)?;
            }
            let input = std::mem::replace(&mut x, next);
            if let Some(stash) = &mut stash {
                stash.put(i, Saved { x: input, o, lse });
            }
        }
        Ok(x)
    }

    /// A block's q, k and v, `[B, my heads, S, d]`, from its input.
    pub(super) fn queries_keys_values(&self, block: &Block, mine: &BlockCondition, x: &Tensor) -> Result<[Tensor; 3]> {
        let buffer = || self.buffer(self.model.config.width(), self.compute());
        let [q, k, v] = [buffer()?, buffer()?, buffer()?];
        for tile in self.tiles() {
            let parts = block.before(&self.rows_of(x, &tile)?, mine, &self.rope, self.at(&tile))?;
            for (whole, part) in [&q, &k, &v].into_iter().zip(parts) {
                whole.slice_set(&part, 0, tile.start)?;
            }
        }
        Ok([self.to_heads(&q)?, self.to_heads(&k)?, self.to_heads(&v)?])
    }
}
