//! Runs an optimizer step on what this rank holds: sums gradients over ranks, takes their norm, changes the weights and
//! shares them again.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{TrainState, UnitState, within};
use crate::Result;
use crate::model::{Unit, UnitId};
use crate::ops::{read, write};
use crate::parallel::Reduce;
use crate::state::ema::{ema_decay, follow};
#[cfg(feature = "cuda")]
use crate::state::optimizer::cuda;
use crate::state::optimizer::{OptimizerKind, Shard, clip_coefficient, norm_squared, sgd};

impl TrainState {
    /// Sums the gradients over ranks, after the last micro-batch; from stage 2 on that is done already, as each unit's
    /// was ready.
    pub fn sum_gradients(&self) -> Result<()> {
        for (unit, state) in self.trained() {
            let grad = unit.grad()?;
            match self.zero {
                0 => self.world.all_reduce(grad, Reduce::Sum)?,
                1 => {
                    let share = state.shards.reduce(grad)?;
                    if share.elem_count() > 0 {
                        grad.slice_set(&share, 0, state.range.start)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The norm of all gradients together; they must be summed. `step` counts from 1, as in the metrics.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first tensor whose gradient is not finite, the same on all ranks.
    pub fn gradient_norm(&self, step: u64) -> Result<f64> {
        let own = |unit: &Unit, state: &UnitState| match &state.grad {
            Some(shard) => Ok(shard.clone()),
            None => state.shards.own(unit.grad()?),
        };
        let mut sum = 0.0;
        for (unit, state) in self.trained() {
            sum += norm_squared_of(&own(unit, state)?)?;
        }
        let sums = Tensor::new(&[sum], &Device::Cpu)?;
        self.world.all_reduce(&sums, Reduce::Sum)?;
        let sum = sums.to_vec1::<f64>()?[0];
        if !sum.is_finite()
            && let Some(error) = self.non_finite(step, "the gradient of ", own)?
        {
            return Err(error);
        }
        Ok(sum.sqrt())
    }

    /// Optimizer step number `step`, counted from 0, at learning rate `lr`, with gradients of norm `norm`.
    pub fn update(&self, step: u64, lr: f64, norm: f64) -> Result<()> {
        let scale = self.scale(norm);
        let decay = ema_decay(self.ema, step);
        #[cfg(feature = "cuda")]
        if let Some(units) = self.moments.on_gpu() {
            let mut trained = self.model.units.iter().zip(units).filter(|(unit, _)| !unit.is_frozen());
            return trained.try_for_each(|(unit, numbers)| {
                self.change(unit.id, |state, params, grads| {
                    let shard = cuda::Shard { params, grads, numbers, decay };
                    cuda::update(&self.optimizer.step(step + 1, lr, scale)?, &shard, &state.no_decay)
                })
            });
        }
        self.moments.each(|id, m, v, average| {
            if self.model.unit(id).is_frozen() {
                return Ok(());
            }
            self.change(id, |state, params, grads| {
                if let OptimizerKind::Muon = self.kind {
                    return self.update_by_muon(state, [lr, scale], step, (params, grads), [m, v], (decay, average));
                }
                let grads = read::<f32>(grads)?;
                write(params, |params: &mut [f32]| {
                    let shard = Shard { params, grads: &grads, m, v, average: average.map(|average| (decay, average)) };
                    match self.kind {
                        OptimizerKind::AdamW8 => {
                            self.optimizer.update_in_blocks(step + 1, lr, scale, shard, &state.no_decay)
                        }
                        _ => self.optimizer.update(step + 1, lr, scale, shard, &state.no_decay),
                    }
                })?
            })
        })
    }

    /// A step of Muon on a unit: its matrices over all ranks, the rest by AdamW; then the average follows.
    fn update_by_muon(
        &self,
        state: &UnitState,
        [lr, scale]: [f64; 2],
        step: u64,
        (params, grads): (&Tensor, &Tensor),
        [m, v]: [&mut [f32]; 2],
        (decay, average): (f64, Option<&mut [f32]>),
    ) -> Result<()> {
        let (device, grads) = (params.device().clone(), read::<f32>(grads)?);
        let mut values = read::<f32>(params)?.to_vec(); // other ranks are waited for meanwhile
        if let Some(matrices) = &state.matrices {
            let by_muon = self.muon.step(lr, scale);
            matrices.update(&by_muon, &self.world, self.zero >= 1, (&mut values, &grads, m), &device)?;
        }
        let mut second = v;
        for part in &state.others {
            let (v, rest) = second.split_at_mut(part.len());
            second = rest;
            let no_decay: Vec<_> = state.no_decay.iter().filter_map(|range| within(range, part)).collect();
            let (params, m) = (&mut values[part.clone()], &mut m[part.clone()]);
            let shard = Shard { params, grads: &grads[part.clone()], m, v, average: None };
            self.optimizer.update(step + 1, lr, scale, shard, &no_decay)?;
        }
        if let Some(average) = average {
            let chunks = average.par_chunks_mut(1 << 14).zip(values.par_chunks(1 << 14));
            chunks.for_each(|(average, values)| follow((1.0 - decay) as f32, average, values));
        }
        Ok(write(params, |params: &mut [f32]| params.copy_from_slice(&values))?)
    }

    /// A step of plain gradient descent in AdamW's place: it hides no wrong factor in a gradient.
    pub fn descend(&self, lr: f64, norm: f64) -> Result<()> {
        let scale = self.scale(norm);
        self.model.units.iter().filter(|unit| !unit.is_frozen()).try_for_each(|unit| {
            self.change(unit.id, |_, params, grads| {
                let grads = read::<f32>(grads)?;
                write(params, |params: &mut [f32]| sgd(lr, scale, params, &grads))?
            })
        })
    }

    fn scale(&self, norm: f64) -> f64 {
        clip_coefficient(norm, if self.clip > 0.0 { self.clip } else { f64::INFINITY })
    }

    /// Changes the part of a unit's parameters that this rank updates, by the gradient there; then all ranks have all
    /// of them.
    fn change(&self, id: UnitId, change: impl FnOnce(&UnitState, &Tensor, &Tensor) -> Result<()>) -> Result<()> {
        let (unit, state) = self.unit(id);
        let grads = match &state.grad {
            Some(shard) => shard.clone(),
            None => state.part(unit.grad()?)?,
        };
        match &state.value {
            Some(shard) => {
                if let Some(prefetch) = &self.prefetch {
                    prefetch.forget()?; // of an abandoned step: it is outdated from here on
                }
                change(state, shard, &grads)
            }
            None => {
                change(state, &state.part(&unit.value)?, &grads)?;
                self.share(unit, state)
            }
        }
    }

    /// Gives all ranks every rank's part of a unit's values, where each has changed its own only.
    pub(super) fn share(&self, unit: &Unit, state: &UnitState) -> Result<()> {
        if self.zero >= 1 { state.shards.gather(&state.shards.own(&unit.value)?, &unit.value) } else { Ok(()) }
    }
}

/// The sum of squares of a tensor's elements, on its device.
fn norm_squared_of(values: &Tensor) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if values.device().is_cuda() {
        return cuda::norm_squared(values);
    }
    Ok(norm_squared(&read(values)?))
}
