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

pub mod precision;
pub mod stash;
mod tile;

use candle_core::{DType, Device, Tensor};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::{Arc, Once};
use std::time::Duration;

use crate::model::{Conditioning, Model, RowGroups, TimeGroups};
use crate::observe::meter::{Phase, Section, StepMeter};
use crate::ops::{Hardware, Rope, Rows, Tape, bytes};
use crate::parallel::{Sequence, is_first};
use crate::{Result, bail};
use flops::PerRow;
use heads::HeadGroup;
pub use hooks::{ParamHooks, Pass};
pub use stash::Stash;
use stash::{Attention, Residuals, Shapes};
pub(crate) use tile::check_on_gpu;
pub use tile::tile_rows;

/// Base of the rotary frequencies, Wan's.
const THETA: f64 = 10_000.0;

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

impl<'a> Engine<'a> {
    /// `model` on `batch` clips of `grid` (time, height, width) tokens, split over the ranks of `sequence`; `tile` rows
    /// at a time (0: [`tile_rows`]). Fails if there are more ranks than tokens, or the grid is one for more heads.
    pub fn new(model: &'a Model, sequence: &Sequence, grid: [usize; 3], batch: usize, tile: usize) -> Result<Self> {
        if batch == 0 {
            bail!(Shape, "a batch of no clips")
        }
        let config = &model.config;
        let groups = HeadGroup::split(sequence, grid.iter().product(), config.num_attention_heads, 1)?;
        let on = hardware(model.device());
        let tile = tile_rows(tile, config.ffn_dim, on);
        if on == Hardware::Cuda {
            let rows = batch * groups[0].attention.local_tokens().len();
            precision::check_on_gpu(model.bf16, config.attention_head_dim, groups[0].attention.group_tokens())?;
            check_on_gpu(tile.min(rows), config.widest_row())?;
        }
        if grid.iter().any(|&positions| positions > config.rope_max_seq_len) && is_first() {
            static TOLD: Once = Once::new();
            let most = config.rope_max_seq_len;
            TOLD.call_once(|| {
                tracing::info!(
                    "the clip's {grid:?} tokens (frames, height, width) go beyond rope_max_seq_len = {most}: angles of further \
                     positions are computed by the same formula"
                )
            });
        }
        let rope = Rope::new(grid, groups[0].attention.local_tokens().start, config.attention_head_dim, THETA);
        Ok(Self {
            model,
            sequence: sequence.clone(),
            groups,
            rope,
            grid,
            batch,
            times: None,
            tile,
            stash: Arc::default(),
            meter: Arc::default(),
            per_row: PerRow::new(model),
            hooks: None,
            on_phase: None,
        })
    }

    /// The same, attention going over the heads in `groups` groups: less memory, the same bits, and a block's `before`
    /// once a group.
    ///
    /// # Errors
    /// If a group would have fewer heads than a Ulysses group has ranks.
    pub fn in_head_groups(self, groups: usize) -> Result<Self> {
        let groups = HeadGroup::split(&self.sequence, self.grid.iter().product(), self.heads(), groups)?;
        let meter = self.meter.clone();
        Ok(Self { groups, ..self }.with_meter(meter))
    }

    /// The same engine, for samples whose tokens have different times: the conditioning's timesteps are those of each
    /// group of each sample. Tiles end where the time changes.
    ///
    /// # Errors
    /// Those of [`TimeGroups::of_rows`].
    pub fn with_time_groups(self, groups: &TimeGroups) -> Result<Self> {
        let times = groups.of_rows(self.batch, self.grid.iter().product(), self.local_tokens())?;
        Ok(Self { times: Some(Arc::new(times)), ..self })
    }

    /// The same engine with this stash, in place of one in memory. Engines that run one after another may share it, so
    /// that clips of several shapes use one scratch file. The lock is that of the crate parking_lot.
    pub fn with_stash(self, stash: Arc<Mutex<Stash>>) -> Self {
        Self { stash, ..self }
    }

    /// The same, called last, without attention's arithmetic: a step holds, sends and stashes the same tensors, but
    /// their values mean nothing. For measuring the memory of a long step in a short time.
    pub fn rehearsing(mut self) -> Self {
        for group in &mut self.groups {
            group.attention = group.attention.clone().rehearsing();
        }
        self
    }

    /// The same engine, which updates `meter`, and skips what is left of a step when `meter` says stop.
    pub fn with_meter(mut self, meter: Arc<StepMeter>) -> Self {
        for group in &mut self.groups {
            group.attention = group.attention.clone().metered(meter.clone());
        }
        Self { meter, ..self }
    }

    /// The same engine, which calls `hooks` before and after it uses a unit. Without hooks, all units must be there all
    /// the time.
    pub fn with_hooks(self, hooks: &'a dyn ParamHooks) -> Self {
        Self { hooks: Some(hooks), ..self }
    }

    /// The same engine, which calls `on_phase` with each phase of a step as it begins.
    pub fn on_phase(self, on_phase: &'a dyn Fn(Phase)) -> Self {
        Self { on_phase: Some(on_phase), ..self }
    }

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

    /// The network's outputs, tile by tile: `take` gets each run of rows and its output `[n, pt ph pw C]`.
    pub fn predict(
        &self,
        conditioning: &Conditioning,
        source: &dyn Source,
        mut take: impl FnMut(Range<usize>, Tensor) -> Result<()>,
    ) -> Result<()> {
        let (condition, x) = self.embed(conditioning, source)?;
        let x = self.forward(&condition, x, None)?;
        self.enter(Phase::Head);
        self.with_unit(self.model.head.unit, Pass::Forward, || {
            let head = self.model.head.begin(&condition)?;
            self.each_tile(self.per_row.head, |tile| {
                let output =
                    self.model.head.forward(&Tape::off(), &self.rows_of(&x, &tile)?, &head, self.sample_rows(&tile))?;
                take(tile, output.to_device(&Device::Cpu)?)
            })
        })
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

    /// How long this rank has spent in attention so far, forward and backward, without its all-to-alls: all the rest of
    /// a step grows with the number of tokens only.
    pub fn attention_time(&self) -> Duration {
        let spent = self.meter.spent();
        spent.of(Section::Attention) + spent.of(Section::AttentionBackward)
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
            for run in self.runs() {
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

    /// Runs of rows that tiles may span: all, or those of one time.
    fn runs(&self) -> Vec<Range<usize>> {
        match &self.times {
            Some(times) => times.runs().collect(),
            None => std::iter::once(0..self.rows()).collect(),
        }
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

fn hardware(device: &Device) -> Hardware {
    if device.is_cpu() { Hardware::Cpu } else { Hardware::Cuda }
}
