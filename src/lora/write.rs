//! Writes LoRA files in the forms that others load; the same adapters give the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use super::header::{PEFT, network, peft_json};
use super::{Adapter, Form};
use crate::files::write_tensors_with;
use crate::model::names;
use crate::{Error, Result, bail};

/// The layers of a block that kohya's converters need, each with its alpha, in every block.
const TEN: [&str; 10] = [
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ffn.net.0.proj",
    "ffn.net.2",
];

/// Writes a LoRA file in f32, atomically. `metadata` is what its header says beside ranks and scales
/// ([`RunFacts::metadata`](super::RunFacts::metadata), or that of the file which the adapters come from).
///
/// ComfyUI's form has each scale multiplied into B, so that every reader agrees; diffusers' has scales in its header,
/// kohya's as tensors.
///
/// # Errors
/// There are no adapters; a layer has no name in the form; kohya's form is asked for and a block lacks one of the ten
/// layers, or there are others; or the file cannot be written.
pub fn write(path: &Path, adapter: &Adapter, form: Form, metadata: &BTreeMap<String, String>) -> Result<()> {
    if adapter.modules.is_empty() {
        bail!(Config, "{}: there are no adapters to write", path.display())
    }
    let folded;
    let adapter = match form {
        Form::Comfy | Form::Plain => {
            folded = adapter.clone().folded();
            &folded
        }
        Form::Kohya => {
            check_targets(adapter).map_err(|e| e.at(path.display()))?;
            adapter
        }
        Form::Diffusers => adapter,
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![];
    for module in &adapter.modules {
        let [a, b] = keys(form, &module.name)?;
        tensors.push((a, vec![module.rank, module.inner], module.a.clone()));
        tensors.push((b, vec![module.out, module.rank], module.b.clone()));
        if form == Form::Kohya {
            let alpha = format!("lora_unet_{}.alpha", underscored(&module.name)?);
            tensors.push((alpha, vec![], vec![module.alpha as f32]));
        }
    }
    let mut header = metadata.clone();
    header.remove("format"); // which the writer writes
    header.remove(PEFT);
    header.extend(network(adapter).map(|(key, value)| (key.to_owned(), value)));
    if form == Form::Diffusers {
        header.insert(PEFT.to_owned(), peft_json(adapter));
    }
    let header: Vec<(&str, String)> = header.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    write_tensors_with(path, &header, tensors)
}

/// The keys of A and B.
fn keys(form: Form, layer: &str) -> Result<[String; 2]> {
    let (stem, [a, b]) = match form {
        Form::Comfy => (format!("diffusion_model.{}", original(layer)?), ["lora_A", "lora_B"]),
        Form::Plain => (original(layer)?, ["lora_A.default", "lora_B.default"]),
        Form::Diffusers => (format!("transformer.{layer}"), ["lora_A", "lora_B"]),
        Form::Kohya => (format!("lora_unet_{}", underscored(layer)?), ["lora_down", "lora_up"]),
    };
    Ok([format!("{stem}.{a}.weight"), format!("{stem}.{b}.weight")])
}

fn original(layer: &str) -> Result<String> {
    names::original_layer(layer).ok_or_else(|| {
        Error::Config(format!("{layer}: Wan's transformer has no such layer, so no file of Wan's names can have it"))
    })
}

fn underscored(layer: &str) -> Result<String> {
    Ok(original(layer)?.replace('.', "_"))
}

/// Refuses what kohya's converters fail on.
fn check_targets(adapter: &Adapter) -> Result<()> {
    let advice = "so kohya's tools and diffusers could not load it; write the comfy form";
    let blocks = adapter.modules.iter().filter_map(|module| names::block_of(&module.name)).max().map_or(0, |n| n + 1);
    if let Some(module) = adapter.modules.iter().find(|module| names::block_of(&module.name).is_none()) {
        bail!(Config, "kohya's form is for the blocks' layers; {} is outside them, {advice}", module.name)
    }
    let all = (0..blocks).flat_map(|block| TEN.map(|layer| format!("blocks.{block}.{layer}")));
    let missing: Vec<String> = all.filter(|name| adapter.module(name).is_none()).collect();
    match missing.first() {
        None => Ok(()),
        Some(first) => bail!(
            Config,
            "kohya's form is for all ten layers of every block; {} of {} are missing, the first is {first}, {advice}",
            missing.len(),
            10 * blocks
        ),
    }
}
