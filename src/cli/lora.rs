//! Runs `longreel lora`: shows LoRA files, converts them between the forms of other programs, merges them into a model.

use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{may_write, path, place, print};
use crate::files::check_target;
use crate::lora::{Adapter, AdapterFile, Form, Merged, merge, size_name, write};
use crate::model::layout::Layout;
use crate::model::{ModelConfig, names};
use crate::state::named::NamedModel;
use crate::terminal::counted;
use crate::{Result, bail, hub, terminal};

/// Show, convert and merge LoRA files.
///
/// A LoRA file is a safetensors file in the form of ComfyUI, diffusers, kohya's tools or DiffSynth, or a folder of
/// peft's; its keys tell which. `hf://owner/name/FILE` may be named too.
#[derive(Debug, Args)]
pub struct LoraArgs {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Debug, Subcommand)]
enum LoraCommand {
    Show(ShowArgs),
    Convert(ConvertArgs),
    Merge(MergeArgs),
}

/// Show what a LoRA file holds: its form, for which model it is, ranks, scales, and what its header says.
#[derive(Debug, Args)]
struct ShowArgs {
    /// The LoRA
    #[arg(value_name = "LORA", value_parser = place())]
    lora: String,
}

/// Write a LoRA in another form.
///
/// `comfy` has the scale multiplied into B, so that every program reads it alike; `diffusers` has it in its header;
/// `kohya` as alpha tensors, for files that adapt all ten layers of every block.
#[derive(Debug, Args)]
struct ConvertArgs {
    /// The LoRA
    #[arg(value_name = "LORA", value_parser = place())]
    lora: String,
    /// The file to write
    #[arg(short, long, value_name = "OUT.safetensors", value_parser = path())]
    output: PathBuf,
    /// The form to write
    #[arg(long, default_value = "comfy")]
    form: Form,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Add LoRAs to a model's weights.
///
/// The sum is taken in f32 and rounded once to the type that the base stores. A base that is a folder gives a folder, a
/// single file a file, with the base's own names. Changes that the stored type is too coarse for are counted.
#[derive(Debug, Args)]
struct MergeArgs {
    /// A transformer or pipeline folder, a single file, a run or a checkpoint, as for `longreel forward`
    #[arg(value_name = "BASE", value_parser = place())]
    base: String,
    /// LoRAs, each with a scale of its own: `FILE` or `FILE:0.8`
    #[arg(value_name = "LORA[:SCALE]", required = true)]
    loras: Vec<ScaledLora>,
    /// The folder or file to write
    #[arg(short, long, value_name = "OUT", value_parser = path())]
    output: PathBuf,
}

/// A LoRA that is named on the command line, `FILE` or `FILE:scale`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScaledLora {
    /// The file, or its name on a hub.
    pub place: String,
    pub scale: f64,
}

impl FromStr for ScaledLora {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (place, scale) = match text.rsplit_once(':') {
            // A number after the last colon is a scale: no path of a hub's is one, and a file of such a name can be
            // named with a scale behind it.
            Some((place, scale)) if scale.parse::<f64>().is_ok() => (place, scale.parse().unwrap_or(1.0)),
            _ => (text, 1.0),
        };
        if place.is_empty() || !f64::is_finite(scale) {
            return Err("must be a file, or a file and a scale: FILE:0.8".to_owned());
        }
        let place = match place.strip_prefix('~') {
            Some(_) => crate::files::expand_home(place).map_err(|e| e.to_string())?.display().to_string(),
            None => place.to_owned(),
        };
        Ok(Self { place, scale })
    }
}

impl ScaledLora {
    /// Reads the file.
    ///
    /// # Errors
    /// Those of [`AdapterFile::open`], and of the hub.
    pub fn open(&self) -> Result<AdapterFile> {
        AdapterFile::open(&hub::resolve(&self.place)?)
    }
}

/// Runs the command.
pub fn run(args: &LoraArgs) -> Result<()> {
    match &args.command {
        LoraCommand::Show(args) => print(described(&AdapterFile::open(&hub::resolve(&args.lora)?)?)),
        LoraCommand::Convert(args) => convert(args),
        LoraCommand::Merge(args) => run_merge(args),
    }
}

fn convert(args: &ConvertArgs) -> Result<()> {
    may_write(&args.output, args.force)?;
    let file = AdapterFile::open(&hub::resolve(&args.lora)?)?;
    write(&args.output, &file.adapter, args.form, &file.metadata)?;
    print(terminal::name(&args.output))
}

