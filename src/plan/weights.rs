//! Counts a run's parameters and the bytes that hold them: trained ones, and a frozen network below adapters.

use super::shape::Shape;
use super::{Part, part};
use crate::Result;
use crate::config::{Compute, OptimizerKind, Place, RunConfig};
use crate::model::{LoraModule, LoraSpec, Model, ModelConfig};
use crate::state::optimizer::blockwise::words;
use crate::state::optimizer::muon;

/// A run's parameters.
pub struct ParameterCounts {
    /// Of the network and its adapters.
    pub all: usize,
    /// Those that training changes.
    pub trained: usize,
    /// The most of a unit's that training changes.
    pub unit: usize,
    /// The adapters, if they are what is trained.
    pub lora: Option<LoraSpec>,
    /// Bytes of the frozen network, and of its largest unit; 0 if none is.
    frozen: [u64; 2],
}

impl ParameterCounts {
    /// # Errors
    /// Those of [`RunConfig::adapters`].
    pub fn new(config: &RunConfig, model: &ModelConfig) -> Result<Self> {
        let network = Model::count_of(model);
        Ok(match config.lora_spec(model)? {
            None => {
                Self { all: network, trained: network, unit: Model::largest_unit(model), lora: None, frozen: [0; 2] }
            }
            Some(lora) => Self {
                all: network + lora.count(),
                trained: lora.count(),
                unit: lora.largest_unit(model),
                frozen: Model::frozen_bytes(model, config.train.dtype == Compute::Bf16),
                lora: Some(lora),
            },
        })
    }

    /// Bytes of the moments, and of the average, that a rank has of so many trained parameters.
    pub fn moments(&self, config: &RunConfig, model: &ModelConfig, parameters: usize) -> [u64; 2] {
        let ranks = if config.parallel.zero >= 1 { config.parallel.ranks } else { 1 };
        let part = parameters.div_ceil(ranks);
        let bytes = match config.train.optimizer {
            OptimizerKind::AdamW => 8 * part as u64,
            OptimizerKind::AdamW8 => 8 * words(part) as u64,
            OptimizerKind::Muon => {
                // Muon's matrices have the momentum alone; each rank's part of a unit has about the same share of them.
                let matrices: u128 = self.muons(model).iter().map(|[rows, columns]| (rows * columns) as u128).sum();
                8 * part as u64 - (4 * part as u128 * matrices / self.trained.max(1) as u128) as u64
            }
        };
        [bytes, if config.train.ema > 0.0 { 4 * part as u64 } else { 0 }]
    }

    /// The matrices that Muon changes: the adapters' A and B, where there are adapters, or the network's own.
    pub fn muons(&self, model: &ModelConfig) -> Vec<[usize; 2]> {
        let shapes = match &self.lora {
            None => Model::shapes(model),
            Some(lora) => {
                let of = |module: &LoraModule| {
                    [(module.a(), vec![module.rank, module.inner]), (module.b(), vec![module.out, module.rank])]
                };
                lora.modules.iter().flat_map(of).collect()
            }
        };
        let taken = shapes.into_iter().filter(|(name, shape)| muon::takes(name, shape));
        taken.map(|(_, shape)| [shape[0], shape[1]]).collect()
    }

    /// Parameters, gradients, moments and average between steps, with the unit that is at work.
    pub fn parts(&self, config: &RunConfig, model: &ModelConfig, shape: &Shape) -> Vec<Part> {
        let (n, unit) = (4 * self.trained as u64, 4 * self.unit as u64);
        // What ZeRO shards from a stage on, and with it the unit that is whole while it is at work; of parameters, also
        // the parts of the next one.
        let (zero, ranks) = (config.parallel.zero, config.parallel.ranks as u64);
        let shard = |stage: usize, whole: u64| if zero >= stage { n.div_ceil(ranks) + whole } else { n };
        // A GPU's host has the moments that it does not compute with: see `phases::host`.
        let elsewhere = shape.gpu && config.train.optimizer != OptimizerKind::AdamW;
        let here = config.train.moments == Place::Ram && !elsewhere;
        let [moments, average] = if here { self.moments(config, model, self.trained) } else { [0; 2] };
        let mut parts = vec![
            part("parameters", shard(3, if ranks > 1 { 2 * unit } else { unit })),
            part("gradients", shard(2, unit)),
            part("optimizer moments", moments),
            part("moving average", average),
        ];
        let [frozen, largest] = self.frozen;
        if self.lora.is_some() {
            parts.push(match (shape.gpu, zero) {
                (true, 3) if ranks > 1 => part("frozen network, its share", frozen.div_ceil(ranks) + 2 * largest),
                (true, _) => part("frozen network", frozen),
                // Ranks that are threads of a process have it once.
                (false, _) => part("frozen network, its share", frozen.div_ceil(ranks)),
            });
        }
        parts
    }

    /// What a tile has beside what it has without adapters, in `before` and `after`. On a CPU, where they are a term of
    /// their layer's product, only with dropout: an input of which elements are dropped, and the adapter's share of its
    /// gradient. On a GPU a layer's addend and that share, and the rounded copy of an input of which elements are
    /// dropped.
    pub fn of_a_tile(&self, model: &ModelConfig, shape: &Shape) -> [u64; 2] {
        let Some(lora) = &self.lora else { return [0; 2] };
        if !shape.gpu && lora.dropout == 0.0 {
            return [0; 2];
        }
        let (width, hidden) = (model.width(), model.ffn_dim);
        let rounded = shape.gpu && shape.half && lora.dropout > 0.0;
        let dropped = |width: usize| if rounded { 2 * (shape.tile * width) as u64 } else { 0 };
        let rows = |width: usize| 4 * (shape.tile * width) as u64;
        [rows(2 * width) + dropped(width), rows(width + hidden) + dropped(hidden)]
    }
}
