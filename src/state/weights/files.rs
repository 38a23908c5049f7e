//! Saves weights, average and moments to a checkpoint and loads them. A checkpoint has them whole: it does not show how
//! many ranks wrote it, nor what they had sharded.

use candle_core::{Device, Tensor};
use std::ops::Range;

use super::TrainState;
use super::moments::Kind;
use crate::files::Tensors;
use crate::model::{Unit, UnitId};
use crate::ops::{read, write};
use crate::state::adapters::AdapterRecord;
use crate::state::checkpoint::{Checkpoint, Saving};
use crate::state::optimizer::blockwise::Moment;
use crate::state::optimizer::{OptimizerKind, muon};
use crate::{Result, bail};

impl TrainState {
    /// Writes weights, average and moments into a checkpoint, which rank 0 gives; what is sharded is handed to it unit
    /// by unit. Of a frozen network these are the adapters', and `record` says what they belong to.
    ///
    /// A collective: all ranks call it.
    pub fn save(&self, saving: Option<&Saving>, record: Option<&AdapterRecord>) -> Result<()> {
        let values = self.pieces(3, |id| {
            let (unit, state) = self.unit(id);
            Ok(Some(state.value.as_ref().unwrap_or(&unit.value).clone()))
        });
        let average = self.pieces(1, |id| self.moments.get(id, Kind::Average));
        let moments = self.pieces(1, |id| self.moment(id, Moment::Mean)).chain(self.seconds());
        let Some(saving) = saving else {
            return values.chain(average).chain(moments).try_for_each(|piece| piece.map(drop)); // in rank 0's order
        };
        let shapes = self.model.trained();
        match record {
            Some(record) => {
                let record = record.to_json();
                saving.adapter(&record, &shapes, values)?;
                if self.ema > 0.0 {
                    saving.adapter_ema(&record, &shapes, average)?;
                }
            }
            None => {
                let config = self.model.config.to_json();
                saving.transformer(&config, &shapes, values)?;
                if self.ema > 0.0 {
                    saving.ema(&config, &shapes, average)?;
                }
            }
        }
        saving.optimizer(self.kind, &shapes, moments)
    }

