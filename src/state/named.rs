//! What the name of a model leads to, wherever one is named: `longreel sample`, `longreel forward`, `model.from`.
//!
//! - a run's folder, or its `checkpoints`: the last checkpoint;
//! - a checkpoint: its averaged weights, or the weights where the run kept no average;
//! - a checkpoint's `transformer` or `ema`: exactly these;
//! - a transformer that longreel did not train, in any [`layout`](crate::model::layout): a folder of diffusers' or of
//!   Wan's own, a pipeline, a single file.
//!
//! `hf://` names of any of them are local folders by now ([`crate::hub`]).

use super::checkpoint::{Checkpoint, EMA, STATE, TRANSFORMER, retried};
use crate::model::ModelConfig;
use crate::model::folder::{CONFIG, Folder, read_config};
use crate::model::layout::{self, Layout};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A named model.
#[derive(Debug)]
pub struct NamedModel {
    /// Its weights' folder, with a config.json; of a single file, that file.
    pub dir: PathBuf,
    /// The checkpoint that it is part of; none of a model that longreel did not train.
    pub checkpoint: Option<Checkpoint>,
}

impl NamedModel {
    /// Finds the model that `path` names. No weights are read.
    ///
    /// # Errors
    /// Nothing is there, or no model; a checkpoint's state is damaged.
    pub fn find(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !path.is_dir() {
            return Ok(Self { dir: path.to_owned(), checkpoint: None });
        }
        let is_part = [TRANSFORMER, EMA].iter().any(|part| path.file_name().is_some_and(|name| name == *part));
        if path.join(CONFIG).is_file() {
            let parent = path.parent().filter(|parent| is_part && parent.join(STATE).is_file());
            let checkpoint = parent.map(Checkpoint::open).transpose()?;
            return Ok(Self { dir: path.to_owned(), checkpoint });
        }
        let inner = path.join(TRANSFORMER).join(CONFIG).is_file();
        let is_pipeline = path.join("model_index.json").is_file();
        if !path.join(STATE).is_file() && (inner || is_part || is_pipeline || layout::has_experts(path)) {
            return Ok(Self { dir: layout::find(path)?, checkpoint: None });
        }
        let checkpoint = Checkpoint::open(path).map_err(|e| match path.join(STATE).is_file() {
            true => e,
            false => e.reworded(|message| format!("{message}; nor has it the {CONFIG} of a model folder")),
        })?;
        let dir = checkpoint.dir().join(checkpoint.average());
        Ok(Self { dir, checkpoint: Some(checkpoint) })
    }

    /// Finds the model that `path` names and opens its weights. A run that trains meanwhile may remove the checkpoint,
    /// then the next one is taken; what is open can be read.
    ///
    /// # Errors
    /// Those of [`find`](Self::find) and [`Layout::open`]; a part of a checkpoint is not what was saved.
    pub fn opened(path: &Path) -> Result<(Self, Folder)> {
        retried(path, || {
            let named = Self::find(path)?;
            let part = named.dir.file_name().and_then(|part| part.to_str()).unwrap_or_default();
            let (dir, folder) = match &named.checkpoint {
                Some(checkpoint) => (checkpoint.dir().to_owned(), checkpoint.model(part)),
                None => (named.dir.clone(), Layout::open(&named.dir).and_then(Layout::into_folder)),
            };
            Ok((dir, folder.map(|folder| (named, folder))))
        })
    }

    /// The sizes of the network. No weights are read: a folder's config.json will do, of a file its tensors' shapes.
    ///
    /// # Errors
    /// The config cannot be read, or is of a network that longreel does not run.
    pub fn config(&self) -> Result<ModelConfig> {
        if self.dir.is_dir() {
            let path = self.dir.join(CONFIG);
            return ModelConfig::from_json(&read_config(&path)?).map_err(|e| e.at(path.display()));
        }
        ModelConfig::of(&Layout::open(&self.dir)?.into_folder()?)
    }
}
