//! What the name of a model leads to, wherever one is named: `longreel sample`, `longreel forward`, `model.from`.
//!
//! - a run's folder, or its `checkpoints`: the last checkpoint;
//! - a checkpoint: its averaged weights, or the weights where the run kept no average;
//! - a checkpoint's `transformer` or `ema`: exactly these;
//! - a run or checkpoint of adapters: these, over the network that they were trained on;
//! - a transformer that longreel did not train, in any [`layout`](crate::model::layout): a folder of diffusers' or of
//!   Wan's own, a pipeline, a single file.
//!
//! `hf://` names of any of them are local folders by now ([`crate::hub`]).

use candle_core::DType;
use std::path::{Path, PathBuf};

use super::adapters::{AdapterRecord, fingerprint};
use super::checkpoint::{Checkpoint, EMA, STATE, TRANSFORMER, retried};
use super::frozen::FrozenModel;
use crate::lora::{Adapter, add_adapters};
use crate::model::folder::{CONFIG, Folder, read_config};
use crate::model::layout::{self, Layout};
use crate::model::{Model, ModelConfig};
use crate::{Error, Result, hub};

/// A named model.
#[derive(Debug)]
pub struct NamedModel {
    /// Its weights' folder, with a config.json; of a single file, that file; of adapters that of the frozen network.
    pub dir: PathBuf,
    /// The checkpoint that it is part of; none of a model that longreel did not train.
    pub checkpoint: Option<Checkpoint>,
    /// What the checkpoint's adapters belong to; none where it has all weights.
    pub record: Option<AdapterRecord>,
    /// The adapters, once it is [`opened`](Self::opened).
    pub adapter: Option<Adapter>,
}

impl NamedModel {
    /// Finds the model that `path` names. No weights are read.
    ///
    /// # Errors
    /// Nothing is there, or no model; a checkpoint's state is damaged.
    pub fn find(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !path.is_dir() {
            return Ok(Self::of(path.to_owned(), None));
        }
        let is_part = [TRANSFORMER, EMA].iter().any(|part| path.file_name().is_some_and(|name| name == *part));
        if path.join(CONFIG).is_file() {
            let parent = path.parent().filter(|parent| is_part && parent.join(STATE).is_file());
            let checkpoint = parent.map(Checkpoint::open).transpose()?;
            return Ok(Self::of(path.to_owned(), checkpoint));
        }
        let inner = path.join(TRANSFORMER).join(CONFIG).is_file();
        let is_pipeline = path.join("model_index.json").is_file();
        if !path.join(STATE).is_file() && (inner || is_part || is_pipeline || layout::has_experts(path)) {
            return Ok(Self::of(layout::find(path)?, None));
        }
        let checkpoint = Checkpoint::open(path).map_err(|e| match path.join(STATE).is_file() {
            true => e,
            false => e.reworded(|message| format!("{message}; nor has it the {CONFIG} of a model folder")),
        })?;
        if checkpoint.is_of_adapters() {
            let record = AdapterRecord::of(&checkpoint.model(checkpoint.average())?)?;
            let base = Self::find(&hub::resolve(&record.base.from)?).map_err(|e| {
                e.reworded(|message| format!("the network of the adapters in {}: {message}", path.display()))
            })?;
            return Ok(Self { record: Some(record), ..Self::of(base.dir, Some(checkpoint)) });
        }
        let dir = checkpoint.dir().join(checkpoint.average());
        Ok(Self::of(dir, Some(checkpoint)))
    }

    fn of(dir: PathBuf, checkpoint: Option<Checkpoint>) -> Self {
        Self { dir, checkpoint, record: None, adapter: None }
    }

    /// Finds the model that `path` names and opens its weights. A run that trains meanwhile may remove the checkpoint,
    /// then the next one is taken; what is open can be read.
    ///
    /// # Errors
    /// Those of [`find`](Self::find) and [`Layout::open`]; a part of a checkpoint is not what was saved.
    pub fn opened(path: &Path) -> Result<(Self, Folder)> {
        retried(path, || {
            let named = Self::find(path)?;
            if let (Some(checkpoint), Some(record)) = (&named.checkpoint, &named.record) {
                let dir = checkpoint.dir().to_owned();
                let read = || {
                    let folder = checkpoint.model(checkpoint.average())?;
                    let adapter = Adapter::of(&record.lora, |name| folder.read_f32(name))?;
                    folder.tensors().check_read()?;
                    Ok((adapter, Layout::open(&named.dir)?.into_folder()?))
                };
                let opened = read().map(|(adapter, folder)| (Self { adapter: Some(adapter), ..named }, folder));
                return Ok((dir, opened));
            }
            let part = named.dir.file_name().and_then(|part| part.to_str()).unwrap_or_default();
            let (dir, folder) = match &named.checkpoint {
                Some(checkpoint) => (checkpoint.dir().to_owned(), checkpoint.model(part)),
                None => (named.dir.clone(), Layout::open(&named.dir).and_then(Layout::into_folder)),
            };
            Ok((dir, folder.map(|folder| (named, folder))))
        })
    }

    /// The network `config` with the weights of `folder`, as [`opened`](Self::opened) gave it, and with the adapters;
    /// their frozen network is loaded once for all ranks that share `frozen`. What `more` adapters with their scales
    /// add, which have been checked against the network, is added to its weights in f32.
    ///
    /// # Errors
    /// The weights cannot be read, or are not those that were saved or that the adapters belong to.
    pub fn load(
        &self,
        folder: &Folder,
        config: &ModelConfig,
        bf16: bool,
        frozen: &FrozenModel,
        more: &[(&Adapter, f64)],
    ) -> Result<Model> {
        let read = |name: &str| {
            let mut values = folder.read_f32(name)?;
            add_adapters(more, name, &mut values);
            Ok(values)
        };
        let Some(adapter) = &self.adapter else {
            let model = Model::load(config, DType::F32, bf16, read)?;
            folder.tensors().check_read()?;
            return Ok(model);
        };
        let model = frozen.take(0, || {
            let model = Model::adapted(config, DType::F32, bf16, &adapter.spec(), 0)?;
            model.set_base(read)?;
            folder.tensors().check_read()?;
            if let Some(record) = &self.record {
                record.check_base(&folder.dir().display().to_string(), &fingerprint(folder.tensors()))?;
            }
            Ok(model)
        })?;
        adapter.fill(&model)?;
        Ok(model)
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