    /// Takes weights, average and moments from a checkpoint: each rank its own part.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<()> {
        let shapes = self.model.trained();
        let transformer = if self.model.lora.is_some() { checkpoint.adapter()? } else { checkpoint.transformer()? };
        transformer.check(&shapes)?;
        for (unit, state) in self.trained() {
            let (target, part) = match &state.value {
                Some(shard) => (shard, state.range.clone()),
                None => (&unit.value, 0..unit.value.elem_count()),
            };
            write(target, |flat| fill(unit, flat, &part, |name| transformer.read_f32(name)))??;
        }
        self.check_read(transformer.tensors())?;
        if self.ema > 0.0 {
            let average = checkpoint.ema()?;
            average.check(&shapes)?;
            for (unit, state) in self.trained() {
                let mut filled = Ok(());
                self.moments.change(unit.id, Kind::Average, |flat| {
                    filled = fill(unit, flat, &state.range, |name| average.read_f32(name));
                })?;
                filled?;
            }
            self.check_read(average.tensors())?;
        }
        let moments = checkpoint.optimizer(self.kind, &shapes)?;
        let read = |moment: &str, name: &str| moments.read_f32(&format!("{moment}.{name}"));
        for (unit, state) in self.trained() {
            let part = &state.range;
            self.set(unit.id, Moment::Mean, |flat| fill(unit, flat, part, |name| read("m", name)))?;
            if self.kind == OptimizerKind::Muon {
                let second = |flat: &mut [f32]| fill_others(unit, flat, part, |name| read("v", name));
                self.set(unit.id, Moment::Square, second)?;
            } else {
                self.set(unit.id, Moment::Square, |flat| fill(unit, flat, part, |name| read("v", name)))?;
            }
        }
        self.check_read(&moments)
    }

    /// Checks that all ranks have read the same bytes, and that they are those that were saved: each has read what it
    /// holds a part of, and together they have read the file.
    ///
    /// A collective: all ranks call it.
    fn check_read(&self, tensors: &Tensors) -> Result<()> {
        let own: Vec<i64> = tensors.sums().into_iter().map(|sum| sum.map_or(-1, i64::from)).collect();
        let count = own.len();
        let own = Tensor::from_vec(own, count, &Device::Cpu)?;
        let mut read: Vec<Option<(usize, i64)>> = vec![None; count]; // by whom, what
        for (rank, sums) in self.world.all_gather(&own, &vec![vec![count]; self.world.size()])?.iter().enumerate() {
            for (i, sum) in sums.to_vec1::<i64>()?.into_iter().enumerate().filter(|(_, sum)| *sum >= 0) {
                let (first, others) = *read[i].get_or_insert((rank, sum));
                if others != sum {
                    let what = tensors.summed(i);
                    bail!(
                        Environment,
                        "ranks {first} and {rank} have read different bytes of {what}: their machines see different files"
                    )
                }
            }
        }
        let sums: Vec<_> = read.into_iter().map(|sum| sum.map(|(_, sum)| sum as u32)).collect();
        tensors.check_sums(&sums)
    }

    /// On rank 0 one whole tensor of every unit, nothing on the others; it is sharded from stage `from` on.
    fn pieces<'a>(
        &'a self,
        from: usize,
        tensor: impl Fn(UnitId) -> Result<Option<Tensor>> + 'a,
    ) -> impl Iterator<Item = Result<Vec<f32>>> + 'a {
        let tensors = self.trained().filter_map(move |(unit, state)| Some((unit, state, tensor(unit.id).transpose()?)));
        tensors.map(move |(unit, state, tensor)| {
            let whole = match (self.zero >= from, self.world.rank()) {
                (true, _) => state.shards.collect(&tensor?)?,
                (false, 0) => read::<f32>(&tensor?)?.to_vec(),
                (false, _) => tensor.map(|_| vec![])?,
            };
            Ok(if self.world.rank() == 0 { unit.dense(whole) } else { whole })
        })
    }

    /// A moment of this rank's part of a unit, as files have it: in f32. With Muon, the second is of AdamW's parts.
    fn moment(&self, id: UnitId, moment: Moment) -> Result<Option<Tensor>> {
        let words = self.moments.get(id, moment.into())?;
        if self.kind != OptimizerKind::AdamW8 {
            return Ok(words);
        }
        let len = self.unit(id).1.range.len();
        let values = |words: Tensor| {
            let mut values = vec![0.0; len];
            moment.read(&read::<f32>(&words)?, &mut values);
            Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
        };
        words.map(values).transpose()
    }

    /// Lets `fill` set all of a moment of this rank's part of a unit, as files have it.
    fn set(&self, id: UnitId, moment: Moment, fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        let (mut filled, len) = (Ok(()), self.unit(id).1.range.len());
        self.moments.change(id, moment.into(), |words| {
            if self.kind != OptimizerKind::AdamW8 {
                filled = fill(words);
                return;
            }
            let mut values = vec![0.0; len];
            filled = fill(&mut values);
            moment.write(&values, words);
        })?;
        filled
    }

    /// Every unit's second moments, on rank 0: with Muon, those of what is AdamW's.
    fn seconds(&self) -> Box<dyn Iterator<Item = Result<Vec<f32>>> + '_> {
        if self.kind != OptimizerKind::Muon {
            return Box::new(self.pieces(1, |id| self.moment(id, Moment::Square)));
        }
        Box::new(self.trained().filter_map(move |(unit, state)| {
            let matrices = state.matrices.as_ref()?;
            let second = self.moments.get(unit.id, Kind::V).transpose()?;
            let counts: Vec<usize> = (0..self.world.size())
                .map(|rank| matrices.others(unit, rank).iter().map(|part| part.len()).sum())
                .collect();
            Some(second.and_then(|second| match (self.zero >= 1, self.world.rank()) {
                (true, _) => state.shards.collect_of(&second, &counts),
                (false, 0) => Ok(read::<f32>(&second)?.to_vec()),
                (false, _) => Ok(vec![]),
            }))
        }))
    }
}

impl From<Moment> for Kind {
    fn from(moment: Moment) -> Self {
        match moment {
            Moment::Mean => Self::M,
            Moment::Square => Self::V,
        }
    }
}

/// Fills `flat` with what of the `part` of a unit is not Muon's, from values by parameter name.
fn fill_others(
    unit: &Unit,
    flat: &mut [f32],
    part: &Range<usize>,
    values: impl Fn(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let mut at = 0;
    for entry in unit.entries.iter().filter(|entry| !muon::takes(&entry.name, &entry.shape)) {
        let (start, end) = (entry.range.start.max(part.start), entry.range.end.min(part.end));
        if start < end {
            let values = &values(&entry.name)?[start - entry.range.start..end - entry.range.start];
            flat[at..at + values.len()].copy_from_slice(values);
            at += values.len();
        }
    }
    Ok(())
}

/// Fills `flat`, the `part` of a unit, from values by parameter name.
fn fill(unit: &Unit, flat: &mut [f32], part: &Range<usize>, values: impl Fn(&str) -> Result<Vec<f32>>) -> Result<()> {
    for entry in &unit.entries {
        let (start, end) = (entry.range.start.max(part.start), entry.range.end.min(part.end));
        if start < end {
            let values = &values(&entry.name)?[start - entry.range.start..end - entry.range.start];
            flat[start - part.start..end - part.start].copy_from_slice(values);
        }
    }
    Ok(())
}
