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
        let kind = |kind| self.pieces(1, move |id| self.moments.get(id, kind));
        let average = kind(Kind::Average);
        let moments = kind(Kind::M).chain(kind(Kind::V));
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
        saving.optimizer(&shapes, moments)
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
            self.fill(Kind::Average, |name| average.read_f32(name))?;
            self.check_read(average.tensors())?;
        }
        let moments = checkpoint.optimizer(&shapes)?;
        let read = |moment: &str, name: &str| moments.read_f32(&format!("{moment}.{name}"));
        self.fill(Kind::M, |name| read("m", name))?;
        self.fill(Kind::V, |name| read("v", name))?;
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

    /// Fills one kind of every unit's values by parameter name.
    fn fill(&self, kind: Kind, values: impl Fn(&str) -> Result<Vec<f32>>) -> Result<()> {
        for (unit, state) in self.trained() {
            let mut filled = Ok(());
            self.moments.change(unit.id, kind, |flat| filled = fill(unit, flat, &state.range, &values))?;
            filled?;
        }
        Ok(())
    }
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
