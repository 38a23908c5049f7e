//! Takes adapters from a network and puts them into one.

use super::{Adapter, AdapterModule};
use crate::model::{LoraModule, LoraSpec, Model};
use crate::{Result, bail};

impl Adapter {
    /// What a network needs to have these adapters. Whether it has the layers is [`check`](Self::check)'s business.
    pub fn spec(&self) -> LoraSpec {
        let module = |m: &AdapterModule| LoraModule {
            name: m.name.clone(),
            rank: m.rank,
            alpha: m.alpha,
            inner: m.inner,
            out: m.out,
        };
        LoraSpec { modules: self.modules.iter().map(module).collect(), dropout: 0.0 }
    }

    /// Puts the values of A and B into `model`, which has these adapters.
    ///
    /// # Errors
    /// The model has adapters for other layers, or of other ranks.
    pub fn fill(&self, model: &Model) -> Result<()> {
        model.set_adapters(|name| {
            let module = |end| name.strip_suffix(end).and_then(|layer| self.modules.iter().find(|m| m.name == layer));
            if let Some(module) = module(".lora_A.weight") {
                return Ok(module.a.clone());
            }
            match module(".lora_B.weight") {
                Some(module) => Ok(module.b.clone()),
                None => bail!(Shape, "{name}: the LoRA has no such layer"),
            }
        })
    }

    /// The adapters of `spec` with the values that `read` gives for the names of A and B.
    pub fn of(spec: &LoraSpec, mut read: impl FnMut(&str) -> Result<Vec<f32>>) -> Result<Self> {
        let module = |m: &LoraModule| {
            Ok(AdapterModule {
                name: m.name.clone(),
                rank: m.rank,
                alpha: m.alpha,
                inner: m.inner,
                out: m.out,
                a: read(&m.a())?,
                b: read(&m.b())?,
            })
        };
        Ok(Self { modules: spec.modules.iter().map(module).collect::<Result<_>>()? })
    }
}
