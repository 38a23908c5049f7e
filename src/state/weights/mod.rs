//! Holds the state that a run carries from step to step (weights, their moving average, moments), and changes it in a
//! step. Which part of it a rank holds depends on ZeRO's stage (arXiv 1910.02054).
//!
//! By stage, what is sharded over all ranks: 1, moments and average; 2, gradients too; 3, parameters too. A rank's part
//! of a unit is a run of its flat buffer, whatever parameters lie there. Sums over ranks have the same bits in every
//! stage.

mod files;
mod moments;
mod muon;
mod prefetch;
mod shards;
mod step;

use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use super::optimizer::blockwise::{BLOCK, words};
use super::optimizer::muon::Muon;
use super::optimizer::{AdamW, OptimizerKind, first_non_finite};
use super::options::StateOptions;
use crate::engine::{ParamHooks, Pass};
use crate::model::{Model, Unit, UnitId};
use crate::ops::bytes::{duplicate, zeros};
use crate::ops::{add_assign, clear, read, release, restore, storage_bytes, write};
use crate::parallel::Communicator;
use crate::{Error, Result};
pub use moments::IN_FLIGHT;
use moments::{Kind, Moments};
use muon::Matrices;
use prefetch::Prefetch;
use shards::Shards;

/// A model in training.
pub struct TrainState {
    /// In stage 3, a unit's values are there only between [`ParamHooks::before_use`] and [`ParamHooks::after_use`].
    pub model: Model,
    units: Vec<UnitState>,
    moments: Moments,
    kind: OptimizerKind,
    optimizer: AdamW,
    muon: Muon,
    /// Gradient norm above which gradients are scaled down; 0: never.
    clip: f64,
    /// The moving average's decay; 0: no average.
    ema: f64,
    /// ZeRO's stage.
    zero: usize,
    world: Arc<dyn Communicator>,
    /// In stage 3 with several ranks, what fetches the next unit.
    prefetch: Option<Prefetch>,
}

/// What this rank holds of a unit besides the model's own tensors.
struct UnitState {
    shards: Shards,
    /// The part of the unit that this rank updates: all of it, or its shard. Moments and average are of this part.
    range: Range<usize>,
    no_decay: Vec<Range<usize>>,
    /// With Muon, the unit's matrices.
    matrices: Option<Matrices>,
    /// With Muon, what of the part is AdamW's, which alone has second moments.
    others: Vec<Range<usize>>,
    /// The shard of the gradient, summed over ranks and the micro-batches so far; from stage 2 on.
    grad: Option<Tensor>,
    /// The shard of the parameters; in stage 3.
    value: Option<Tensor>,
}

impl UnitState {
    /// The part of a whole buffer of the unit that this rank updates: a view.
    fn part(&self, whole: &Tensor) -> Result<Tensor> {
        Ok(whole.narrow(0, self.range.start, self.range.len())?)
    }
}

/// Bytes that a rank holds between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateBytes {
    pub parameters: usize,
    pub gradients: usize,
    pub moments: usize,
    pub average: usize,
}

impl TrainState {
    /// `model` before its first step, held as `options` say over the ranks of `world`, all of which have the same
    /// model.
    ///
    /// # Errors
    /// Moments shall be on disk, and the folder cannot be written to or has no room.
    pub fn new(model: Model, options: &StateOptions, world: Arc<dyn Communicator>) -> Result<Self> {
        Self::loading(model, options, world, |_| Ok(()))
    }

