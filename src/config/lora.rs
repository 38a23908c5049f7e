//! `[lora]`: which adapters are trained in place of the network's weights.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::check::{Checked, ensure};
use super::run::RunConfig;
use crate::lora::{Adapter, AdapterFile, Form};
use crate::model::{LoraSpec, ModelConfig};
use crate::{Result, hub};

/// `[lora]`: adapters of linear layers (LoRA), trained over a frozen network from `model.from`; with `rank` or `from`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank r of each adapter; 0: no adapters, but those of `from`.
    pub rank: usize,
    /// An adapter's share of its layer's output is alpha / r; none: r.
    pub alpha: Option<f64>,
    /// Layers with adapters, in diffusers' names: whole, their last parts (`attn1.to_q`, `to_q`), or patterns with `*`.
    /// Empty: all linear layers of all blocks.
    pub targets: Vec<String>,
    /// Share of the elements of an adapter's input that a training step sets to zero.
    pub dropout: f64,
    /// A LoRA file of any form to go on from; ranks, scales and layers are its own.
    pub from: Option<String>,
    /// Forms of LoRA files that each checkpoint holds.
    pub export: Vec<Export>,
    /// What `from` has been found to hold.
    #[serde(skip)]
    #[doc(hidden)]
    pub known: KnownLora,
}

/// The adapters of a file, looked at once for a config and all its copies: `plan` asks with each size that it tries.
#[derive(Clone, Debug, Default)]
pub struct KnownLora(Arc<Mutex<Option<(String, LoraSpec)>>>);

impl PartialEq for KnownLora {
    /// What is known already is no part of a config.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A form of LoRA files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Export {
    /// ComfyUI's, which diffusers reads too.
    Comfy,
    /// diffusers'.
    Diffusers,
    /// Of kohya's tools.
    Kohya,
}

impl Export {
    /// The form of the file.
    pub fn form(self) -> Form {
        match self {
            Self::Comfy => Form::Comfy,
            Self::Diffusers => Form::Diffusers,
            Self::Kohya => Form::Kohya,
        }
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 0,
            alpha: None,
            targets: vec![],
            dropout: 0.0,
            from: None,
            export: vec![Export::Comfy],
            known: KnownLora::default(),
        }
    }
}

impl Lora {
    /// Whether adapters are trained, and all else is frozen.
    pub fn is_on(&self) -> bool {
        self.rank > 0 || self.from.is_some()
    }
}

impl RunConfig {
    /// Which adapters are trained on `network`; none if none are.
    ///
    /// # Errors
    /// As [`adapters`](Self::adapters).
    pub fn lora_spec(&self, network: &ModelConfig) -> Result<Option<LoraSpec>> {
        let Some(from) = &self.lora.from else { return Ok(self.adapters(network)?.map(|(spec, _)| spec)) };
        let mut known = self.lora.known.0.lock();
        if known.as_ref().is_none_or(|(name, _)| name != from) {
            *known = self.adapters(network)?.map(|(spec, _)| (from.clone(), spec));
        }
        Ok(known.as_ref().map(|(_, spec)| spec.clone()))
    }

    /// The adapters that are trained on `network`, and their values if they are a file's; none if none are trained.
    ///
    /// # Errors
    /// A target names no layer; the file cannot be read, or is for another network.
    pub fn adapters(&self, network: &ModelConfig) -> Result<Option<(LoraSpec, Option<Adapter>)>> {
        let lora = &self.lora;
        let (mut spec, adapter) = match &lora.from {
            Some(from) => {
                let file = AdapterFile::open(&hub::resolve(from)?).map_err(|e| e.at("lora.from"))?;
                file.check(network).map_err(|e| e.at("lora.from"))?;
                (file.adapter.spec(), Some(file.adapter))
            }
            None if lora.rank == 0 => return Ok(None),
            None => {
                let alpha = lora.alpha.unwrap_or(lora.rank as f64);
                (LoraSpec::of_targets(network, &lora.targets, lora.rank, alpha)?, None)
            }
        };
        spec.dropout = lora.dropout;
        Ok(Some((spec, adapter)))
    }
}

/// Checks the section.
pub(super) fn check(config: &RunConfig) -> Checked {
    let c = &config.lora;
    ensure(c.rank <= 65_536, "lora.rank", c.rank, "must be at most 65536; 0 for no adapters")?;
    if let Some(from) = &c.from {
        ensure(!from.is_empty(), "lora.from", from, "must name a LoRA file; leave the key out for new adapters")?;
        let allowed = "must be left out where lora.from gives the adapters";
        ensure(c.rank == 0, "lora.rank", c.rank, allowed)?;
        ensure(c.alpha.is_none(), "lora.alpha", c.alpha, allowed)?;
        ensure(c.targets.is_empty(), "lora.targets", &c.targets, allowed)?;
    }
    if let Some(alpha) = c.alpha {
        ensure(
            alpha.is_finite() && alpha > 0.0,
            "lora.alpha",
            alpha,
            "must be above 0; leave the key out for the rank",
        )?;
        ensure(c.is_on(), "lora.alpha", alpha, "needs lora.rank: there are no adapters")?;
    }
    ensure(c.is_on() || c.targets.is_empty(), "lora.targets", &c.targets, "needs lora.rank: there are no adapters")?;
    ensure((0.0..1.0).contains(&c.dropout), "lora.dropout", c.dropout, "must be at least 0 and below 1")?;
    ensure(c.is_on() || c.dropout == 0.0, "lora.dropout", c.dropout, "needs lora.rank: there are no adapters")?;
    let key = if c.from.is_some() { "lora.from" } else { "lora.rank" };
    let allowed = "adapters need a network that they adapt: name it in model.from";
    ensure(!c.is_on() || config.model.from.is_some(), key, c.rank, allowed)
}
