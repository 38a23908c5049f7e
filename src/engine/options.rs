//! Makes an engine for a model and clips of one shape, with what it may be given: a stash, a meter, hooks.

use parking_lot::Mutex;
use std::sync::{Arc, Once};

use super::flops::PerRow;
use super::heads::HeadGroup;
use super::{Engine, ParamHooks, Stash, check_on_gpu, precision, tile_rows};
use crate::model::{Model, TimeGroups};
use crate::observe::meter::{Phase, StepMeter};
use crate::ops::{Hardware, Rope};
use crate::parallel::{Sequence, is_first};
use crate::{Result, bail};

/// Base of the rotary frequencies, Wan's.
const THETA: f64 = 10_000.0;

impl<'a> Engine<'a> {
    /// `model` on `batch` clips of `grid` (time, height, width) tokens, split over the ranks of `sequence`; `tile` rows
    /// at a time (0: [`tile_rows`]). Fails if there are more ranks than tokens, or the grid is one for more heads.
    pub fn new(model: &'a Model, sequence: &Sequence, grid: [usize; 3], batch: usize, tile: usize) -> Result<Self> {
        if batch == 0 {
            bail!(Shape, "a batch of no clips")
        }
        let config = &model.config;
        let groups = HeadGroup::split(sequence, grid.iter().product(), config.num_attention_heads, 1)?;
        let on = if model.device().is_cpu() { Hardware::Cpu } else { Hardware::Cuda };
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
}
