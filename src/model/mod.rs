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
mod block_condition;
mod block_weights;
mod condition;
mod config;
mod cross;
mod embed;
mod groups;
pub use crate::files::model_folder as folder;
mod head;
pub mod layout;
mod lora;
pub mod names;
mod patch;
mod spec;
mod text;
mod unit;
pub mod variant;

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::sync::Arc;

use crate::Result;
use crate::ops::{Draws, Dropout, clear, release};
pub use block::Block;
pub use block_condition::BlockCondition;
pub use condition::{Condition, Conditioner, Conditioning};
pub use config::{MOST_POSITIONS, ModelConfig};
pub use cross::{CrossText, cross_attention};
pub use embed::Embed;
pub use groups::{RowGroups, TimeGroups};
pub use head::{Head, HeadCondition};
use lora::Adapters;
pub use lora::{Layers, LoraModule, LoraSpec};
pub use patch::Patches;
pub use spec::{Init, ParamSpec, UnitSpec};
pub use text::{TEXT_LENGTH, TextRows, TextTokens};
pub use unit::{Entry, Holding, Unit, UnitId};

/// The network: its units of parameters and the pieces that view them.
pub struct Model {
    pub config: ModelConfig,
    /// embed, the blocks in order, head: as a forward pass uses them, each followed by its adapters' unit, if it has
    /// one. Each piece knows the id of its own.
    pub units: Vec<Unit>,
    pub embed: Embed,
    pub conditioner: Conditioner,
    pub blocks: Vec<Block>,
    pub head: Head,
    /// Whether linear layers and attention compute in bf16.
    pub bf16: bool,
    /// The adapters, if there are any: then all else is frozen.
    pub lora: Option<LoraSpec>,
    dropout: Option<Arc<Dropout>>,
}

impl Model {
    /// A model with all parameters zero, in `dtype` (f32, or f64 for checks); with `bf16`, linear layers round their
    /// operands.
    pub fn zeros(config: &ModelConfig, dtype: DType, bf16: bool) -> Result<Self> {
        Self::zeros_on(config, dtype, bf16, &Device::Cpu)
    }

    fn zeros_on(config: &ModelConfig, dtype: DType, bf16: bool, device: &Device) -> Result<Self> {
        let units = Self::units(config, dtype, device, |_| Holding::Trained, None)?.collect::<Result<_>>()?;
        Self::of_units(config, units, bf16, None)
    }

    /// A frozen network of zeros with adapters, whose A are drawn from `seed` and whose B are zero, as in
    /// [`LoraSpec::unit`]. With `bf16`, the blocks' matrices are bf16, as products round them to that anyway.
    pub fn adapted(config: &ModelConfig, dtype: DType, bf16: bool, lora: &LoraSpec, seed: u64) -> Result<Self> {
        Self::adapted_on(config, dtype, bf16, lora, seed, &Device::Cpu, false)
    }

    /// The same on a device; `hollow`, without the memory of the frozen network's matrices, for
    /// [`TrainState::loading`](crate::state::weights::TrainState::loading).
    pub fn adapted_on(
        config: &ModelConfig,
        dtype: DType,
        bf16: bool,
        lora: &LoraSpec,
        seed: u64,
        device: &Device,
        hollow: bool,
    ) -> Result<Self> {
        let blocks = if bf16 && dtype == DType::F32 { Holding::FrozenBf16 } else { Holding::Frozen };
        let held = |spec: &UnitSpec| if spec.name.starts_with("blocks.") { blocks } else { Holding::Frozen };
        let mut units = vec![];
        for unit in Self::units(config, dtype, device, held, Some(lora))? {
            let unit = unit?;
            if hollow && unit.is_frozen() {
                release(&unit.value)?;
            }
            units.push(unit);
        }
        let model = Self::of_units(config, units, bf16, Some(lora))?;
        model.draw_adapters(seed)?;
        Ok(model)
    }

