//! Runs `longreel show`: says what a file or folder is, whether anything is missing, and what longreel does with it.

mod parts;

use clap::Args;
use std::path::{Path, PathBuf};

use super::{place, print};
use crate::files::Tensors;
use crate::files::model_folder::{CONFIG, read_config};
use crate::lora::{AdapterFile, is_adapter_key};
use crate::state::named::NamedModel;
use crate::vae::VaeWeights;
use crate::{Error, Result, bail, hub, terminal};
use parts::Part;

/// Say what a model file or folder is, what is missing in it, and what longreel can do with it.
///
/// A pipeline or a part of one (transformer, VAE, text encoder), in diffusers' layout, Wan's own or ComfyUI's single
/// files; a LoRA; a run or checkpoint. Headers and configs are read, no weights but a LoRA's.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A file, a folder, or `hf://owner/name[@revision][/path]`
    #[arg(value_name = "FILE_OR_DIR", value_parser = place())]
    what: String,
}

/// Runs the command.
pub fn run(args: &ShowArgs) -> Result<()> {
    print(described(&hub::resolve(&args.what)?)?)
}

/// What is at `path`, in lines of text.
fn described(path: &Path) -> Result<String> {
    std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let shown = terminal::name(path);
    if path.is_file() {
        return file(path, &shown);
    }
    if path.join("adapter_model.safetensors").is_file() {
        return Ok(super::lora::described(&AdapterFile::open(path)?));
    }
    if path.join("model_index.json").is_file() {
        return pipeline(path, &shown);
    }
    if path.join(CONFIG).is_file() {
        let config = read_config(&path.join(CONFIG))?;
        let is_wans = ["dim", "num_heads"].iter().all(|key| config.get(key).is_some());
        if is_wans && parts::wans_own(path).iter().any(|(_, part)| part.is_some()) {
            return wans_folder(path, &shown);
        }
    }
    if let Some(part) = parts::of_folder(path) {
        return single(&shown, part?);
    }
    let named = NamedModel::find(path)?;
    let Some(checkpoint) = &named.checkpoint else { return single(&shown, parts::transformer(&named.dir)?) };
    let state = checkpoint.state();
    let part = parts::transformer(&named.dir)?;
    Ok(lines(
        format!("{shown}: longreel's checkpoint of step {}", state.step),
        &part.facts,
        &[
            format!("longreel sample {shown} -o OUT      makes clips"),
            format!("longreel status {shown}             says how the run went"),
            "longreel train CONFIG --resume      goes on with the run".to_owned(),
            format!("longreel forward {shown} IN -o OUT  runs the network"),
        ],
    ))
}

/// What a single file is.
fn file(path: &Path, shown: &str) -> Result<String> {
    if let Some(part) = parts::of_pickle(path) {
        return single(shown, part?);
    }
    let tensors = Tensors::open(path)?;
    if tensors.names().any(is_adapter_key) {
        return Ok(super::lora::described(&AdapterFile::open(path)?));
    }
    if VaeWeights::is_vae(path) {
        return single(shown, parts::vae(path)?);
    }
    if let Some(part) = parts::text_encoder_of(&tensors)? {
        return single(shown, part);
    }
    if parts::is_transformer(&tensors) {
        return single(shown, parts::transformer(path)?);
    }
    let some: Vec<&str> = tensors.names().take(4).collect();
    bail!(
        Data,
        "{}: is a safetensors file of {} tensors, and none of a LoRA, a transformer, a VAE or a text encoder that \
         longreel knows: {}, ...",
        path.display(),
        tensors.names().count(),
        some.join(", ")
    )
}

/// One part by itself.
fn single(shown: &str, part: Part) -> Result<String> {
    let uses: Vec<String> = part.uses.iter().map(|text| text.replace("PATH", shown)).collect();
    Ok(lines(format!("{shown}: {}", part.what), &part.facts, &uses))
}

/// A pipeline of diffusers, part by part.
fn pipeline(path: &Path, shown: &str) -> Result<String> {
    let index = read_config(&path.join("model_index.json"))?;
    let class = index.get("_class_name").and_then(|class| class.as_str()).unwrap_or("of an unknown class");
    let two = path.join("transformer_2").is_dir();
    let (mut facts, mut missing) = (vec![], vec![]);
    for name in ["transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder"] {
        let optional = ["transformer_2", "image_encoder"].contains(&name);
        if !path.join(name).is_dir() {
            let wanted = index.get(name).is_some_and(|part| part.get(0).is_some_and(|library| !library.is_null()));
            if wanted || !optional {
                missing.push(name);
            }
            continue;
        }
        facts.push((name.to_owned(), summary(parts::of_pipeline(&path.join(name), name))));
    }
    if !missing.is_empty() {
        facts.push(("missing".to_owned(), missing.join(", ")));
    }
    let uses = if two { uses_of_experts(shown, ["transformer", "transformer_2"]) } else { uses_of_all(shown) };
    Ok(lines(format!("{shown}: a pipeline of diffusers, {class}"), &facts, &uses))
}

/// A folder of Wan's own, part by part.
fn wans_folder(path: &Path, shown: &str) -> Result<String> {
    let mut facts = vec![("transformer".to_owned(), summary(parts::transformer(path)))];
    for (name, found) in parts::wans_own(path) {
        let what = match found {
            Some(found) => summary(parts::of_wans_own(&found, name)),
            None => "missing".to_owned(),
        };
        facts.push((name.to_owned(), what));
    }
    Ok(lines(format!("{shown}: a model in Wan's own layout"), &facts, &uses_of_all(shown)))
}

/// A part in one line, or why it cannot be read.
fn summary(part: Result<Part>) -> String {
    match part {
        Ok(part) => {
            let note = part.facts.iter().find(|(name, _)| ["lacks", "but"].contains(&name.as_str()));
            let weights = part.facts.iter().find(|(name, _)| name == "weights");
            let all =
                [Some(part.what.clone()), weights.map(|(_, w)| w.clone()), note.map(|(n, why)| format!("{n} {why}"))];
            all.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
        Err(e) => format!("cannot be read: {}", terminal::one_line(e)),
    }
}

fn uses_of_all(shown: &str) -> Vec<String> {
    vec![
        format!("[model] from = \"{shown}\"   trains it (with [vae] from, on latents)"),
        format!("longreel encode CLIPS --vae {shown} -o OUT   makes latents"),
        format!("longreel forward {shown} IN -o OUT           runs the network"),
        format!("longreel lora merge {shown} LORA -o OUT      adds a LoRA to its weights"),
    ]
}

fn uses_of_experts(shown: &str, [high, low]: [&str; 2]) -> Vec<String> {
    vec![format!(
        "two experts: one is named at a time, {shown}/{high} (high noise) or {shown}/{low} (low noise), wherever a \
         model is named"
    )]
}

/// A title, facts in two columns, and what can be done.
fn lines(title: String, facts: &[(String, String)], uses: &[String]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut all = vec![title];
    all.extend(facts.iter().map(|(name, fact)| format!("  {name:width$}  {fact}")));
    if !uses.is_empty() {
        all.push("longreel can:".to_owned());
        all.extend(uses.iter().map(|text| format!("  {text}")));
    }
    all.join("\n")
}

/// The first of these names that is a file of the folder.
fn first_file(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}
