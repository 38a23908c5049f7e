//! Compares adapters with the linear layers of a network.

use std::collections::{BTreeMap, BTreeSet};

use super::{Adapter, form};
use crate::model::{Model, ModelConfig, names};
use crate::{Result, bail};

/// The linear layers of a network in its order: name in diffusers' naming, features of the input, of the output.
pub fn layers(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let shapes = Model::shapes(config);
    let biases: BTreeSet<&str> = shapes.iter().filter_map(|(name, _)| name.strip_suffix(".bias")).collect();
    let linear = |(name, shape): &(String, Vec<usize>)| match (name.strip_suffix(".weight"), shape.as_slice()) {
        (Some(layer), [out, inner]) if biases.contains(layer) => Some((layer.to_owned(), *inner, *out)),
        _ => None,
    };
    shapes.iter().filter_map(linear).collect()
}

impl Adapter {
    /// Refuses adapters that are not for this network.
    ///
    /// # Errors
    /// A layer that the network does not have, or of another size: it says what the adapters seem to be for, each
    /// layer named.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let layers: BTreeMap<String, (usize, usize)> =
            layers(config).into_iter().map(|(name, inner, out)| (name, (inner, out))).collect();
        if let (Some(theirs), ours) = (self.width(), config.width())
            && theirs != ours
        {
            bail!(
                Shape,
                "the LoRA is for another model: its layers are {theirs} wide{}, the model's {ours}{}",
                size_name(theirs),
                size_name(ours)
            )
        }
        let of_images = |name: &str| names::is_of_images(name) && !layers.contains_key(name);
        let images: Vec<&str> = self.modules.iter().map(|m| m.name.as_str()).filter(|name| of_images(name)).collect();
        if !images.is_empty() {
            bail!(
                Shape,
                "the LoRA is for an image-conditioned model (I2V), this one takes text only: {} would have no effect",
                form::listed(images)
            )
        }
        let missing: Vec<&str> =
            self.modules.iter().map(|m| m.name.as_str()).filter(|name| !layers.contains_key(*name)).collect();
        if !missing.is_empty() {
            let blocks =
                self.modules.iter().filter_map(|module| names::block_of(&module.name)).max().map_or(0, |n| n + 1);
            let why = match blocks > config.num_layers {
                true => format!(" (the LoRA has {blocks} blocks, the model {})", config.num_layers),
                false => String::new(),
            };
            bail!(Shape, "the LoRA has layers that the model does not have{why}: {}", form::listed(missing))
        }
        for module in &self.modules {
            let (inner, out) = layers[&module.name];
            if (module.inner, module.out) != (inner, out) {
                bail!(
                    Shape,
                    "the LoRA is for another model: {} maps {} to {} features, in the model {inner} to {out}",
                    module.name,
                    module.inner,
                    module.out
                )
            }
        }
        Ok(())
    }

    /// The width of the network that these adapters are for, as its blocks' layers tell.
    pub fn width(&self) -> Option<usize> {
        let of_a_block = self.modules.iter().filter(|module| names::block_of(&module.name).is_some());
        let attends = |name: &str| name.contains(".attn1.") || name.ends_with(".attn2.to_q") || name.ends_with("proj");
        of_a_block
            .filter_map(|module| match module.name.as_str() {
                name if attends(name) => Some(module.inner),
                name if name.ends_with("ffn.net.2") || name.contains(".attn2.") => Some(module.out),
                _ => None,
            })
            .next()
    }
}

/// Which of Wan's models has this width.
pub(crate) fn size_name(width: usize) -> &'static str {
    match width {
        1536 => " (Wan 2.1 1.3B)",
        3072 => " (Wan 2.2 5B)",
        5120 => " (Wan 14B)",
        _ => "",
    }
}
