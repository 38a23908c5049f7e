//! Opens a transformer's weights in any layout that they are published in, under diffusers' names.
//!
//! Layouts are told apart by their tensors' names, as both diffusers and Wan call their files
//! `diffusion_pytorch_model.safetensors`:
//!
//! - diffusers' folder, or a pipeline's with `transformer` in it;
//! - Wan's own folder: the same files, Wan's names, a config.json of its own kind;
//! - a single file, as ComfyUI has it: Wan's names, maybe behind `model.diffusion_model.`, and no config: sizes are
//!   those of its tensors.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::{CONFIG, Folder, find_weights, read_config};
use super::names::{self, FIRST_ORIGINAL};
use crate::files::Tensors;
use crate::files::model_folder::{is_pipeline, lacks};
use crate::{Error, Result, bail};

/// What ComfyUI and others put before names.
const PREFIXES: [&str; 2] = ["model.diffusion_model.", "diffusion_model."];

/// The features of a head in every published model; a file without a config does not tell them.
const HEAD_DIM: usize = 128;

/// The folders of a model of two experts, in Wan's own layout and in diffusers'.
const EXPERTS: [[&str; 2]; 2] = [["high_noise_model", "low_noise_model"], ["transformer", "transformer_2"]];

/// A transformer's files as they are, and how their names are to be read.
#[derive(Debug)]
pub struct Layout {
    /// The folder, or the file.
    pub path: PathBuf,
    /// config.json, or what the tensors tell.
    pub config: Value,
    /// Whether there is a config.json.
    pub has_config: bool,
    /// The tensors under the files' own names.
    pub tensors: Tensors,
    pub naming: Naming,
}

/// How a file's names are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// What stands before each name.
    pub prefix: &'static str,
    /// Whether names are Wan's own.
    pub original: bool,
}

impl Naming {
    /// How the names of these tensors are to be read.
    fn of(tensors: &Tensors) -> Self {
        let has = |prefix: &str| tensors.names().any(|name| name.starts_with(prefix));
        let prefix = PREFIXES.into_iter().find(|prefix| has(prefix)).unwrap_or_default();
        Self { prefix, original: tensors.contains(&format!("{prefix}{FIRST_ORIGINAL}")) }
    }

    /// diffusers' name of a file's tensor; none of what is beside the transformer in the file. Names that are not known
    /// stay as they are.
    pub fn name(self, key: &str) -> Option<String> {
        let name = key.strip_prefix(self.prefix)?;
        let known = if self.original { names::parameter(name) } else { None };
        Some(known.unwrap_or_else(|| name.to_owned()))
    }
}

impl Layout {
    /// Finds a transformer's weights at `path` and reads their headers.
    ///
    /// # Errors
    /// There is no transformer; two experts are there and neither is named; a file is damaged, of another format, or
    /// stored in a type that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let path = find(path)?;
        let config = if path.is_dir() { path.join(CONFIG) } else { path.with_file_name(CONFIG) };
        let weights = if path.is_dir() { find_weights(&path)? } else { path.clone() };
        let sharded = weights.extension().is_some_and(|e| e == "json");
        let tensors = if sharded { Tensors::open_sharded(&weights)? } else { Tensors::open(&weights)? };
        let naming = Naming::of(&tensors);
        tensors.names().filter(|key| key.starts_with(naming.prefix)).try_for_each(|key| tensors.check_float(key))?;
        let has_config = config.is_file();
        let config = match has_config {
            true => read_config(&config)?,
            false => guess(&tensors, naming).map_err(|e| e.at(weights.display()))?,
        };
        Ok(Self { path, config, has_config, tensors, naming })
    }

    /// The weights under diffusers' names.
    ///
    /// # Errors
    /// Two tensors have the same name.
    pub fn into_folder(self) -> Result<Folder> {
        let naming = self.naming;
        Ok(Folder::new(self.path, self.config, self.tensors.renamed(|key| naming.name(key))?))
    }

    /// Names and shapes of the tensors under diffusers' names.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let named = |(key, shape): (String, Vec<usize>)| Some((self.naming.name(&key)?, shape));
        self.tensors.shapes().into_iter().filter_map(named).collect()
    }
}

/// Whether a folder has two experts, as Wan 2.2 A14B does, in either layout.
pub fn has_experts(path: &Path) -> bool {
    EXPERTS.iter().any(|both| both.iter().all(|expert| path.join(expert).is_dir()))
}

