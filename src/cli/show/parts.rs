//! Recognises the parts of a pipeline by their configs and tensors: transformer, VAE, text encoder, tokenizer,
//! scheduler.

use candle_core::pickle::PthTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::first_file;
use crate::files::model_folder::{CONFIG, read_config};
use crate::files::{Tensors, check_names, file_size};
use crate::model::layout::Layout;
use crate::model::names::{FIRST, FIRST_ORIGINAL, is_of_images};
use crate::model::variant::Variant;
use crate::vae::VaeWeights;
use crate::{Error, Result, bail};

/// A part of a pipeline, or a model of one part.
pub(super) struct Part {
    /// What it is, in a few words.
    pub what: String,
    /// What is to be said of it, by a word each; `lacks` and `but` say what keeps it from being used.
    pub facts: Vec<(String, String)>,
    /// What longreel does with it; PATH is where it is.
    pub uses: Vec<&'static str>,
}

/// Names and shapes of tensors.
type Shapes = BTreeMap<String, Vec<usize>>;

fn fact(name: &str, text: impl Into<String>) -> (String, String) {
    (name.to_owned(), text.into())
}

/// How many elements there are, for people.
fn count(shapes: &Shapes) -> String {
    let digits = shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>().to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Parameters, types and bytes of safetensors.
fn weights(tensors: &Tensors) -> Result<(String, String)> {
    let dtypes: BTreeSet<Dtype> = tensors.names().map(|name| tensors.dtype(name)).collect::<Result<_>>()?;
    let shapes = tensors.shapes();
    let bytes = shapes.iter().try_fold(0, |sum, (name, shape)| {
        let elements: usize = shape.iter().product();
        Ok::<_, Error>(sum + (elements * tensors.dtype(name)?.bitsize() / 8) as u64)
    })?;
    let dtypes: Vec<String> = dtypes.iter().map(|dtype| dtype.to_string().to_lowercase()).collect();
    Ok(fact("weights", format!("{} parameters in {}, {}", count(&shapes), dtypes.join(" and "), file_size(bytes))))
}

/// Whether a file has a transformer's first block.
pub(super) fn is_transformer(tensors: &Tensors) -> bool {
    tensors.names().any(|name| name.ends_with(FIRST) || name.ends_with(FIRST_ORIGINAL))
}

/// A transformer's folder or file.
pub(super) fn transformer(path: &Path) -> Result<Part> {
    let layout = Layout::open(path)?;
    let variant = Variant::of_config(&layout.config).map_err(|e| e.at(path.display()))?;
    let config = &variant.config;
    let [t, h, w] = config.patch_size;
    let naming = if layout.naming.original { "Wan's own names" } else { "diffusers' names" };
    let prefix = match layout.naming.prefix {
        "" => String::new(),
        prefix => format!(" after `{prefix}`"),
    };
    let sizes_of =
        if layout.has_config { "sizes in config.json" } else { "no config.json: sizes are those of its tensors" };
    let channels = match config.in_channels == config.out_channels {
        true => format!("{} channels", config.in_channels),
        false => format!("{} channels in, {} out", config.in_channels, config.out_channels),
    };
    let mut facts = vec![
        fact("layout", format!("{naming}{prefix}, {sizes_of}")),
        fact(
            "sizes",
            format!(
                "{} wide, {} heads of {}, {} blocks, MLP {}, text {}; patches of {t} x {h} x {w} with {channels}",
                config.width(),
                config.num_attention_heads,
                config.attention_head_dim,
                config.num_layers,
                config.ffn_dim,
                if config.text_dim == 0 { "none".to_owned() } else { config.text_dim.to_string() },
            ),
        ),
        weights(&layout.tensors)?,
    ];
    let mut found = layout.shapes();
    found.retain(|name, _| !name.ends_with("norm_added_q.weight")); // which nothing uses
    if let Err(e) = check_names(layout.tensors.path(), &found, &variant.shapes()) {
        let said = e.to_string();
        facts.push(fact("lacks", said.rsplit_once("tensors: ").map_or(said.as_str(), |(_, what)| what)));
    }
    let images = found.keys().any(|name| is_of_images(name));
    let mut uses = vec![
        "[model] from = \"PATH\"                     trains it",
        "longreel forward PATH IN -o OUT           runs it",
        "longreel lora merge PATH LORA -o OUT      adds a LoRA to its weights",
    ];
    if let Some(why) = variant.unsupported().or(images.then_some("it has layers for images, which are not supported")) {
        facts.push(fact("but", why));
        uses.clear();
    }
    Ok(Part { what: format!("a transformer, {}", variant.name()), facts, uses })
}

/// A VAE's folder or file.
pub(super) fn vae(path: &Path) -> Result<Part> {
    let weights = VaeWeights::open(path)?;
    let config = &weights.config;
    let name = match (config.is_residual, config.z_dim) {
        (false, 16) => "Wan 2.1's VAE",
        (true, 48) => "Wan 2.2's VAE (for TI2V 5B)",
        _ => "a VAE of Wan's kind",
    };
    let shapes: Shapes = crate::vae::tensors(config).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    let space = config.space();
    Ok(Part {
        what: name.to_owned(),
        facts: vec![
            fact(
                "latents",
                format!(
                    "{} channels, {} x {} pixels each, {} frames to 1",
                    space.channels, space.side, space.side, space.time
                ),
            ),
            fact("weights", format!("{} parameters", count(&shapes))),
        ],
        uses: vec![
            "[vae] from = \"PATH\"                       trains on its latents",
            "longreel encode CLIPS --vae PATH -o OUT   makes latents",
            "longreel decode LATENTS --vae PATH -o OUT makes clips of latents",
        ],
    })
}

/// A text encoder's tensors, by their names; none of anything else.
fn text_encoder(shapes: &Shapes) -> Option<(String, Vec<(String, String)>)> {
    let (table, kind, block) = [
        ("token_embedding.weight", "a UMT5 encoder under Wan's names", "blocks."),
        ("shared.weight", "a T5 or UMT5 encoder", "encoder.block."),
        ("encoder.embed_tokens.weight", "a T5 or UMT5 encoder", "encoder.block."),
        ("embeddings.word_embeddings.weight", "a BERT encoder", "encoder.layer."),
    ]
    .into_iter()
    .find(|(table, ..)| shapes.contains_key(*table))?;
    let &[vocabulary, width] = shapes.get(table)?.as_slice() else { return None };
    let layers: BTreeSet<&str> = shapes.keys().filter_map(|name| name.strip_prefix(block)?.split('.').next()).collect();
    let kind = match (vocabulary, width, layers.len()) {
        (256_384, 4096, 24) => "UMT5-XXL's encoder, the one of every Wan",
        _ => kind,
    };
    Some((
        kind.to_owned(),
        vec![
            fact("sizes", format!("{vocabulary} tokens, {width} wide, {} layers", layers.len())),
            fact("weights", format!("{} parameters", count(shapes))),
        ],
    ))
}

const ENCODES: &str = "[text] from = \"PATH\"   encodes captions and prompts (a tokenizer.json must be with it)";

/// A file that may be a text encoder.
pub(super) fn text_encoder_of(tensors: &Tensors) -> Result<Option<Part>> {
    let Some((what, mut facts)) = text_encoder(&tensors.shapes()) else { return Ok(None) };
    if let Some(last) = facts.last_mut() {
        *last = weights(tensors)?;
    }
    let mut uses = vec![ENCODES];
    for name in tensors.names().filter(|name| *name != "spiece_model") {
        if let Err(e) = tensors.check_float(name) {
            facts.push(fact("but", e.to_string()));
            uses.clear();
            break;
        }
    }
    Ok(Some(Part { what, facts, uses }))
}

/// A PyTorch file: one of Wan's own; none of another kind of file.
pub(super) fn of_pickle(path: &Path) -> Option<Result<Part>> {
    let mut magic = [0; 2];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).ok()?;
    (&magic == b"PK").then(|| {
        let tensors = PthTensors::new(path, None)
            .map_err(|e| Error::Data(format!("{}: is no PyTorch file of tensors: {e}", path.display())))?;
        let shapes: Shapes =
            tensors.tensor_infos().iter().map(|(name, info)| (name.clone(), info.layout.dims().to_vec())).collect();
        if let Some((what, facts)) = text_encoder(&shapes) {
            return Ok(Part { what, facts, uses: vec![ENCODES] });
        }
        if shapes.contains_key("visual.cls_embedding") {
            let facts = vec![fact("but", "image conditioning (I2V) is not supported")];
            return Ok(Part { what: "Wan's CLIP image encoder".to_owned(), facts, uses: vec![] });
        }
        vae(path)
    })
}