    /// The same of a hollow model ([`Model::adapted_on`]), whose frozen units `load` fills one by one, so that no rank
    /// ever holds the whole network that it is to hold a part of.
    ///
    /// # Errors
    /// Also those of `load`.
    pub fn loading(
        model: Model,
        options: &StateOptions,
        world: Arc<dyn Communicator>,
        load: impl Fn(&Unit) -> Result<()>,
    ) -> Result<Self> {
        let &StateOptions { optimizer: kind, adamw, momentum, clip, ema, moments, zero, shared, .. } = options;
        let block = if kind == OptimizerKind::AdamW8 { BLOCK } else { 1 };
        let shards = |unit: &Unit| Shards::new(unit.value.elem_count(), block, world.clone());
        let range = |unit: &Unit| match zero {
            _ if unit.is_frozen() => 0..0,
            0 => 0..unit.value.elem_count(),
            _ => shards(unit).range(),
        };
        // Candle's `copy` of a view would keep all of its storage.
        let own = |unit: &Unit| duplicate(&unit.value.narrow(0, range(unit).start, range(unit).len())?);
        let device = model.device().clone();
        let matrices = |unit: &Unit| {
            let ranges = |rank| if zero >= 1 { shards(unit).range_of(rank) } else { 0..unit.value.elem_count() };
            let wanted = kind == OptimizerKind::Muon && !unit.is_frozen();
            wanted.then(|| Matrices::new(unit, (0..world.size()).map(ranges).collect()))
        };
        let others = |unit: &Unit| matrices(unit).map_or(vec![], |matrices| matrices.others(unit, world.rank()));
        let held = |unit: &Unit| {
            let n = range(unit).len();
            match kind {
                OptimizerKind::AdamW => [n; 3],
                OptimizerKind::AdamW8 => [words(n), words(n), n],
                OptimizerKind::Muon => [n, others(unit).iter().map(|part| part.len()).sum(), n],
            }
        };
        // A GPU runs AdamW in f32; for the others its host does, and has their moments.
        let home = if kind == OptimizerKind::AdamW { device.clone() } else { Device::Cpu };
        let average = |id| match model.unit(id) {
            unit if unit.is_frozen() => zeros(&[0], DType::F32, &home),
            unit => Ok(own(unit)?.to_device(&home)?),
        };
        let moments = Moments::new(
            model.units.iter().map(|unit| (unit.id, held(unit))).collect(),
            if ema > 0.0 { Some(&average) } else { None },
            moments,
            options.scratch.as_deref(),
            &home,
        )?;
        let state = |unit: &Unit| -> Result<UnitState> {
            if unit.is_frozen() && storage_bytes(&unit.value) == 0 {
                restore(&unit.value)?;
                load(unit)?;
            }
            let (shards, range) = (shards(unit), range(unit));
            let no_decay = unit.entries.iter().filter(|e| !e.decay).filter_map(|e| within(&e.range, &range)).collect();
            let state = UnitState {
                no_decay,
                matrices: matrices(unit),
                others: others(unit),
                grad: match &unit.grad {
                    Some(_) if zero >= 2 => Some(zeros(&[range.len()], DType::F32, &device)?),
                    _ => None,
                },
                value: match zero {
                    3.. if !shared || !unit.is_frozen() => Some(duplicate(&shards.own(&unit.value)?)?),
                    _ => None,
                },
                range,
                shards,
            };
            if let (Some(grad), Some(_)) = (&unit.grad, &state.grad) {
                release(grad)?;
            }
            if state.value.is_some() {
                release(&unit.value)?;
            }
            Ok(state)
        };
        let units = model.units.iter().map(state).collect::<Result<_>>()?;
        let (optimizer, muon) = (AdamW::new(adamw)?, Muon::new(momentum, adamw.weight_decay)?);
        let prefetch = match world.size() {
            2.. if zero >= 3 => Some(Prefetch::new(world.as_ref())?),
            _ => None,
        };
        Ok(Self { model, units, moments, kind, optimizer, muon, clip, ema, zero, world, prefetch })
    }

    /// What this rank holds now.
    pub fn state_bytes(&self) -> StateBytes {
        let sum =
            |bytes: &dyn Fn(&Unit, &UnitState) -> usize| self.each().map(|(unit, state)| bytes(unit, state)).sum();
        let maybe = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, storage_bytes);
        let [moments, average] = self.moments.state_bytes();
        StateBytes {
            parameters: sum(&|unit, state| storage_bytes(&unit.value) + maybe(&unit.vectors) + maybe(&state.value)),
            gradients: sum(&|unit, state| maybe(&unit.grad) + maybe(&state.grad)),
            moments,
            average,
        }
    }

    /// Sets the gradients to zero, for the first micro-batch of a step.
    pub fn zero_gradients(&self) -> Result<()> {
        self.trained().filter_map(|(unit, state)| state.grad.as_ref().or(unit.grad.as_ref())).try_for_each(clear)?;
        Ok(())
    }

    /// Calls `f` with the model's weights replaced by their moving average, if there is one. Meanwhile they are there
    /// as a whole, in stage 3 too. If `f` fails, so does the run, and the weights are not put back.
    ///
    /// A collective: all ranks call it.
    pub fn averaged<R>(&self, f: impl FnOnce(&Model) -> Result<R>) -> Result<R> {
        self.swap()?;
        let result = f(&self.model)?;
        for (unit, state) in self.each() {
            if state.value.is_some() {
                release(&unit.value)?;
            }
        }
        if self.zero < 3 {
            self.swap()?;
        }
        Ok(result)
    }

    /// Lets weights and average change places, each rank in its part; in stage 3, gathers the average.
    fn swap(&self) -> Result<()> {
        for (unit, state) in self.each() {
            if let Some(value) = &state.value {
                restore(&unit.value)?;
                let average = if unit.is_frozen() { None } else { self.moments.get(unit.id, Kind::Average)? };
                let average = average.map(|average| average.to_device(value.device())).transpose()?;
                state.shards.gather(average.as_ref().unwrap_or(value), &unit.value)?;
            } else if unit.is_frozen() {
            } else if let Some(numbers) = self.moments.on_gpu().filter(|_| self.ema > 0.0) {
                let average = &numbers[unit.id.index()][Kind::Average as usize];
                let weights = duplicate(&state.part(&unit.value)?)?;
                if weights.elem_count() > 0 {
                    unit.value.slice_set(average, 0, state.range.start)?;
                    average.slice_set(&weights, 0, 0)?;
                }
                self.share(unit, state)?;
            } else if self.ema > 0.0 {
                write(&state.part(&unit.value)?, |own: &mut [f32]| {
                    self.moments.change(unit.id, Kind::Average, |average| own.swap_with_slice(average))
                })??;
                self.share(unit, state)?;
            }
        }
        Ok(())
    }

    /// Refuses weights that are not finite: saved, they could push the last good checkpoint out.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first such parameter, the same on all ranks.
    pub fn check_finite(&self, step: u64) -> Result<()> {
        let own = |unit: &Unit, state: &UnitState| match &state.value {
            Some(shard) => Ok(shard.clone()),
            None => state.shards.own(&unit.value),
        };
        self.non_finite(step, "", own)?.map_or(Ok(()), Err)
    }

    /// The error about the first element that is not finite in any rank's part of a unit, which `own` gives. The rank
    /// that holds the element tells the others.
    fn non_finite(
        &self,
        step: u64,
        what: &str,
        own: impl Fn(&Unit, &UnitState) -> Result<Tensor>,
    ) -> Result<Option<Error>> {
        let mut first = [f64::INFINITY, 0.0, 0.0]; // unit, element, value
        for (unit, state) in self.trained() {
            let part = own(unit, state)?;
            let part = read::<f32>(&part)?;
            if let Some(i) = first_non_finite(&part) {
                first = [unit.id.index() as f64, (state.shards.range().start + i) as f64, f64::from(part[i])];
                break;
            }
        }
        let firsts = self.world.all_gather(&Tensor::new(&first, &Device::Cpu)?, &vec![vec![3]; self.world.size()])?;
        let firsts = firsts.iter().map(Tensor::to_vec1::<f64>).collect::<candle_core::Result<Vec<_>>>()?;
        // Parts are in rank order, so of several ranks in one unit the lowest has the first element.
        let Some(first) = firsts.iter().min_by(|a, b| a[0].total_cmp(&b[0])) else { return Ok(None) };
        let Some(unit) = self.model.units.get(first[0] as usize) else { return Ok(None) };
        let entry = unit.entries.iter().find(|e| e.range.contains(&(first[1] as usize)));
        let tensor = format!("{what}{}", entry.map_or(unit.name.as_str(), |e| &e.name));
        Ok(Some(Error::NonFinite { step, tensor, value: first[2] }))
    }

    /// A unit, and what this rank holds of it.
    fn unit(&self, id: UnitId) -> (&Unit, &UnitState) {
        (self.model.unit(id), &self.units[id.index()])
    }

    fn each(&self) -> impl Iterator<Item = (&Unit, &UnitState)> {
        self.model.units.iter().zip(&self.units)
    }

    /// The units that are not frozen.
    fn trained(&self) -> impl Iterator<Item = (&Unit, &UnitState)> {
        self.each().filter(|(unit, _)| !unit.is_frozen())
    }
}

