//! [`Unit`]: one flat buffer of parameters and one of gradients, at once the optimizer's range, the collective's
//! message and, sharded, the ZeRO shard.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use super::{Init, UnitSpec};
use crate::ops::bytes::zeros;
use crate::ops::{Linear, Param, Tape, cast};
use crate::rng::{Key, Purpose};
use crate::{Error, Result, bail};

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

/// The parameters of the embedding, of one block or of the head, or the adapters of one of these.
pub struct Unit {
    pub id: UnitId,
    pub name: String,
    /// All parameters, flat, in the order of `entries`, which say where each lies.
    pub value: Tensor, // [n]
    /// Of a frozen unit whose matrices are bf16, the parameters that are none, in the model's dtype.
    pub vectors: Option<Tensor>,
    /// Their gradients; none if they are frozen.
    pub grad: Option<Tensor>, // [n]
    pub entries: Vec<Entry>,
    /// The unit of its layers' adapters, which is used with it.
    pub adapter: Option<UnitId>,
}

/// How a unit's parameters are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// With a gradient.
    Trained,
    /// Without.
    Frozen,
    /// Without, and matrices in bf16.
    FrozenBf16,
}

/// Where one parameter lies in its unit.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    /// In the unit's `value`, or `vectors`.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whether it lies in the unit's `vectors`.
    pub apart: bool,
}

impl Unit {
    /// A unit of zeros, the `index`-th of its model, on this device, held so. On a GPU every parameter begins at a
    /// multiple of 64 bytes, as products are fast then; what lies between two is zero and stays so, and no file has it.
    pub fn zeros(index: usize, spec: &UnitSpec, dtype: DType, device: &Device, holding: Holding) -> Result<Self> {
        let entries = Self::places(spec, dtype, device, holding);
        let align = align(dtype, device, holding);
        let [length, vectors] = [false, true].map(|apart| {
            let ends = entries.iter().filter(|entry| entry.apart == apart).map(|entry| entry.range.end);
            ends.max().unwrap_or(0).next_multiple_of(align)
        });
        let zeros = |length: usize, dtype| zeros(&[length], dtype, device);
        let value = zeros(length, if holding == Holding::FrozenBf16 { DType::BF16 } else { dtype })?;
        Ok(Self {
            id: UnitId(index),
            name: spec.name.clone(),
            value,
            vectors: if holding == Holding::FrozenBf16 { Some(zeros(vectors, dtype)?) } else { None },
            grad: if holding == Holding::Trained { Some(zeros(length, dtype)?) } else { None },
            entries,
            adapter: None,
        })
    }

    /// The same unit for another rank of the process: a frozen one, whose values are shared.
    pub fn shared(&self) -> Result<Self> {
        if !self.is_frozen() {
            bail!(Shape, "unit {} is trained: each rank has its own", self.name)
        }
        let (name, value, vectors) = (self.name.clone(), self.value.clone(), self.vectors.clone());
        Ok(Self { id: self.id, name, value, vectors, grad: None, entries: self.entries.clone(), adapter: None })
    }

    /// Where each parameter lies.
    fn places(spec: &UnitSpec, dtype: DType, device: &Device, holding: Holding) -> Vec<Entry> {
        let align = align(dtype, device, holding);
        let mut ends = [0, 0]; // of the values, of the vectors
        let place = |p: &super::ParamSpec| {
            let (n, apart) = (p.shape.iter().product::<usize>(), holding == Holding::FrozenBf16 && !p.decay);
            let end = &mut ends[usize::from(apart)];
            let range = *end..*end + n;
            *end = range.end.next_multiple_of(align);
            Entry { name: p.name.clone(), shape: p.shape.clone(), range, decay: p.decay, apart }
        };
        spec.params.iter().map(place).collect()
    }

    /// Whether it has no gradient.
    pub fn is_frozen(&self) -> bool {
        self.grad.is_none()
    }

    /// The gradient.
    ///
    /// # Errors
    /// It is frozen.
    pub fn grad(&self) -> Result<&Tensor> {
        self.grad.as_ref().ok_or_else(|| Error::Shape(format!("unit {} is frozen and has no gradient", self.name)))
    }

    /// The buffer that a parameter lies in.
    pub fn buffer(&self, entry: &Entry) -> &Tensor {
        match &self.vectors {
            Some(vectors) if entry.apart => vectors,
            _ => &self.value,
        }
    }

    /// Overwrites a parameter.
    ///
    /// # Errors
    /// There are more or fewer values than it has.
    pub fn set(&self, entry: &Entry, values: Vec<f32>) -> Result<()> {
        if values.len() != entry.range.len() {
            bail!(Shape, "{}: {} values for shape {:?}", entry.name, values.len(), entry.shape)
        }
        let buffer = self.buffer(entry);
        let values = Tensor::from_vec(values, entry.range.len(), buffer.device())?;
        let values = match buffer.dtype() {
            DType::BF16 => cast(&Tape::off(), &values, DType::BF16)?,
            dtype => values.to_dtype(dtype)?,
        };
        Ok(buffer.slice_set(&values, 0, entry.range.start)?)
    }

    /// Overwrites every parameter with the values `read` gives for its name.
    pub fn load(&self, mut read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        self.entries.iter().try_for_each(|entry| self.set(entry, read(&entry.name)?))
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
                Init::Uniform(bound) => {
                    entry.range.clone().map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect()
                }
                Init::Xavier => {
                    let (out, inner) = (entry.shape[0], entry.shape[1..].iter().product::<usize>());
                    let bound = (6.0 / (out + inner) as f64).sqrt();
                    entry.range.clone().map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect()
                }
            };
            self.set(entry, values)?;
        }
        Ok(())
    }

    /// The parameter of this name, viewed in its shape.
    pub fn param(&self, name: &str) -> Result<Param> {
        let entry = self.entries.iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| Error::Shape(format!("unit {} has no parameter {name}", self.name)))?;
        let view =
            |flat: &Tensor| flat.narrow(0, entry.range.start, entry.range.len())?.reshape(entry.shape.as_slice());
        let grad = self.grad.as_ref().map(view).transpose()?;
        Ok(Param { name: name.into(), value: view(self.buffer(entry))?, grad })
    }

    /// The linear layer of this name.
    pub fn linear(&self, name: &str, bf16: bool) -> Result<Linear> {
        let weight = self.param(&format!("{name}.weight"))?;
        Ok(Linear::new(weight, self.param(&format!("{name}.bias"))?, bf16))
    }
}

/// Elements whose multiples parameters begin at.
fn align(dtype: DType, device: &Device, holding: Holding) -> usize {
    let smallest = if holding == Holding::FrozenBf16 { DType::BF16 } else { dtype };
    if device.is_cpu() { 1 } else { ALIGNMENT / smallest.size_in_bytes() }
}

/// FNV-1a: a stable hash of a name, so that a parameter's initial values depend on no order.
pub(super) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_nothing_between_parameters() {
        let entry = |range: Range<usize>| Entry {
            name: String::new(),
            shape: vec![range.len()],
            range,
            decay: true,
            apart: false,
        };
        let flat = || Tensor::arange(0f32, 35.0, &Device::Cpu).unwrap();
        let entries = vec![entry(0..3), entry(16..18), entry(32..35)];
        let (id, name, value) = (UnitId(0), String::new(), flat());
        let unit = Unit { id, name, value, vectors: None, grad: Some(flat()), entries, adapter: None };
        assert_eq!(unit.dense(unit.value.to_vec1().unwrap()), [0.0, 1.0, 2.0, 16.0, 17.0, 32.0, 33.0, 34.0]);
        assert_eq!(unit.count(), 8);
    }
}
