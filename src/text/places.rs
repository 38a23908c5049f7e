//! Finds an encoder's weights, config and tokenizer, in each of the layouts that are in use.

use std::path::{Path, PathBuf};

use super::config::TextConfig;
use crate::files::model_folder::{CONFIG, is_pipeline, lacks, read_config};
use crate::{Error, Result, bail};

/// The folders of a pipeline that hold the encoder and its tokenizer.
const ENCODER: &str = "text_encoder";
const TOKENIZER: &str = "tokenizer";

/// Where Wan's own folders have the tokenizer, and what their file of the encoder is called.
const WAN_TOKENIZER: &str = "google/umt5-xxl";
const WAN_ENCODER: &str = "models_t5_";

const TOKENIZER_FILE: &str = "tokenizer.json";

/// What an encoder's folder may call its weights; the first that is there counts.
const WEIGHTS: [&str; 3] = ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"];

/// Where the parts of an encoder are.
#[derive(Debug)]
pub(super) struct Places {
    /// A file of weights, or the index of shards.
    pub weights: PathBuf,
    pub config: Option<PathBuf>,
    /// Folders that may have the tokenizer.
    tokenizers: Vec<PathBuf>,
}

impl Places {
    /// The parts of what `path` names: a pipeline's folder, an encoder's, Wan's own, or a file of weights.
    ///
    /// # Errors
    /// There is nothing of the kind, or a part of it is missing.
    pub fn find(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            if !path.exists() {
                return Err(Error::io(path, std::io::ErrorKind::NotFound.into()));
            }
            let config = Some(path.with_file_name(CONFIG)).filter(|config| is_encoder_config(config));
            let dir = parent(path);
            let tokenizers =
                vec![dir.join(WAN_TOKENIZER), dir.clone(), dir.join(TOKENIZER), dir.join("..").join(TOKENIZER)];
            return Ok(Self { weights: path.to_owned(), config, tokenizers });
        }
        if let Some(weights) = wan_file(path)? {
            return Ok(Self {
                weights,
                config: None,
                tokenizers: vec![path.join(WAN_TOKENIZER), path.join(TOKENIZER)],
            });
        }
        let inner = path.join(ENCODER);
        if inner.is_dir() {
            return Self::of_encoder(&inner, vec![path.join(TOKENIZER), inner.clone()]);
        }
        if is_pipeline(path) {
            return Err(lacks(path, ENCODER, "another text encoder's folder or file"));
        }
        if !path.join(CONFIG).is_file() {
            bail!(
                Data,
                "{}: holds no text encoder: no {ENCODER}/{CONFIG}, no {CONFIG} with weights, no {WAN_ENCODER}*.pth",
                path.display()
            );
        }
        Self::of_encoder(path, vec![path.to_owned(), path.join(TOKENIZER), path.join("..").join(TOKENIZER)])
    }

    fn of_encoder(dir: &Path, tokenizers: Vec<PathBuf>) -> Result<Self> {
        let config = dir.join(CONFIG);
        if !config.is_file() {
            bail!(
                Data,
                "{}: has no {CONFIG}: the text encoder's folder is incomplete; fetch the rest of it, or name another's",
                dir.display()
            );
        }
        match WEIGHTS.map(|name| dir.join(name)).into_iter().find(|file| file.is_file()) {
            Some(weights) => Ok(Self { weights, config: Some(config), tokenizers }),
            None => {
                bail!(
                    Data,
                    "{}: has no weights of a text encoder: none of {}; fetch the rest of it, or name another's",
                    dir.display(),
                    WEIGHTS.join(", ")
                )
            }
        }
    }

    /// The `tokenizer.json`.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self) -> Result<PathBuf> {
        let files = self.tokenizers.iter().map(|dir| dir.join(TOKENIZER_FILE));
        if let Some(found) = files.clone().find(|file| file.is_file()) {
            return Ok(found);
        }
        let looked: Vec<String> = files.map(|file| file.display().to_string()).collect();
        let pieces = self.tokenizers.iter().map(|dir| dir.join("spiece.model")).find(|file| file.is_file());
        let hint = pieces.map_or_else(String::new, |file| {
            format!("; {} is not enough, it lacks what is done before and after it", file.display())
        });
        bail!(
            Data,
            "{}: its tokenizer is missing; looked for {}{hint}. Copy tokenizer.json from the model's repository there",
            self.weights.display(),
            looked.join(", ")
        )
    }

    /// Whether `path` is meant to be a text encoder and nothing else, so that [`find`](Self::find) is to say what is
    /// wrong with it.
    pub fn is_encoder(path: &Path) -> bool {
        path.is_dir() && (is_encoder_config(&path.join(CONFIG)) || has_only_encoder(path))
    }
}

/// Whether a folder has the encoder of a pipeline and no network that it conditions.
fn has_only_encoder(dir: &Path) -> bool {
    is_encoder_config(&dir.join(ENCODER).join(CONFIG)) && !dir.join("transformer").exists()
}

fn is_encoder_config(path: &Path) -> bool {
    path.is_file() && read_config(path).is_ok_and(|config| TextConfig::is_known(&config))
}

/// The one file of Wan's own folder that is an encoder.
fn wan_file(dir: &Path) -> Result<Option<PathBuf>> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name().to_string_lossy().into_owned();
        if name.starts_with(WAN_ENCODER) && [".pth", ".safetensors"].iter().any(|end| name.ends_with(end)) {
            found.push(name);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [name] => Ok(Some(dir.join(name))),
        many => bail!(Data, "{}: has several text encoders: {}; name the file", dir.display(), many.join(", ")),
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map_or_else(PathBuf::new, Path::to_owned)
}
