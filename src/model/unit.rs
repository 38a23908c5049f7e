//! [`Unit`]: one flat buffer of parameters and one of gradients, at once the optimizer's range, the collective's
//! message and, sharded, the ZeRO shard.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use super::{Init, UnitSpec};
use crate::ops::{Linear, Param};
use crate::rng::{Key, Purpose};
use crate::{Error, Result};

/// Bytes whose multiples parameters begin at on a GPU.
const ALIGNMENT: usize = 64;

/// Names a unit of a model, which hands it out: who keeps something for each unit looks it up by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitId(usize);

impl UnitId {
    /// The unit's place among those of its model, in the order in which a forward pass uses them.
    pub fn index(self) -> usize {
        self.0
    }
}

/// The parameters of the embedding, of one block or of the head.
pub struct Unit {
    pub id: UnitId,
    pub name: String,
    /// All parameters, flat, in the order of `entries`, which say where each lies.
    pub value: Tensor, // [n]
    /// Their gradients.
    pub grad: Tensor, // [n]
    pub entries: Vec<Entry>,
}

/// Where one parameter lies in its unit.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl Unit {
    /// A unit of zeros, the `index`-th of its model, on this device. On a GPU every parameter begins at a multiple of
    /// 64 bytes, as products are fast then; what lies between two is zero and stays so, and no file has it.
    pub fn zeros(index: usize, spec: &UnitSpec, dtype: DType, device: &Device) -> Result<Self> {
        let align = if device.is_cpu() { 1 } else { ALIGNMENT / dtype.size_in_bytes() };
        let mut entries = vec![];
        let mut at = 0;
        for p in &spec.params {
            let n = p.shape.iter().product::<usize>();
            entries.push(Entry { name: p.name.clone(), shape: p.shape.clone(), range: at..at + n, decay: p.decay });
            at = (at + n).next_multiple_of(align);
        }
        let zeros = || Tensor::zeros(at, dtype, device);
        Ok(Self { id: UnitId(index), name: spec.name.clone(), value: zeros()?, grad: zeros()?, entries })
    }

    /// How many parameters there are, what lies between them not counted.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.range.len()).sum()
    }

    /// A flat buffer of the unit's as files have it: parameter after parameter, with nothing between.
    pub fn dense(&self, mut flat: Vec<f32>) -> Vec<f32> {
        let mut end = 0;
        for entry in &self.entries {
            if entry.range.start != end {
                flat.copy_within(entry.range.clone(), end);
            }
            end += entry.range.len();
        }
        flat.truncate(end);
        flat
    }

    /// Draws every parameter's initial values from (seed, its name).
    pub fn init(&self, spec: &UnitSpec, seed: u64) -> Result<()> {
        for (entry, param) in self.entries.iter().zip(&spec.params) {
            let key = Key { seed, purpose: Purpose::Init, step: 0, sample: hash(&entry.name) };
            let mut stream = key.stream(0);
            let values: Vec<f32> = match param.init {
                Init::Zeros => vec![0.0; entry.range.len()],
                Init::Ones => vec![1.0; entry.range.len()],
                Init::Normal(std) => {
                    let mut values = vec![0.0; entry.range.len()];
                    stream.fill_normal(&mut values);
                    values.iter_mut().for_each(|v| *v *= std as f32);
                    values
                }
                Init::Xavier => {
                    let (out, inner) = (entry.shape[0], entry.shape[1..].iter().product::<usize>());
                    let bound = (6.0 / (out + inner) as f64).sqrt();
                    entry.range.clone().map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect()
                }
            };
            let values = Tensor::from_vec(values, entry.range.len(), self.value.device())?;
            self.value.slice_set(&values.to_dtype(self.value.dtype())?, 0, entry.range.start)?;
        }
        Ok(())
    }

    /// The parameter of this name, viewed in its shape.
    pub fn param(&self, name: &str) -> Result<Param> {
        let entry = self.entries.iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| Error::Shape(format!("unit {} has no parameter {name}", self.name)))?;
        let view =
            |flat: &Tensor| flat.narrow(0, entry.range.start, entry.range.len())?.reshape(entry.shape.as_slice());
        Ok(Param { name: name.into(), value: view(&self.value)?, grad: view(&self.grad)? })
    }

    /// The linear layer of this name.
    pub fn linear(&self, name: &str, bf16: bool) -> Result<Linear> {
        let weight = self.param(&format!("{name}.weight"))?;
        Ok(Linear::new(weight, self.param(&format!("{name}.bias"))?, bf16))
    }
}

/// FNV-1a: a stable hash of a name, so that a parameter's initial values depend on no order.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_nothing_between_parameters() {
        let entry = |range: Range<usize>| Entry { name: String::new(), shape: vec![range.len()], range, decay: true };
        let flat = || Tensor::arange(0f32, 35.0, &Device::Cpu).unwrap();
        let entries = vec![entry(0..3), entry(16..18), entry(32..35)];
        let unit = Unit { id: UnitId(0), name: String::new(), value: flat(), grad: flat(), entries };
        assert_eq!(unit.dense(unit.value.to_vec1().unwrap()), [0.0, 1.0, 2.0, 16.0, 17.0, 32.0, 33.0, 34.0]);
        assert_eq!(unit.count(), 8);
    }
}
