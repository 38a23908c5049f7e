//! Gives linear layers of a network adapters (LoRA, arXiv 2106.09685), in units of their own beside frozen ones: an
//! adapter unit for each block, and for the embedding and the head if their layers have any.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::spec::{self, Init, ParamSpec, UnitSpec};
use super::unit::hash;
use super::{ModelConfig, Unit};
use crate::ops::{Dropout, Linear, LowRank, Param};
use crate::{Result, bail};

/// Layers that [`LoraSpec::of_targets`] lists in an error.
const LISTED: usize = 24;

/// The adapters of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// In the order of the network's layers.
    pub modules: Vec<LoraModule>,
    /// The share of the elements of an adapter's input that training sets to zero.
    pub dropout: f64,
}

/// The adapter of one linear layer: W x + b + (alpha / rank) B A x.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraModule {
    /// The layer, in diffusers' names.
    pub name: String,
    pub rank: usize,
    pub alpha: f64,
    /// Features of the layer's input.
    pub inner: usize,
    /// Features of its output.
    pub out: usize,
}

impl LoraModule {
    /// The name of A `[rank, inner]`.
    pub fn a(&self) -> String {
        format!("{}.lora_A.weight", self.name)
    }

    /// The name of B `[out, rank]`.
    pub fn b(&self) -> String {
        format!("{}.lora_B.weight", self.name)
    }
}

impl LoraSpec {
    /// Every linear layer of a network of `config` that may have an adapter, with its input and output features, in the
    /// order of the network.
    pub fn layers(config: &ModelConfig) -> Vec<(String, [usize; 2])> {
        let linear = |param: ParamSpec| {
            let name = param.name.strip_suffix(".weight")?;
            match param.shape[..] {
                [out, inner] if param.decay => Some((name.to_owned(), [inner, out])),
                _ => None,
            }
        };
        spec::units(config).into_iter().flat_map(|unit| unit.params).filter_map(linear).collect()
    }

    /// Adapters of `rank` for the layers that `targets` name: a layer's name, its last parts (`attn1.to_q`, `to_q`), or
    /// a pattern with `*`. Without targets, for all linear layers of all blocks.
    ///
    /// # Errors
    /// A target names no layer.
    pub fn of_targets(config: &ModelConfig, targets: &[String], rank: usize, alpha: f64) -> Result<Self> {
        let layers = Self::layers(config);
        for target in targets {
            if !layers.iter().any(|(name, _)| is_named(name, target)) {
                let there: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).take(LISTED).collect();
                let more = if layers.len() > LISTED { ", ..." } else { "" };
                bail!(
                    Config,
                    "lora.targets: {target:?} is no linear layer of the network; it has {}{more}",
                    there.join(", ")
                )
            }
        }
        let chosen = |name: &str| match targets {
            [] => name.starts_with("blocks."),
            targets => targets.iter().any(|target| is_named(name, target)),
        };
        let modules = layers
            .into_iter()
            .filter(|(name, _)| chosen(name))
            .map(|(name, [inner, out])| LoraModule { name, rank, alpha, inner, out })
            .collect();
        Ok(Self { modules, dropout: 0.0 })
    }

    /// Parameters of all adapters.
    pub fn count(&self) -> usize {
        self.modules.iter().map(|module| module.rank * (module.inner + module.out)).sum()
    }

    /// The adapter unit that belongs to the unit `base` of the network; none if its layers have no adapters. A is drawn
    /// as Kaiming's uniform with a = sqrt(5), B is zero.
    pub fn unit(&self, base: &UnitSpec) -> Option<UnitSpec> {
        let has = |module: &&LoraModule| {
            let weight = base.params.iter().find(|param| param.name.strip_suffix(".weight") == Some(&module.name));
            weight.is_some()
        };
        let param = |name, shape: [usize; 2], init| ParamSpec { name, shape: shape.into(), init, decay: true };
        let params: Vec<ParamSpec> = self
            .modules
            .iter()
            .filter(has)
            .flat_map(|module| {
                let &LoraModule { rank, inner, out, .. } = module;
                let a = param(module.a(), [rank, inner], Init::Uniform((inner as f64).powf(-0.5)));
                [a, param(module.b(), [out, rank], Init::Zeros)]
            })
            .collect();
        (!params.is_empty()).then(|| UnitSpec { name: format!("{}.lora", base.name), params })
    }

    /// The elements of the largest adapter unit.
    pub fn largest_unit(&self, config: &ModelConfig) -> usize {
        let elements = |unit: UnitSpec| unit.params.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        spec::units(config).iter().filter_map(|unit| self.unit(unit)).map(elements).max().unwrap_or(0)
    }
}

/// Whether `target` names the layer `name`.
fn is_named(name: &str, target: &str) -> bool {
    fits(name, target) || name.match_indices('.').any(|(dot, _)| fits(&name[dot + 1..], target))
}

/// Whether `name` is `pattern`, in which `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|at| name.is_char_boundary(at) && fits(&name[at..], rest))),
    }
}

/// Adapters as pieces of a network look them up.
pub(super) struct Adapters<'a> {
    pub spec: &'a LoraSpec,
    pub dropout: Option<&'a Arc<Dropout>>,
}

/// A unit with the adapters of its layers.
#[derive(Clone, Copy)]
pub struct Layers<'a> {
    pub(super) unit: &'a Unit,
    pub(super) adapters: Option<(&'a Unit, &'a Adapters<'a>)>,
}

impl<'a> Layers<'a> {
    /// The parameter of this name.
    pub fn param(&self, name: &str) -> Result<Param> {
        self.unit.param(name)
    }

    /// The linear layer of this name, with its adapter.
    pub fn linear(&self, name: &str, bf16: bool) -> Result<Linear> {
        let linear = self.unit.linear(name, bf16)?;
        let Some((unit, adapters)) = self.adapters else { return Ok(linear) };
        let Some(module) = adapters.spec.modules.iter().find(|module| module.name == name) else { return Ok(linear) };
        let scale = module.alpha / module.rank as f64;
        let low_rank = LowRank::new(unit.param(&module.a())?, unit.param(&module.b())?, scale);
        let low_rank = low_rank.dropping(adapters.dropout.map(|dropout| (dropout.clone(), hash(name))));
        Ok(linear.adapted(Some(low_rank)))
    }

    /// Whether something of it changes in training.
    pub fn trains(&self) -> bool {
        !self.unit.is_frozen() || self.adapters.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_layers_by_last_parts_and_patterns() {
        let name = "blocks.12.attn1.to_out.0";
        for target in [name, "attn1.to_out.0", "to_out.0", "blocks.*", "blocks.1*.attn1.*", "*", "attn1.*"] {
            assert!(is_named(name, target), "{target}");
        }
        for target in ["out.0", "attn2.to_out.0", "blocks.1.*", "blocks.12", "", "to_out", "*.to_q"] {
            assert!(!is_named(name, target), "{target}");
        }
    }
}