    /// The same model for another rank of the process: its frozen values are this one's, its adapters as drawn.
    ///
    /// # Errors
    /// It has no adapters.
    pub fn sharing(&self, seed: u64) -> Result<Self> {
        let mut adapters = Self::adapter_specs(&self.config, self.lora.as_ref());
        let mut units = vec![];
        for unit in &self.units {
            units.push(match adapters.remove(&unit.name) {
                Some(spec) => Unit::zeros(units.len(), &spec, self.dtype(), self.device(), Holding::Trained)?,
                None => unit.shared()?,
            });
        }
        let model = Self::of_units(&self.config, units, self.bf16, self.lora.as_ref())?;
        model.draw_adapters(seed)?;
        Ok(model)
    }

    /// The specs of the adapters' units, by name.
    fn adapter_specs(config: &ModelConfig, lora: Option<&LoraSpec>) -> HashMap<String, UnitSpec> {
        let units = spec::units(config);
        let specs = units.iter().filter_map(|unit| lora.and_then(|lora| lora.unit(unit)));
        specs.map(|spec| (spec.name.clone(), spec)).collect()
    }

    /// Draws the adapters' initial values from `seed` and their names.
    fn draw_adapters(&self, seed: u64) -> Result<()> {
        let specs = Self::adapter_specs(&self.config, self.lora.as_ref());
        self.units
            .iter()
            .filter_map(|unit| Some((unit, specs.get(&unit.name)?)))
            .try_for_each(|(unit, spec)| unit.init(spec, seed))
    }

    /// Draws Wan's initial values of the frozen network from `seed`, for measurements: a real one is
    /// [set](Self::set_base).
    pub fn draw_base(&self, seed: u64) -> Result<()> {
        let frozen = self.units.iter().filter(|unit| unit.is_frozen());
        frozen.zip(spec::units(&self.config)).try_for_each(|(unit, spec)| unit.init(&spec, seed))
    }

