//! Shards a unit's flat buffer over all ranks, with the collectives that sum, gather and collect it.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::ops::read;
use crate::parallel::{Communicator, Split};

/// The parts of one unit: whole blocks of its elements, but for the last.
pub(super) struct Shards {
    elements: usize,
    /// Elements of a block.
    block: usize,
    /// Of blocks.
    split: Split,
    world: Arc<dyn Communicator>,
}

impl Shards {
    pub fn new(elements: usize, block: usize, world: Arc<dyn Communicator>) -> Self {
        Self { elements, block, split: Split::new(elements.div_ceil(block), world.size()), world }
    }

    /// The same parts, over another communicator of the same ranks.
    pub fn over(&self, world: Arc<dyn Communicator>) -> Self {
        Self { world, ..*self }
    }

    /// This rank's part.
    pub fn range(&self) -> Range<usize> {
        self.range_of(self.world.rank())
    }

    /// The part of rank `rank`.
    pub fn range_of(&self, rank: usize) -> Range<usize> {
        let blocks = self.split.range(rank);
        (blocks.start * self.block).min(self.elements)..(blocks.end * self.block).min(self.elements)
    }

    /// This rank's part of a whole buffer: a view.
    pub fn own(&self, whole: &Tensor) -> Result<Tensor> {
        let range = self.range();
        Ok(whole.narrow(0, range.start, range.len())?)
    }

    /// Fills `whole` with every rank's `shard`, which may be its part of `whole`.
    pub fn gather(&self, shard: &Tensor, whole: &Tensor) -> Result<()> {
        self.fill(whole, &self.parts(shard)?)
    }

    /// Every rank's `shard`.
    pub fn parts(&self, shard: &Tensor) -> Result<Vec<Tensor>> {
        self.world.all_gather(shard, &self.shapes())
    }

    /// Fills `whole` with all its parts.
    pub fn fill(&self, whole: &Tensor, parts: &[Tensor]) -> Result<()> {
        for (rank, part) in parts.iter().enumerate().filter(|(_, part)| part.elem_count() > 0) {
            whole.slice_set(part, 0, self.range_of(rank).start)?;
        }
        Ok(())
    }

    /// This rank's part of the sum of all ranks' `whole`, which it has the same bits of as
    /// [`Communicator::all_reduce`].
    pub fn reduce(&self, whole: &Tensor) -> Result<Tensor> {
        self.world.reduce_scatter(whole, &self.counts())
    }

    /// All ranks' shards one after another on rank 0, nothing on the others.
    pub fn collect(&self, shard: &Tensor) -> Result<Vec<f32>> {
        self.collect_of(shard, &self.counts())
    }

    /// The same of tensors of which rank r has `counts[r]` elements.
    pub fn collect_of(&self, shard: &Tensor, counts: &[usize]) -> Result<Vec<f32>> {
        let nothing = || Tensor::zeros(0, DType::F32, &Device::Cpu);
        // The receiver may hold the very tensor that is sent, and this one is written again in the next step.
        let mut send = vec![shard.copy()?];
        for _ in 1..self.split.parts {
            send.push(nothing()?);
        }
        let shapes = if self.world.rank() == 0 {
            counts.iter().map(|&n| vec![n]).collect()
        } else {
            vec![vec![0]; self.split.parts]
        };
        let parts = self.world.all_to_all(send, &shapes)?;
        let mut whole = Vec::with_capacity(parts.iter().map(Tensor::elem_count).sum());
        for part in &parts {
            whole.extend_from_slice(&read::<f32>(part)?);
        }
        Ok(whole)
    }

    /// Elements of each rank's part.
    fn counts(&self) -> Vec<usize> {
        (0..self.split.parts).map(|rank| self.range_of(rank).len()).collect()
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        self.counts().into_iter().map(|n| vec![n]).collect()
    }
}
