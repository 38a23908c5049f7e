//! What a run carries from step to step: weights, their moving average, AdamW's moments; and how a step changes them.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use super::checkpoint::{Checkpoint, Saving};
use super::ema::ema_decay;
use super::optimizer::{AdamW, Shard, clip_coefficient, first_non_finite, norm_squared};
use crate::config::Train;
use crate::model::{Model, Unit};
use crate::ops::{read, write};
use crate::{Error, Result};

/// A model in training.
pub struct Weights {
    pub model: Model,
    units: Vec<UnitState>,
    optimizer: AdamW,
    /// Gradient norm above which gradients are scaled down; 0: never.
    clip: f64,
    /// The moving average's decay; 0: no average.
    ema: f64,
}

/// A parameter's name, shape and values.
type Named = (String, Vec<usize>, Vec<f32>);

/// A unit's moments and average, flat like the unit.
struct UnitState {
    m: Tensor,
    v: Tensor,
    ema: Option<Tensor>,
    no_decay: Vec<Range<usize>>,
}

impl Weights {
    /// `model` before its first step.
    pub fn new(model: Model, config: &Train) -> Result<Self> {
        let state = |unit: &Unit| -> Result<UnitState> {
            let zeros = || Tensor::zeros(unit.value.shape(), DType::F32, &Device::Cpu);
            let no_decay = unit.entries.iter().filter(|e| !e.decay).map(|e| e.range.clone()).collect();
            let ema = if config.ema > 0.0 { Some(unit.value.copy()?) } else { None };
            Ok(UnitState { m: zeros()?, v: zeros()?, ema, no_decay })
        };
        let units = model.units.iter().map(state).collect::<Result<_>>()?;
        Ok(Self { model, units, optimizer: AdamW::new(config)?, clip: config.clip, ema: config.ema })
    }

    /// The norm of all gradients together; they must already be summed over ranks. `step` counts from 1, as in the metrics.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first tensor whose gradient is not finite.
    pub fn gradient_norm(&self, step: u64) -> Result<f64> {
        let mut sum = 0.0;
        for unit in &self.model.units {
            sum += norm_squared(&read(&unit.grad)?);
        }
        if !sum.is_finite() {
            for unit in &self.model.units {
                let grad = read(&unit.grad)?;
                if let Some(i) = first_non_finite(&grad) {
                    return Err(non_finite(step, "the gradient of ", unit, i, grad[i]));
                }
            }
        }
        Ok(sum.sqrt())
    }

    /// Optimizer step number `step`, counted from 0, at learning rate `lr`, with gradients of norm `norm`.
    pub fn update(&self, step: u64, lr: f64, norm: f64) -> Result<()> {
        let scale = clip_coefficient(norm, if self.clip > 0.0 { self.clip } else { f64::INFINITY });
        for (unit, state) in self.model.units.iter().zip(&self.units) {
            let grads = read::<f32>(&unit.grad)?;
            write(&unit.value, |params: &mut [f32]| {
                write(&state.m, |m: &mut [f32]| {
                    write(&state.v, |v: &mut [f32]| {
                        let mut update = |average: Option<(f64, &mut [f32])>| {
                            let shard = Shard { params, grads: &grads, m, v, average };
                            self.optimizer.update(step + 1, lr, scale, shard, &state.no_decay)
                        };
                        match &state.ema {
                            Some(ema) => write(ema, |ema: &mut [f32]| update(Some((ema_decay(self.ema, step), ema))))?,
                            None => update(None),
                        }
                    })
                })
            })????;
        }
        Ok(())
    }

    /// Calls `f` with the model's weights replaced by their moving average, if there is one.
    pub fn averaged<R>(&self, f: impl FnOnce(&Model) -> Result<R>) -> Result<R> {
        self.swap()?;
        let result = f(&self.model);
        self.swap()?;
        result
    }

    fn swap(&self) -> Result<()> {
        for (unit, state) in self.model.units.iter().zip(&self.units) {
            if let Some(ema) = &state.ema {
                write(&unit.value, |value: &mut [f32]| write(ema, |ema: &mut [f32]| value.swap_with_slice(ema)))??;
            }
        }
        Ok(())
    }

    /// Refuses weights that are not finite: saved, they could push the last good checkpoint out.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first such parameter.
    pub fn check_finite(&self, step: u64) -> Result<()> {
        for unit in &self.model.units {
            let values = read::<f32>(&unit.value)?;
            if let Some(i) = first_non_finite(&values) {
                return Err(non_finite(step, "", unit, i, values[i]));
            }
        }
        Ok(())
    }

    /// Writes weights, average and moments into a checkpoint.
    pub fn save(&self, saving: &Saving) -> Result<()> {
        let config = self.model.config.to_json();
        saving.transformer(&config, self.named("", |unit, _| &unit.value)?)?;
        if self.ema > 0.0 {
            saving.ema(&config, self.named("", |unit, state| state.ema.as_ref().unwrap_or(&unit.value))?)?;
        }
        let mut moments = self.named("m.", |_, state| &state.m)?;
        moments.extend(self.named("v.", |_, state| &state.v)?);
        saving.optimizer(moments)
    }

    /// Takes weights, average and moments from a checkpoint.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<()> {
        let shapes = Model::shapes(&self.model.config);
        let transformer = checkpoint.transformer()?;
        transformer.check(&shapes)?;
        self.model.set(|name| transformer.read_f32(name))?;
        if self.ema > 0.0 {
            let average = checkpoint.ema()?;
            average.check(&shapes)?;
            self.fill(|name| average.read_f32(name), |state| state.ema.as_ref())?;
        }
        let moments = checkpoint.optimizer(&shapes)?;
        self.fill(|name| moments.read_f32(&format!("m.{name}")), |state| Some(&state.m))?;
        self.fill(|name| moments.read_f32(&format!("v.{name}")), |state| Some(&state.v))
    }

    /// Fills one tensor of every unit's state from values by parameter name.
    fn fill(
        &self,
        mut values: impl FnMut(&str) -> Result<Vec<f32>>,
        target: impl Fn(&UnitState) -> Option<&Tensor>,
    ) -> Result<()> {
        for (unit, state) in self.model.units.iter().zip(&self.units) {
            let Some(target) = target(state) else { continue };
            for entry in &unit.entries {
                let values = values(&entry.name)?;
                write(target, |flat: &mut [f32]| flat[entry.range.clone()].copy_from_slice(&values))?;
            }
        }
        Ok(())
    }

    /// (prefix + name, shape, values) of one tensor of every unit.
    fn named<'a>(&'a self, prefix: &str, tensor: impl Fn(&'a Unit, &'a UnitState) -> &'a Tensor) -> Result<Vec<Named>> {
        let mut named = vec![];
        for (unit, state) in self.model.units.iter().zip(&self.units) {
            let flat = read::<f32>(tensor(unit, state))?;
            for e in &unit.entries {
                named.push((format!("{prefix}{}", e.name), e.shape.clone(), flat[e.range.clone()].to_vec()));
            }
        }
        Ok(named)
    }
}

/// The error about element `i` of a unit, by the parameter it belongs to.
fn non_finite(step: u64, what: &str, unit: &Unit, i: usize, value: f32) -> Error {
    let entry = unit.entries.iter().find(|e| e.range.contains(&i));
    let tensor = format!("{what}{}", entry.map_or(unit.name.as_str(), |e| &e.name));
    Error::NonFinite { step, tensor, value: f64::from(value) }
}
