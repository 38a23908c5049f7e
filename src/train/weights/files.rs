//! Weights, average and moments to and from a checkpoint, which has them whole: how many ranks wrote it, and what they had sharded,
//! cannot be seen from it.

use candle_core::Tensor;
use std::ops::Range;

use super::{UnitState, Weights};
use crate::Result;
use crate::model::{Model, Unit};
use crate::ops::{read, write};
use crate::train::checkpoint::{Checkpoint, Saving};

impl Weights {
    /// Writes weights, average and moments into a checkpoint, which rank 0 gives; what is sharded is handed to it unit by unit.
    ///
    /// A collective: all ranks call it.
    pub fn save(&self, saving: Option<&Saving>) -> Result<()> {
        let values = self.pieces(3, |unit, state| Some(state.value.as_ref().unwrap_or(&unit.value)));
        let average = self.pieces(1, |_, state| state.ema.as_ref());
        let moments = self.pieces(1, |_, state| Some(&state.m)).chain(self.pieces(1, |_, state| Some(&state.v)));
        let Some(saving) = saving else {
            return values.chain(average).chain(moments).try_for_each(|piece| piece.map(drop)); // in rank 0's order
        };
        let (config, shapes) = (self.model.config.to_json(), Model::shapes(&self.model.config));
        saving.transformer(&config, &shapes, values)?;
        if self.ema > 0.0 {
            saving.ema(&config, &shapes, average)?;
        }
        saving.optimizer(&shapes, moments)
    }

    /// Takes weights, average and moments from a checkpoint: each rank its own part.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<()> {
        let shapes = Model::shapes(&self.model.config);
        let transformer = checkpoint.transformer()?;
        transformer.check(&shapes)?;
        self.fill(
            |name| transformer.read_f32(name),
            |unit, state| match &state.value {
                Some(shard) => Some((shard, state.range.clone())),
                None => Some((&unit.value, 0..unit.value.elem_count())),
            },
        )?;
        if self.ema > 0.0 {
            let average = checkpoint.ema()?;
            average.check(&shapes)?;
            self.fill(|name| average.read_f32(name), |_, state| Some((state.ema.as_ref()?, state.range.clone())))?;
        }
        let moments = checkpoint.optimizer(&shapes)?;
        let read = |moment: &str, name: &str| moments.read_f32(&format!("{moment}.{name}"));
        self.fill(|name| read("m", name), |_, state| Some((&state.m, state.range.clone())))?;
        self.fill(|name| read("v", name), |_, state| Some((&state.v, state.range.clone())))
    }

    /// On rank 0 one whole tensor of every unit, nothing on the others; it is sharded from stage `from` on.
    fn pieces<'a>(
        &'a self,
        from: usize,
        tensor: impl Fn(&'a Unit, &'a UnitState) -> Option<&'a Tensor> + 'a,
    ) -> impl Iterator<Item = Result<Vec<f32>>> + 'a {
        let tensors = self.model.units.iter().zip(&self.units);
        tensors.filter_map(move |(unit, state)| Some((state, tensor(unit, state)?))).map(move |(state, tensor)| match (
            self.zero >= from,
            self.world.rank(),
        ) {
            (true, _) => state.shards.collect(tensor),
            (false, 0) => Ok(read::<f32>(tensor)?.to_vec()),
            (false, _) => Ok(vec![]),
        })
    }

    /// Fills one tensor of every unit, given with the part of the unit it holds, from values by parameter name.
    fn fill<'a>(
        &'a self,
        values: impl Fn(&str) -> Result<Vec<f32>>,
        target: impl Fn(&'a Unit, &'a UnitState) -> Option<(&'a Tensor, Range<usize>)>,
    ) -> Result<()> {
        for (unit, state) in self.model.units.iter().zip(&self.units) {
            let Some((target, part)) = target(unit, state) else { continue };
            for entry in &unit.entries {
                let (start, end) = (entry.range.start.max(part.start), entry.range.end.min(part.end));
                if start < end {
                    let values = &values(&entry.name)?[start - entry.range.start..end - entry.range.start];
                    write(target, |flat: &mut [f32]| {
                        flat[start - part.start..end - part.start].copy_from_slice(values)
                    })?;
                }
            }
        }
        Ok(())
    }
}