/// A folder with a config.json of a VAE, a transformer or a text encoder; none of another.
pub(super) fn of_folder(path: &Path) -> Option<Result<Part>> {
    if VaeWeights::is_vae(path) {
        return Some(vae(path));
    }
    let config = read_config(&path.join(CONFIG)).ok()?;
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if ["umt5", "t5", "mt5", "bert"].contains(&text("model_type").as_str()) {
        return Some(encoder_folder(path, &text("model_type")));
    }
    (text("_class_name") == "WanTransformer3DModel" || config.get("num_heads").is_some()).then(|| transformer(path))
}

/// A text encoder's folder.
fn encoder_folder(path: &Path, kind: &str) -> Result<Part> {
    let stem = ["model.safetensors.index.json", "model.safetensors"];
    let Some(file) = first_file(path, &stem) else {
        bail!(Data, "{}: is a text encoder's folder ({kind}) without {}", path.display(), stem[1])
    };
    let sharded = file.extension().is_some_and(|e| e == "json");
    let tensors = if sharded { Tensors::open_sharded(&file)? } else { Tensors::open(&file)? };
    match text_encoder_of(&tensors)? {
        Some(part) => Ok(part),
        None => bail!(Data, "{}: has no embeddings of tokens, so it is no text encoder", file.display()),
    }
}

