//! Counts a run's parameters and the bytes that hold them: trained ones, and a frozen network below adapters.

use super::shape::Shape;
use super::{Part, part};
use crate::Result;
use crate::config::{Compute, Place, RunConfig};
use crate::model::{LoraSpec, Model, ModelConfig};

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

    /// ParameterCounts, gradients, moments and average between steps, with the unit that is at work.
    pub fn parts(&self, config: &RunConfig, shape: &Shape) -> Vec<Part> {
        let (n, unit) = (4 * self.trained as u64, 4 * self.unit as u64);
        // What ZeRO shards from a stage on, and with it the unit that is whole while it is at work; of parameters, also
        // the parts of the next one.
        let (zero, ranks) = (config.parallel.zero, config.parallel.ranks as u64);
        let shard = |stage: usize, whole: u64| if zero >= stage { n.div_ceil(ranks) + whole } else { n };
        let moments = if config.train.moments == Place::Ram { 2 * shard(1, 0) } else { 0 };
        let average = if config.train.ema > 0.0 { moments / 2 } else { 0 };
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

    /// What a tile has beside what it has without adapters, in `before` and `after`: a layer's addend and its share of
    /// the input's gradient; and on a CPU a weight that is widened from bf16 to be packed.
    pub fn of_a_tile(&self, model: &ModelConfig, shape: &Shape) -> [u64; 2] {
        if self.lora.is_none() {
            return [0; 2];
        }
        let (width, hidden) = (model.width(), model.ffn_dim);
        let widened = |elements: usize| if shape.half && !shape.gpu { 4 * elements as u64 } else { 0 };
        let rows = |width: usize| 4 * (shape.tile * width) as u64;
        [rows(2 * width) + widened(width * width), rows(width + hidden) + widened(width * hidden)]
    }
}
