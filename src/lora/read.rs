//! Reads LoRA files of every form; what is in a file and not understood is named and refused.

use safetensors::tensor::Dtype;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::form::{self, Form, Key, Part, Unknown};
use super::header::{PEFT, Peft, TRANSFORMER};
use super::{Adapter, AdapterModule};
use crate::files::Tensors;
use crate::files::model_folder::read_config;
use crate::model::{ModelConfig, names};
use crate::{Error, Result, bail};

/// What peft calls the two files of its folders.
const PEFT_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// A LoRA file that was read.
#[derive(Debug)]
pub struct AdapterFile {
    pub path: PathBuf,
    pub form: Form,
    pub adapter: Adapter,
    /// What its header says.
    pub metadata: BTreeMap<String, String>,
    /// The types that its tensors are stored in.
    pub dtypes: Vec<Dtype>,
    /// Where the scales come from, for people.
    pub scales: &'static str,
}

/// The keys of one layer's tensors.
#[derive(Default)]
struct Keys {
    a: Option<String>,
    b: Option<String>,
    alpha: Option<String>,
}

impl AdapterFile {
    /// Reads a LoRA file, or a folder of peft's with one.
    ///
    /// alpha is an alpha tensor's, or what the settings of peft say, or the rank where there is neither.
    ///
    /// # Errors
    /// It is no safetensors file or damaged; has keys that are not understood (each is named), layers without A or B,
    /// of other shapes than `[r, inner]` and `[out, r]`, values that are not finite or no floats, or settings that do
    /// not fit its tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join(PEFT_FILES[0]) } else { path.to_owned() };
        if path.is_dir() && !file.is_file() {
            let (folder, file) = (path.display(), PEFT_FILES[0]);
            bail!(Data, "{folder}: is a folder without {file}, which peft's have; name the LoRA's own file")
        }
        let tensors = Tensors::open(&file)?;
        let (form, layers) = sorted_keys(&tensors).map_err(|e| e.at(file.display()))?;
        let metadata = tensors.all_metadata();
        let settings = settings(&file, form, &metadata)?;
        let at = |why: String| Error::Data(format!("{}: {why}", file.display()));
        let (mut modules, mut alphas) = (vec![], 0);
        for (layer, keys) in &layers {
            let (a_key, b_key) = match (&keys.a, &keys.b) {
                (Some(a), Some(b)) => (a, b),
                (Some(a), None) => return Err(at(format!("has `{a}`, but not its B (lora_B or lora_up)"))),
                (None, Some(b)) => return Err(at(format!("has `{b}`, but not its A (lora_A or lora_down)"))),
                (None, None) => return Err(at(format!("has alpha of {layer}, but neither A nor B"))),
            };
            let (&[rank, inner], &[out, also]) = (tensors.shape(a_key)?, tensors.shape(b_key)?) else {
                return Err(at(format!("`{a_key}` and `{b_key}` are no matrices; only linear layers have adapters")));
            };
            if rank != also || rank == 0 || inner == 0 || out == 0 {
                let shapes = [tensors.shape(a_key)?, tensors.shape(b_key)?];
                return Err(at(format!(
                    "`{a_key}` is {:?} and `{b_key}` {:?}; [r, inner] and [out, r] with one r of at least 1 are needed",
                    shapes[0], shapes[1]
                )));
            }
            let settled = settings.as_ref().map(|s| s.alpha(layer, rank)).transpose().map_err(at)?;
            let stored = keys.alpha.as_ref().map(|key| alpha_tensor(&tensors, key)).transpose()?;
            if let (Some(stored), Some(settled)) = (stored, settled)
                && stored != settled
            {
                return Err(at(format!("alpha of {layer} is {stored} as a tensor and {settled} in the header")));
            }
            alphas += usize::from(stored.is_some());
            let [a, b] = [finite(&tensors, a_key)?, finite(&tensors, b_key)?];
            let alpha = stored.or(settled).unwrap_or(rank as f64);
            modules.push(AdapterModule { name: layer.clone(), rank, alpha, inner, out, a, b });
        }
        modules.sort_by_key(|module| names::place(&module.name));
        let scales = match (alphas, &settings) {
            (0, Some(_)) => "peft's settings",
            (0, None) => "none in the file: alpha is the rank",
            _ => "alpha tensors",
        };
        let this = Self { path: file, form, adapter: Adapter { modules }, metadata, dtypes: dtypes(&tensors)?, scales };
        let with_alpha = layers.iter().filter(|(_, keys)| keys.alpha.is_some()).map(|(layer, _)| layer.as_str());
        let outside: Vec<&str> = with_alpha.filter(|layer| names::block_of(layer).is_none()).collect();
        this.warn(alphas, &outside);
        Ok(this)
    }

    /// Refuses adapters that are not for this network, as [`Adapter::check`] does, and names the file.
    ///
    /// # Errors
    /// Those of [`Adapter::check`].
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        self.adapter.check(config).map_err(|e| e.at(self.path.display()))
    }

    /// Says what other readers would make of scales in unexpected places. `outside` are the layers outside the blocks
    /// that have an alpha tensor.
    fn warn(&self, alphas: usize, outside: &[&str]) {
        let path = self.path.display();
        let missing = self.adapter.modules.len() - alphas;
        if alphas > 0 && missing > 0 {
            tracing::warn!(
                "{path}: {missing} of {} layers have no alpha; it is their rank",
                self.adapter.modules.len()
            );
        }
        if self.form != Form::Diffusers && !outside.is_empty() {
            tracing::warn!(
                "{path}: has alpha tensors of {}, outside the blocks, where diffusers refuses them; they are applied \
                 here",
                outside.join(", ")
            );
        }
        if self.form == Form::Diffusers && alphas > 0 {
            tracing::warn!(
                "{path}: has alpha tensors under diffusers' names, which diffusers refuses; they are applied here"
            );
        }
        if self.form != Form::Diffusers && alphas == 0 && self.metadata.contains_key(PEFT) {
            tracing::warn!(
                "{path}: its header has settings of peft, but its names are not diffusers': they are not applied, as \
                 in ComfyUI"
            );
        }
        let ss = |key: &str| self.metadata.get(key).and_then(|value| value.parse::<f64>().ok());
        if alphas == 0
            && self.form != Form::Diffusers
            && let (Some(dim), Some(alpha)) = (ss("ss_network_dim"), ss("ss_network_alpha"))
            && dim != alpha
        {
            tracing::warn!(
                "{path}: its header says alpha {alpha} of rank {dim}, but it has no alpha tensors: the scale is 1, as \
                 ComfyUI and diffusers take it"
            );
        }
    }
}