/// A part of a diffusers pipeline.
pub(super) fn of_pipeline(path: &Path, name: &str) -> Result<Part> {
    let plain = |what: String| Ok(Part { what, facts: vec![], uses: vec![] });
    match name {
        "transformer" | "transformer_2" => transformer(path),
        "vae" => vae(path),
        "text_encoder" => of_folder(path).unwrap_or_else(|| bail!(Data, "{}: is no text encoder", path.display())),
        "tokenizer" => match path.join("tokenizer.json").is_file() {
            true => plain("tokenizer.json is there".to_owned()),
            false => bail!(Data, "{}: has no tokenizer.json", path.display()),
        },
        "scheduler" => {
            let config = read_config(&path.join("scheduler_config.json"))?;
            let class = config.get("_class_name").and_then(Value::as_str).unwrap_or("a scheduler").to_owned();
            let shift = ["flow_shift", "shift"].iter().find_map(|key| config.get(*key));
            plain(shift.map_or(class.clone(), |shift| format!("{class}, shift {shift}")))
        }
        _ => plain("not used: image conditioning (I2V) is not supported".to_owned()),
    }
}

/// The parts beside the transformer in a folder of Wan's own, and where each is.
pub(super) fn wans_own(path: &Path) -> [(&'static str, Option<PathBuf>); 3] {
    [
        ("vae", first_file(path, &["Wan2.1_VAE.pth", "Wan2.2_VAE.pth"])),
        ("text encoder", first_file(path, &["models_t5_umt5-xxl-enc-bf16.pth"])),
        ("tokenizer", first_file(path, &["google/umt5-xxl/tokenizer.json"])),
    ]
}

/// One of [`wans_own`].
pub(super) fn of_wans_own(path: &Path, name: &str) -> Result<Part> {
    match name {
        "tokenizer" => Ok(Part { what: "tokenizer.json is there".to_owned(), facts: vec![], uses: vec![] }),
        _ => of_pickle(path).unwrap_or_else(|| bail!(Data, "{}: is no PyTorch file", path.display())),
    }
}