impl TrainState {
    /// Stage 3: puts together all parameters of the unit, and begins to fetch those of the unit after it on the
    /// engine's way.
    fn gather(&self, id: UnitId, pass: Pass) -> Result<()> {
        let (unit, state) = self.unit(id);
        let Some(shard) = &state.value else { return Ok(()) };
        let fetched = match &self.prefetch {
            Some(prefetch) => prefetch.take(id)?,
            None => None,
        };
        let parts = match fetched {
            Some(parts) => parts,
            None => state.shards.parts(shard)?,
        };
        restore(&unit.value)?;
        state.shards.fill(&unit.value, &parts)?;
        drop(parts);
        let after = |id| match pass {
            Pass::Forward => self.model.unit_after(id), // the last of them, the head, is also where the way back begins
            Pass::Backward => self.model.unit_before(id),
        };
        let sharded = |id: &UnitId| self.unit(*id).1.value.is_some(); // not what ranks of a process share
        let next = std::iter::successors(after(id), |&id| after(id)).find(sharded);
        if let (Some(prefetch), Some((unit, state))) = (&self.prefetch, next.map(|next| self.unit(next)))
            && let Some(own) = &state.value
        {
            prefetch.start(unit.id, &state.shards, own)?;
        }
        Ok(())
    }
}

impl ParamHooks for TrainState {
    fn before_use(&self, unit: UnitId, pass: Pass) -> Result<()> {
        self.gather(unit, pass)?;
        let unit = self.model.unit(unit);
        if pass == Pass::Backward
            && let Some(grad) = &unit.grad
        {
            restore(grad)?; // zeros, where it was released
        }
        Ok(())
    }

    fn after_use(&self, unit: UnitId, pass: Pass) -> Result<()> {
        let (unit, state) = self.unit(unit);
        if let (Pass::Backward, Some(grad), Some(shard)) = (pass, &unit.grad, &state.grad) {
            let share = state.shards.reduce(grad)?;
            if share.elem_count() > 0 {
                add_assign(shard, &share)?;
            }
            release(grad)?;
        }
        if state.value.is_some() {
            release(&unit.value)?;
        }
        Ok(())
    }
}

/// The part of `range` that lies in `part`, counted from there.
fn within(range: &Range<usize>, part: &Range<usize>) -> Option<Range<usize>> {
    let (start, end) = (range.start.max(part.start), range.end.min(part.end));
    (start < end).then(|| start - part.start..end - part.start)
}
