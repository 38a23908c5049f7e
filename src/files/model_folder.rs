//! A diffusers model folder: `config.json` beside the weights, whole or in shards. Names and bytes only, no model
//! logic.
//!
//! Reading: `diffusion_pytorch_model.safetensors`, or the shards that `diffusion_pytorch_model*.safetensors.index.json`
//! names; where both are there the index counts, as in diffusers. Writing: one f32 file, the folder appearing as a
//! whole.

use super::{FileSum, NewFolder, Tensors, read_text, write_pieces, write_summed, write_tensors};
use crate::{Error, Result, bail};
use safetensors::Dtype;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(crate) const CONFIG: &str = "config.json";
const STEM: &str = "diffusion_pytorch_model";

/// Bytes that a config.json may have; one is of a kilobyte.
const MAX_CONFIG: u64 = 1 << 20;

/// An opened model folder.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    config: Value,
    tensors: Tensors,
}

impl Folder {
    /// Opens a model folder: parses its config and the headers of its weights.
    ///
    /// # Errors
    /// The folder or a file is missing, the config is no JSON object, the index does not fit the shards, a safetensors
    /// file is truncated or damaged. Each names the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        if !dir.is_dir() {
            bail!(
                Data,
                "{}: is not a folder; a model folder with {CONFIG} and {STEM}.safetensors is needed",
                dir.display()
            );
        }
        if !path.is_file() {
            let inner = dir.join("transformer").join(CONFIG).is_file();
            let hint = if inner { "; it is a pipeline: name the folder `transformer` in it" } else { "" };
            bail!(Data, "{}: has no {CONFIG}, so it is not a model folder{hint}", dir.display());
        }
        let config = read_config(&path)?;
        let weights = find_weights(dir)?;
        let sharded = weights.extension().is_some_and(|e| e == "json");
        let tensors = if sharded { Tensors::open_sharded(&weights)? } else { Tensors::open(&weights)? };
        Ok(Self { dir: dir.to_owned(), config, tensors })
    }

    /// A folder of parts that were opened already.
    pub fn new(dir: PathBuf, config: Value, tensors: Tensors) -> Self {
        Self { dir, config, tensors }
    }

    /// The same folder; its weights are one file that must be what `sum` says, where it is known: see
    /// [`Tensors::check_sums`].
    pub fn expecting(self, sum: Option<FileSum>) -> Self {
        Self { tensors: self.tensors.expecting(sum), ..self }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`, a JSON object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weights.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The config and the weights.
    pub fn into_parts(self) -> (Value, Tensors) {
        (self.config, self.tensors)
    }

    /// All tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names()
    }

    /// See [`Tensors::shape`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        self.tensors.shape(name)
    }

    /// See [`Tensors::dtype`].
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        self.tensors.dtype(name)
    }

    /// See [`Tensors::read_f32`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.tensors.read_f32(name)
    }

    /// See [`Tensors::check`].
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        self.tensors.check(expected)
    }
}

/// Whether `dir` is a pipeline's folder in diffusers' layout, complete or not.
pub(crate) fn is_pipeline(dir: &Path) -> bool {
    dir.join("model_index.json").is_file()
}

/// What is said of the pipeline `dir` whose folder `part` is not there, or has no config; `instead` may be named in its
/// place. The caller puts before it which key or flag named the pipeline.
pub(crate) fn lacks(dir: &Path, part: &str, instead: &str) -> Error {
    let missing = if dir.join(part).is_dir() { format!("{part}/{CONFIG}") } else { format!("the folder {part}") };
    Error::Data(format!(
        "{}: is a pipeline without {missing}, so it is incomplete; fetch the rest of it, or name {instead}",
        dir.display(),
    ))
}

/// Reads a model's `config.json`, a JSON object.
///
/// # Errors
/// It cannot be read, is longer than a config can be, or no JSON object; names the file.
pub fn read_config(path: &Path) -> Result<Value> {
    let text = read_text(path, MAX_CONFIG).map_err(|e| Error::io(path, e))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::Data(format!("{}: not JSON: {e}", path.display())))?;
    if !config.is_object() {
        bail!(Data, "{}: must be a JSON object of the model's settings", path.display());
    }
    Ok(config)
}

/// Writes a new model folder: config.json and one safetensors file in f32. It appears as a whole or not at all.
///
/// # Errors
/// `dir` exists and is not empty, or the disk is full; nothing is overwritten. Those of [`write_tensors`].
pub fn write_folder<N, D>(
    dir: &Path,
    config: &Value,
    tensors: impl IntoIterator<Item = (N, Vec<usize>, D)>,
) -> Result<()>
where
    N: AsRef<str>,
    D: AsRef<[f32]>,
{
    write_folder_with(dir, config, |file| write_tensors(file, tensors)).map(drop)
}

/// As [`write_folder`], with weights as [`write_pieces`] takes them. Returns the names and checksums of both files.
pub fn write_folder_pieces<D: AsRef<[f32]>>(
    dir: &Path,
    config: &Value,
    tensors: &[(String, Vec<usize>)],
    pieces: impl IntoIterator<Item = Result<D>>,
) -> Result<[(String, FileSum); 2]> {
    let (config, weights) = write_folder_with(dir, config, |file| write_pieces(file, tensors, pieces))?;
    Ok([(CONFIG.to_owned(), config), (format!("{STEM}.safetensors"), weights)])
}

/// Writes a new model folder whose weights `weights` writes to the file that it is given: see [`write_folder`].
/// Returns the checksum of config.json, and what `weights` returned.
pub fn write_folder_with<T>(
    dir: &Path,
    config: &Value,
    weights: impl FnOnce(&Path) -> Result<T>,
) -> Result<(FileSum, T)> {
    let folder = NewFolder::begin(dir)?;
    let config = write_summed(&folder.path().join(CONFIG), |out| {
        serde_json::to_writer_pretty(&mut *out, config)?;
        out.write_all(b"\n")
    })?;
    let weights = weights(&folder.path().join(format!("{STEM}.safetensors")))?;
    folder.publish(false)?;
    Ok((config, weights))
}

/// The file to read a folder's weights from: an index or a safetensors file.
///
/// # Errors
/// There is none, or more than one.
pub fn find_weights(dir: &Path) -> Result<PathBuf> {
    for name in [format!("{STEM}.safetensors.index.json"), format!("{STEM}.safetensors")] {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    // A variant, as in `diffusion_pytorch_model.fp16.safetensors.index.json`, where there is only one.
    let mut variants = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name().to_string_lossy().into_owned();
        if name.starts_with(STEM) && name.ends_with(".safetensors.index.json") {
            variants.push(name);
        }
    }
    variants.sort();
    match variants.as_slice() {
        [name] => Ok(dir.join(name)),
        [] if dir.join(format!("{STEM}.bin")).is_file() => {
            bail!(
                Data,
                "{}: has {STEM}.bin only; save the model as safetensors (safe_serialization=True)",
                dir.display()
            )
        }
        [] => bail!(Data, "{}: has neither {STEM}.safetensors nor {STEM}.safetensors.index.json", dir.display()),
        many => bail!(Data, "{}: has several weights: {}; keep one", dir.display(), many.join(", ")),
    }
}
