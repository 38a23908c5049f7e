//! Computes the network's token-local pieces, diffusers' `WanTransformer3DModel` on a single device. Nothing here knows
//! of ranks.
//!
//! A [`Model`] is embed | blocks | head, each a [`Unit`] of parameters. The pieces act on a tile of tokens; the engine
//! runs them over tiles and puts attention between [`Block::before`] and [`Block::after`]. What all tokens of a sample
//! share (time, text, class) is a [`Condition`], whose gradient is summed over tiles before it goes back through its
//! small network.
//!
//! Names, shapes and arithmetic are diffusers', so that Wan 2.1 checkpoints load as they are. Beyond it: no text at
//! all, class labels with a null class, any patch size on pixels.

mod block;
mod condition;
mod config;
mod cross;
mod embed;
pub use crate::files::model_folder as folder;
mod head;
mod patch;
mod spec;
mod unit;

use candle_core::{DType, Device, Tensor};

use crate::ops::clear;
use crate::{Result, bail};
pub use block::{Block, BlockCondition};
pub use condition::{Condition, Conditioner, Conditioning};
pub use config::{MOST_POSITIONS, ModelConfig};
pub use cross::cross_attention;
pub use embed::Embed;
pub use head::{Head, HeadCondition};
pub use patch::Patches;
pub use spec::{Init, ParamSpec, UnitSpec};
pub use unit::{Entry, Unit, UnitId};

/// The network: its units of parameters and the pieces that view them.
pub struct Model {
    pub config: ModelConfig,
    /// embed, the blocks in order, head: as a forward pass uses them. Each piece knows the id of its own.
    pub units: Vec<Unit>,
    pub embed: Embed,
    pub conditioner: Conditioner,
    pub blocks: Vec<Block>,
    pub head: Head,
    /// Whether linear layers and attention compute in bf16.
    pub bf16: bool,
}

impl Model {
    /// A model with all parameters zero, in `dtype` (f32, or f64 for checks); with `bf16`, linear layers round their
    /// operands.
    pub fn zeros(config: &ModelConfig, dtype: DType, bf16: bool) -> Result<Self> {
        Self::zeros_on(config, dtype, bf16, &Device::Cpu)
    }

    fn zeros_on(config: &ModelConfig, dtype: DType, bf16: bool, device: &Device) -> Result<Self> {
        config.check()?;
        let unit = |(index, spec)| Unit::zeros(index, spec, dtype, device);
        let units = spec::units(config).iter().enumerate().map(unit).collect::<Result<Vec<_>>>()?;
        let (first, rest) = units.split_first().expect("embed and head are always there");
        let (last, middle) = rest.split_last().expect("embed and head are always there");
        Ok(Self {
            embed: Embed::new(first, config, bf16)?,
            conditioner: Conditioner::new(first, config)?,
            blocks: middle.iter().map(|unit| Block::new(unit, config, bf16)).collect::<Result<_>>()?,
            head: Head::new(last, config, bf16)?,
            config: config.clone(),
            units,
            bf16,
        })
    }

    /// The model with its values on another device, and gradients of zeros there.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self);
        }
        let model = Self::zeros_on(&self.config, self.dtype(), self.bf16, device)?;
        for (to, from) in model.units.iter().zip(&self.units) {
            let flat = Tensor::zeros(to.value.dims(), from.value.dtype(), from.value.device())?;
            for (target, source) in to.entries.iter().zip(&from.entries) {
                flat.slice_set(&from.value.narrow(0, source.range.start, source.range.len())?, 0, target.range.start)?;
            }
            to.value.slice_set(&flat.to_device(device)?, 0, 0)?;
        }
        Ok(model)
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        self.units[0].value.device()
    }

    /// The parameters' dtype.
    pub fn dtype(&self) -> DType {
        self.units[0].value.dtype()
    }

    /// The unit of this id.
    pub fn unit(&self, id: UnitId) -> &Unit {
        &self.units[id.index()]
    }

    /// The unit that a forward pass uses after this one.
    pub fn unit_after(&self, id: UnitId) -> Option<UnitId> {
        self.units.get(id.index() + 1).map(|unit| unit.id)
    }

    /// The unit that a forward pass uses before this one, and backward after it.
    pub fn unit_before(&self, id: UnitId) -> Option<UnitId> {
        id.index().checked_sub(1).map(|index| self.units[index].id)
    }

    /// A model with Wan's initial values, drawn for each parameter from (seed, its name).
    pub fn init(config: &ModelConfig, dtype: DType, bf16: bool, seed: u64) -> Result<Self> {
        let model = Self::zeros(config, dtype, bf16)?;
        for (unit, spec) in model.units.iter().zip(spec::units(config)) {
            unit.init(&spec, seed)?;
        }
        Ok(model)
    }

    /// A model with the values `read` gives for each name.
    pub fn load(
        config: &ModelConfig,
        dtype: DType,
        bf16: bool,
        mut read: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let model = Self::zeros(config, dtype, bf16)?;
        model.set(|name| read(name))?;
        Ok(model)
    }

    /// Overwrites every parameter with the values `read` gives for its name.
    pub fn set(&self, mut read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        for unit in &self.units {
            for entry in &unit.entries {
                let values = read(&entry.name)?;
                if values.len() != entry.range.len() {
                    bail!(Shape, "{}: {} values for shape {:?}", entry.name, values.len(), entry.shape)
                }
                let values = Tensor::from_vec(values, entry.range.len(), unit.value.device())?;
                unit.value.slice_set(&values.to_dtype(unit.value.dtype())?, 0, entry.range.start)?;
            }
        }
        Ok(())
    }

    /// Names and shapes of every parameter a checkpoint of `config` has, in order.
    pub fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        spec::units(config).into_iter().flat_map(|u| u.params).map(|p| (p.name, p.shape)).collect()
    }

    /// Elements of the largest unit of a model of `config`.
    pub fn largest_unit(config: &ModelConfig) -> usize {
        let elements = |unit: UnitSpec| unit.params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        spec::units(config).into_iter().map(elements).max().unwrap_or(0)
    }

    /// How many parameters a model of `config` has.
    pub fn count_of(config: &ModelConfig) -> usize {
        spec::count(config) as usize
    }

    /// How many parameters there are.
    pub fn count(&self) -> usize {
        self.units.iter().map(Unit::count).sum()
    }

    /// Sets every gradient to zero.
    pub fn zero_grads(&self) -> Result<()> {
        Ok(self.units.iter().try_for_each(|unit| clear(&unit.grad))?)
    }
}