/// The folder or file of the transformer that `path` names.
///
/// # Errors
/// There is none, or there are two experts.
pub fn find(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !path.is_dir() || path.join(CONFIG).is_file() {
        return Ok(path.to_owned());
    }
    for [high, low] in EXPERTS {
        if path.join(high).is_dir() && path.join(low).is_dir() {
            bail!(
                Data,
                "{shown}: is a model of two experts (Wan 2.2 A14B), of which a run takes one: name {shown}/{high} \
                 (high noise) or {shown}/{low} (low noise)"
            )
        }
    }
    let inner = path.join("transformer");
    if inner.join(CONFIG).is_file() {
        return Ok(inner);
    }
    if is_pipeline(path) {
        return Err(lacks(path, "transformer", "a transformer's folder or file"));
    }
    bail!(
        Data,
        "{shown}: has no {CONFIG}, so it is not a model folder; a transformer's or pipeline's folder of diffusers, a \
         folder of Wan's own, or a safetensors file is needed"
    )
}

/// The config of a file that has none beside it: the sizes of its tensors, and the head of every published model.
///
/// # Errors
/// A tensor that tells a size is missing.
fn guess(tensors: &Tensors, naming: Naming) -> Result<Value> {
    let shapes: BTreeMap<String, Vec<usize>> = {
        let named = |(key, shape): (String, Vec<usize>)| Some((naming.name(&key)?, shape));
        tensors.shapes().into_iter().filter_map(named).collect()
    };
    let shape = |name: &str| match shapes.get(name) {
        Some(shape) => Ok(shape.as_slice()),
        None => Err(Error::Data(format!("is not a transformer of Wan's kind: it has no `{name}`"))),
    };
    let &[width, channels, t, h, w] = shape("patch_embedding.weight")? else {
        bail!(Data, "`patch_embedding.weight` is {:?}; five dimensions are needed", shape("patch_embedding.weight")?)
    };
    let columns = |name: &str| Ok::<_, Error>(shape(name)?.get(1).copied().unwrap_or(0));
    if width == 0 || !width.is_multiple_of(HEAD_DIM) {
        bail!(
            Data,
            "is {width} wide, which heads of {HEAD_DIM} do not divide; a {CONFIG} beside it must tell its heads"
        )
    }
    let patch = t * h * w;
    let out = shape("proj_out.weight")?.first().copied().unwrap_or(0);
    if patch == 0 || !out.is_multiple_of(patch) {
        bail!(Data, "gives {out} values for a patch of {t} x {h} x {w}")
    }
    let text = columns("condition_embedder.text_embedder.linear_1.weight").unwrap_or(0);
    let layers = shapes.keys().filter_map(|name| names::block_of(name)).max().map_or(0, |last| last + 1);
    Ok(json!({
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": columns("blocks.0.attn2.add_k_proj.weight").ok(),
        "attention_head_dim": HEAD_DIM,
        "cross_attn_norm": shapes.contains_key("blocks.0.norm2.weight"),
        "eps": 1e-6,
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")?.first(),
        "freq_dim": columns("condition_embedder.time_embedder.linear_1.weight")?,
        "image_dim": columns("condition_embedder.image_embedder.ff.net.0.proj.weight").ok(),
        "in_channels": channels,
        "num_attention_heads": width / HEAD_DIM,
        "num_layers": layers,
        "out_channels": out / patch,
        "patch_size": [t, h, w],
        "pos_embed_seq_len": columns("condition_embedder.image_embedder.pos_embed").ok(),
        "qk_norm": shapes.contains_key("blocks.0.attn1.norm_q.weight").then_some("rms_norm_across_heads"),
        "rope_max_seq_len": 1024,
        "text_dim": text,
    }))
}

/// A config.json of Wan's own kind as diffusers would write it; none of another kind.
pub(super) fn of_wans_own(config: &Value) -> Option<Value> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let (dim, heads) = (number("dim")?, number("num_heads").filter(|heads| *heads > 0)?);
    let mut ours = json!({"_class_name": "WanTransformer3DModel", "attention_head_dim": dim / heads});
    let same = [
        ("num_heads", "num_attention_heads"),
        ("ffn_dim", "ffn_dim"),
        ("freq_dim", "freq_dim"),
        ("in_dim", "in_channels"),
        ("out_dim", "out_channels"),
        ("num_layers", "num_layers"),
        ("text_dim", "text_dim"),
        ("eps", "eps"),
        ("patch_size", "patch_size"),
        ("cross_attn_norm", "cross_attn_norm"),
    ];
    for (theirs, key) in same {
        if let Some(value) = config.get(theirs) {
            ours[key] = value.clone();
        }
    }
    Some(ours)
}