/// The form of all keys, and each layer's keys.
fn sorted_keys(tensors: &Tensors) -> Result<(Form, BTreeMap<String, Keys>)> {
    let mut layers: BTreeMap<String, Keys> = BTreeMap::new();
    let mut forms: BTreeMap<Form, &str> = BTreeMap::new();
    let mut unknown: BTreeMap<Unknown, Vec<&str>> = BTreeMap::new();
    for key in tensors.names() {
        match form::parse(key) {
            Ok(Key { form, layer, part }) => {
                forms.entry(form).or_insert(key);
                let keys = layers.entry(layer).or_default();
                let place = match part {
                    Part::A => &mut keys.a,
                    Part::B => &mut keys.b,
                    Part::Alpha => &mut keys.alpha,
                };
                if let Some(other) = place.replace(key.to_owned()) {
                    bail!(Data, "`{other}` and `{key}` are of the same layer; one of them is too many")
                }
            }
            Err(why) => unknown.entry(why).or_default().push(key),
        }
    }
    let keys = tensors.names().count();
    if layers.is_empty() && !tensors.names().any(form::is_adapter_key) {
        bail!(Data, "is not a LoRA file: none of its {keys} tensors is one of an adapter")
    }
    let of_no_layer = unknown.get(&Unknown::Key).map_or(&[][..], Vec::as_slice);
    if of_no_layer.len() == keys {
        let listed = form::listed(of_no_layer.iter().copied());
        bail!(Data, "is a LoRA for another kind of model: none of its {keys} keys is of a layer of Wan's: {listed}")
    }
    if !unknown.is_empty() {
        let described = unknown.into_iter().map(|(why, keys)| {
            let count = crate::terminal::counted(keys.len(), "key", "keys");
            format!("{count} {}: {}", why.described(), form::listed(keys))
        });
        bail!(Data, "has keys that would be ignored. {}", described.collect::<Vec<_>>().join(". "))
    }
    let mut forms = forms.into_iter();
    match (forms.next(), forms.next()) {
        (Some((form, _)), None) => Ok((form, layers)),
        (Some((_, first)), Some((_, second))) => {
            bail!(Data, "mixes the names of two forms: `{first}` and `{second}`")
        }
        _ => bail!(Data, "is not a LoRA file: it has no tensors"),
    }
}

/// Peft's settings of a file under diffusers' names: in its header, or in peft's file beside it.
fn settings(file: &Path, form: Form, metadata: &BTreeMap<String, String>) -> Result<Option<Peft>> {
    if form != Form::Diffusers {
        return Ok(None);
    }
    let beside = file.with_file_name(PEFT_FILES[1]);
    let is_pefts = file.file_name().is_some_and(|name| name == PEFT_FILES[0]) && beside.is_file();
    let (place, json, prefix) = match metadata.get(PEFT) {
        Some(text) => {
            let place = format!("{}: `{PEFT}` of its header", file.display());
            let json = serde_json::from_str(text).map_err(|e| Error::Data(format!("{place} is not JSON: {e}")))?;
            (place, json, TRANSFORMER)
        }
        None if is_pefts => (beside.display().to_string(), read_config(&beside)?, ""),
        None => return Ok(None),
    };
    let known = |json: &Value| json.as_object().is_some_and(|map| map.keys().any(|key| key.starts_with(prefix)));
    if !known(&json) {
        bail!(Data, "{place}: has no `{prefix}` settings")
    }
    Peft::parse(&json, prefix).map(Some).map_err(|why| Error::Data(format!("{place}: {why}")))
}

/// The value of an alpha tensor.
fn alpha_tensor(tensors: &Tensors, key: &str) -> Result<f64> {
    match tensors.read_numbers(key)?.as_slice() {
        [alpha] if alpha.is_finite() => Ok(f64::from(*alpha)),
        [alpha] => bail!(Data, "{}: `{key}` is {alpha}", tensors.path().display()),
        values => bail!(Data, "{}: `{key}` has {} values; one is needed", tensors.path().display(), values.len()),
    }
}

/// A tensor's values, all finite.
fn finite(tensors: &Tensors, key: &str) -> Result<Vec<f32>> {
    let values = tensors.read_f32(key)?;
    match values.iter().find(|x| !x.is_finite()) {
        Some(value) => bail!(Data, "{}: `{key}` has a value that is {value}", tensors.path().display()),
        None => Ok(values),
    }
}

/// The types that tensors are stored in, each once; alpha tensors, which may be of any, apart.
fn dtypes(tensors: &Tensors) -> Result<Vec<Dtype>> {
    let weights = tensors.names().filter(|name| !name.ends_with(".alpha"));
    let all: BTreeSet<Dtype> = weights.map(|name| tensors.dtype(name)).collect::<Result<_>>()?;
    Ok(all.into_iter().collect())
}
