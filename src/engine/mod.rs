//! The engine runs a model forward and backward over the ranks of a sequence, alternating token-local tiles and
//! attention.
//!
//! ```text
//! embed | before_0 | ATTEND | after_0 | before_1 | ATTEND | after_1 | ... | head + loss
//! ```
//!
//! Token-local pieces run tile by tile and keep no intermediate: backward recomputes a tile and differentiates it there
//! and then. Between forward and backward only each block's input, attention output and row statistic are remembered,
//! in the [`Stash`]; in memory or in a scratch file. Where the rows of a clip come from and what the loss is are the
//! caller's: [`Source`] and [`Objective`]. The engine itself sees no file; gradients are left in the model's units,
//! summed over this rank's tokens only.

mod backward;
mod flops;
mod forward;
pub(crate) mod heads;
mod hooks;
mod options;
pub mod precision;
mod predict;
pub mod stash;
mod tile;

use candle_core::{DType, Device, Tensor};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::model::{Conditioning, Model, RowGroups};
use crate::observe::meter::{Phase, Section, StepMeter};
use crate::ops::{Rope, Rows, bytes};
use crate::parallel::Sequence;
use flops::PerRow;
use heads::HeadGroup;
pub use hooks::{ParamHooks, Pass};
pub use stash::Stash;
use stash::{Attention, Residuals, Shapes};
pub(crate) use tile::check_on_gpu;
pub use tile::tile_rows;

/// Where the network's input comes from. Rows are this rank's tokens of the flattened `[B, local tokens]`.
pub trait Source {
    /// Patches of `rows` in (C, pt, ph, pw) order: `[n, C pt ph pw]`, in the model's dtype, on the CPU or where the
    /// model is.
    fn input(&self, rows: Range<usize>) -> Result<Tensor>;
}

/// A source with a loss.
pub trait Objective: Source {
    /// For the network's output `[n, pt ph pw C]` on `rows`, which is where the model is: this tile's share of the
    /// loss, and the gradient of the loss with respect to the output, there or on the CPU. Shares of all tiles and
    /// ranks add up to the loss.
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)>;
}

/// A model on clips of one shape, over the ranks of a sequence.
pub struct Engine<'a> {
    model: &'a Model,
    sequence: Sequence,
    groups: Vec<HeadGroup>,
    rope: Rope,
    grid: [usize; 3],
    /// Clips B.
    batch: usize,
    /// Which of its sample's times each row has, where there are several.
    times: Option<Arc<RowGroups>>,
    /// Rows of a tile.
    tile: usize,
    meter: Arc<StepMeter>,
    /// Operations of a row in each piece.
    per_row: PerRow,
    stash: Arc<Mutex<Stash>>,
    hooks: Option<&'a dyn ParamHooks>,
    /// Called at the start of each phase.
    on_phase: Option<&'a dyn Fn(Phase)>,
}

impl Engine<'_> {
    fn enter(&self, phase: Phase) {
        self.meter.enter(phase);
        if let Some(on_phase) = self.on_phase {
            on_phase(phase);
        }
    }

    /// The clip's tokens that this rank holds.
    pub fn local_tokens(&self) -> Range<usize> {
        self.groups[0].attention.local_tokens()
    }

    /// Forward and backward: returns this rank's share of the loss and adds this rank's share of every parameter's
    /// gradient.
    pub fn loss_and_gradients(&self, conditioning: &Conditioning, objective: &dyn Objective) -> Result<f64> {
        let mut stash = self.stash.lock();
        stash.begin(self.model.blocks.len(), &self.shapes())?;
        let (condition, x) = self.embed(conditioning, objective)?;
        let x = self.forward(&condition, x, Some(&mut stash))?;
        self.backward(&condition, objective, x, &mut stash)
    }

    /// What each block puts into the stash.
    fn shapes(&self) -> Shapes {
        let heads = self.groups.iter().map(|group| group.attention.local_heads()).sum();
        let lse = [self.batch, heads, self.groups[0].attention.group_tokens()];
        Shapes::new(self.rows(), self.model.config.width(), lse, self.dtype(), self.compute())
    }

    /// Does `work` on this rank's rows, tile after tile, unless the rank is to stop: its time is that of the phase, and
    /// a row is so many operations.
    fn each_tile(&self, operations: u64, mut work: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        self.meter.compute(|| {
            // Runs of rows that tiles may span: all, or those of one time.
            let runs: Vec<_> = match &self.times {
                Some(times) => times.runs().collect(),
                None => std::iter::once(0..self.rows()).collect(),
            };
            for run in runs {
                for start in run.clone().step_by(self.tile) {
                    if self.meter.stops() {
                        return Ok(());
                    }
                    let tile = start..(start + self.tile).min(run.end);
                    let count = tile.len() as u64;
                    work(tile)?;
                    self.meter.add(count * operations);
                }
            }
            Ok(())
        })
    }

    /// This rank's rows: clips times local tokens.
    fn rows(&self) -> usize {
        self.batch * self.local_tokens().len()
    }

    /// Which samples a tile's rows belong to.
    fn sample_rows(&self, tile: &Range<usize>) -> Rows {
        Rows { start: tile.start, tokens: self.local_tokens().len() }
    }

    /// The clip's token of each row of a tile.
    fn tokens_of(&self, tile: &Range<usize>) -> Vec<usize> {
        let tokens = self.local_tokens();
        tile.clone().map(|row| tokens.start + row % tokens.len()).collect()
    }

    /// The tile's rows of `x`: a view.
    fn rows_of(&self, x: &Tensor, tile: &Range<usize>) -> Result<Tensor> {
        Ok(x.narrow(0, tile.start, tile.len())?)
    }

    /// A buffer `[rows, width]`.
    fn buffer(&self, width: usize, dtype: DType) -> Result<Tensor> {
        bytes::zeros(&[self.rows(), width], dtype, self.device())
    }

    /// Where the model is, and the tensors of a step.
    fn device(&self) -> &Device {
        self.model.device()
    }

    /// A tile's input, where the model is.
    fn input(&self, source: &dyn Source, tile: &Range<usize>) -> Result<Tensor> {
        Ok(source.input(tile.clone())?.to_device(self.device())?)
    }

    /// The model's dtype, of the residual stream.
    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// The dtype attention computes in.
    fn compute(&self) -> DType {
        if self.model.bf16 { DType::BF16 } else { self.dtype() }
    }

    fn heads(&self) -> usize {
        self.model.config.num_attention_heads
    }

    /// The scale of attention's logits.
    fn scale(&self) -> f64 {
        (self.model.config.attention_head_dim as f64).powf(-0.5)
    }

    /// `[rows, width]` as `[B, local S, width / each, each]`.
    fn by_tokens(&self, x: &Tensor, each: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        Ok(x.reshape((self.batch, rows / self.batch, width / each, each))?)
    }

    /// `[B, my heads, S, d]` of a group back to its columns `[rows, heads d]` (S: my Ulysses group's tokens).
    fn to_rows(&self, x: &Tensor, group: &HeadGroup) -> Result<Tensor> {
        let x = self.meter.during(Section::Exchange, || group.attention.to_tokens(x))?; // [B, local S, heads, d]
        let (b, tokens, heads, d) = x.dims4()?;
        Ok(x.reshape((b * tokens, heads * d))?)
    }
}