fn run_merge(args: &MergeArgs) -> Result<()> {
    let base = Layout::open(&NamedModel::find(&hub::resolve(&args.base)?)?.dir)?;
    check_output(&args.output, base.path.is_dir())?;
    let files = args.loras.iter().map(ScaledLora::open).collect::<Result<Vec<_>>>()?;
    let network = ModelConfig::from_json(&base.config).map_err(|e| e.at(base.path.display()))?;
    files.iter().try_for_each(|file| file.check(&network))?;
    let scaled: Vec<(&Adapter, f64)> =
        files.iter().zip(&args.loras).map(|(file, lora)| (&file.adapter, lora.scale)).collect();
    let merged = merge(&base, &scaled, &args.output)?;
    let Merged { layers, changed, swallowed } = merged;
    let dtype = base.tensors.names().find_map(|key| base.tensors.dtype(key).ok());
    let stored = dtype.map_or_else(String::new, |dtype| dtype.to_string().to_lowercase());
    let lost = 100.0 * swallowed as f64 / changed.max(1) as f64;
    print(format!(
        "{}: {} changed; of {changed} elements that the adapters change, {swallowed} ({lost:.1} %) are as before, \
         since {stored} is too coarse for the change",
        terminal::name(&args.output),
        counted(layers, "layer", "layers")
    ))
}

/// Refuses an output before the work.
fn check_output(output: &Path, folder: bool) -> Result<()> {
    if folder {
        let occupied = std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
        if occupied || output.is_file() {
            bail!(Config, "{}: exists already; remove it or choose another name", output.display())
        }
        return Ok(());
    }
    check_target(output)?;
    may_write(output, false)
}

/// A LoRA file in lines of text.
pub(super) fn described(file: &AdapterFile) -> String {
    let modules = &file.adapter.modules;
    let width = file.adapter.width();
    let blocks =
        modules.iter().filter_map(|module| names::block_of(&module.name)).collect::<std::collections::BTreeSet<_>>();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for module in modules {
        let kind = match names::block_of(&module.name) {
            Some(block) => module.name.replacen(&format!("blocks.{block}."), "", 1),
            None => module.name.clone(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let spread = |values: Vec<f64>| {
        let mut values: Vec<String> = values.iter().map(|value| format!("{value}")).collect();
        values.sort_by(|a, b| a.len().cmp(&b.len()).then(a.cmp(b)));
        values.dedup();
        values.join(", ")
    };
    let images = modules.iter().any(|module| names::is_of_images(&module.name));
    let dtypes: Vec<String> = file.dtypes.iter().map(|dtype| dtype.to_string().to_lowercase()).collect();
    let mut lines = vec![
        format!("{}: a LoRA", terminal::name(&file.path)),
        format!("  form      {}", file.form.described()),
        format!(
            "  for       a transformer {}{}{}",
            width.map_or_else(|| "of unknown width".to_owned(), |width| format!("{width} wide{}", size_name(width))),
            match blocks.last() {
                Some(last) if blocks.len() == last + 1 => format!(", {}", counted(blocks.len(), "block", "blocks")),
                Some(last) => format!(", {} of the first {}", counted(blocks.len(), "block", "blocks"), last + 1),
                None => ", no block".to_owned(),
            },
            if images { ", image-conditioned (I2V), which is not supported" } else { "" }
        ),
        format!(
            "  layers    {}: {}",
            modules.len(),
            kinds.iter().map(|(kind, n)| format!("{kind} ({n})")).collect::<Vec<_>>().join(", ")
        ),
        format!("  rank      {}", spread(modules.iter().map(|module| module.rank as f64).collect())),
        format!(
            "  scale     {} (alpha / rank; alpha: {})",
            spread(modules.iter().map(|module| (module.scale() * 1e6).round() / 1e6).collect()),
            file.scales
        ),
        format!("  size      {} parameters in {}", file.adapter.count(), dtypes.join(" and ")),
    ];
    for (key, value) in
        file.metadata.iter().filter(|(key, _)| !["format", "lora_adapter_metadata"].contains(&key.as_str()))
    {
        lines.push(format!("  {key} = {}", terminal::shorten(value, 200)));
    }
    lines
        .push("  longreel lora convert LORA -o OUT --form comfy|diffusers|kohya writes it in another form;".to_owned());
    lines.push("  longreel lora merge BASE LORA -o OUT adds it to a model's weights".to_owned());
    lines.join("\n")
}