    /// Units of zeros, one after another, each held as `held` says, and those of adapters trained.
    fn units<'a>(
        config: &ModelConfig,
        dtype: DType,
        device: &'a Device,
        held: impl Fn(&UnitSpec) -> Holding + 'a,
        lora: Option<&'a LoraSpec>,
    ) -> Result<impl Iterator<Item = Result<Unit>> + 'a> {
        config.check()?;
        let specs = spec::units(config).into_iter().flat_map(move |spec| {
            let adapter = lora.and_then(|lora| lora.unit(&spec)).map(|adapter| (adapter, Holding::Trained));
            let held = held(&spec);
            std::iter::once((spec, held)).chain(adapter)
        });
        Ok(specs.enumerate().map(move |(index, (spec, held))| Unit::zeros(index, &spec, dtype, device, held)))
    }

    /// The model that views these units.
    fn of_units(config: &ModelConfig, mut units: Vec<Unit>, bf16: bool, lora: Option<&LoraSpec>) -> Result<Self> {
        let specs = Self::adapter_specs(config, lora);
        for base in 0..units.len() {
            let next = units.get(base + 1).filter(|next| specs.contains_key(&next.name)).map(|next| next.id);
            units[base].adapter = next;
        }
        let dropout = lora.filter(|lora| lora.dropout > 0.0).map(|lora| Arc::new(Dropout::new(lora.dropout)));
        let adapters = lora.map(|spec| Adapters { spec, dropout: dropout.as_ref() });
        let layers: Vec<Layers> = units
            .iter()
            .filter(|unit| !specs.contains_key(&unit.name))
            .map(|unit| {
                let adapter = unit.adapter.map(|id| &units[id.index()]);
                Layers { unit, adapters: adapter.zip(adapters.as_ref()) }
            })
            .collect();
        let (first, rest) = layers.split_first().expect("embed and head are always there");
        let (last, middle) = rest.split_last().expect("embed and head are always there");
        Ok(Self {
            embed: Embed::new(first, config, bf16)?,
            conditioner: Conditioner::new(first, config)?,
            blocks: middle.iter().map(|layers| Block::new(layers, config, bf16)).collect::<Result<_>>()?,
            head: Head::new(last, config, bf16)?,
            config: config.clone(),
            units,
            bf16,
            lora: lora.cloned(),
            dropout,
        })
    }

    /// The model with its values on another device, and gradients of zeros there.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self);
        }
        let held = |spec: &UnitSpec| {
            let unit = self.units.iter().find(|unit| unit.name == spec.name);
            match unit.map(|unit| (unit.is_frozen(), unit.vectors.is_some())) {
                Some((true, true)) => Holding::FrozenBf16,
                Some((true, false)) => Holding::Frozen,
                _ => Holding::Trained,
            }
        };
        let units = Self::units(&self.config, self.dtype(), device, held, self.lora.as_ref())?;
        let units = units.collect::<Result<_>>()?;
        let model = Self::of_units(&self.config, units, self.bf16, self.lora.as_ref())?;
        for (to, from) in model.units.iter().zip(&self.units) {
            for apart in [false, true] {
                let pairs = to.entries.iter().zip(&from.entries).filter(|(entry, _)| entry.apart == apart);
                let Some((target, source)) = pairs.clone().next() else { continue };
                let (target, source) = (to.buffer(target), from.buffer(source));
                let flat = Tensor::zeros(target.dims(), source.dtype(), source.device())?;
                for (target, place) in pairs {
                    let values = source.narrow(0, place.range.start, place.range.len())?;
                    flat.slice_set(&values, 0, target.range.start)?;
                }
                target.slice_set(&flat.to_device(device)?, 0, 0)?;
            }
        }
        Ok(model)
    }

    /// What adapters' dropout draws by from now on; without, nothing is dropped.
    pub fn draw_dropout_by(&self, draws: Option<Draws>) {
        if let Some(dropout) = &self.dropout {
            dropout.draw_by(draws);
        }
    }

    /// Whether something of the unit, or an adapter of its layers, changes in training.
    pub fn trains(&self, id: UnitId) -> bool {
        let unit = self.unit(id);
        !unit.is_frozen() || unit.adapter.is_some()
    }

    /// Names and shapes of all parameters that change in training, in order.
    pub fn trained(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.units.iter().filter(|unit| !unit.is_frozen()).flat_map(|unit| &unit.entries);
        trained.map(|entry| (entry.name.clone(), entry.shape.clone())).collect()
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
    pub fn set(&self, read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        Self::fill(self.units.iter(), read)
    }

    /// Overwrites the network's parameters, not those of adapters, with the values `read` gives for their names.
    pub fn set_base(&self, read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        Self::fill(self.units.iter().filter(|unit| self.lora.is_none() || unit.is_frozen()), read)
    }

    /// Overwrites the adapters' parameters with the values `read` gives for their names.
    pub fn set_adapters(&self, read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        Self::fill(self.units.iter().filter(|unit| self.lora.is_some() && !unit.is_frozen()), read)
    }

    fn fill<'u>(
        units: impl IntoIterator<Item = &'u Unit>,
        mut read: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<()> {
        units.into_iter().try_for_each(|unit| unit.load(&mut read))
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

    /// Bytes of a frozen network of `config` below adapters, and of its largest unit; with `bf16`, as
    /// [`adapted`](Self::adapted) holds it.
    pub fn frozen_bytes(config: &ModelConfig, bf16: bool) -> [u64; 2] {
        let bytes = |unit: &UnitSpec| -> u64 {
            let half = bf16 && unit.name.starts_with("blocks.");
            let each = |p: &ParamSpec| {
                let bytes = if half && p.decay { 2 } else { 4 };
                bytes * p.shape.iter().product::<usize>() as u64
            };
            unit.params.iter().map(each).sum()
        };
        let units: Vec<u64> = spec::units(config).iter().map(bytes).collect();
        [units.iter().sum(), units.iter().copied().max().unwrap_or(0)]
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
        Ok(self.units.iter().filter_map(|unit| unit.grad.as_ref()).try_for_each(clear)?)
    }
}
