//! Writing a checkpoint: part by part, summed on the way, then its state, then its name.

use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::state::{Record, State};
use super::{ADAPTER, ADAPTER_EMA, EMA, OPTIMIZER, STATE, TRANSFORMER, folder_name, list, moments};
use crate::files::{self, FileSum, NewFolder, atomic_write, write_pieces};
use crate::lora::{Adapter, Form};
use crate::model::LoraSpec;
use crate::model::folder::{Folder, write_folder_pieces};
use crate::state::optimizer::OptimizerKind;
use crate::{Result, bail};

/// A checkpoint being written: call each part once, then [`finish`](Self::finish). Dropped before that, nothing
/// remains.
///
/// Tensors are names and shapes; `pieces` are their elements in order, made one after another: see [`write_pieces`].
#[derive(Debug)]
pub struct Saving {
    folder: NewFolder,
    all: PathBuf,
    step: u64,
    files: RefCell<BTreeMap<String, FileSum>>,
}

impl Saving {
    /// Starts the checkpoint of `step` in the folder `all` of a run's checkpoints. What a killed run left there half
    /// done is removed.
    pub(super) fn begin(all: &Path, step: u64) -> Result<Self> {
        files::remove_leftovers(all)?;
        let folder = NewFolder::begin(&all.join(folder_name(step)))?;
        Ok(Self { folder, all: all.to_owned(), step, files: RefCell::default() })
    }

    /// Writes the weights with the model's config.json.
    pub fn transformer<D: AsRef<[f32]>>(
        &self,
        config: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        self.model(TRANSFORMER, config, tensors, pieces)
    }

    /// Writes the weights' moving average with the model's config.json.
    pub fn ema<D: AsRef<[f32]>>(
        &self,
        config: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        self.model(EMA, config, tensors, pieces)
    }

    /// Writes adapters, with the JSON of their [record](crate::state::adapters::AdapterRecord).
    pub fn adapter<D: AsRef<[f32]>>(
        &self,
        record: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        self.model(ADAPTER, record, tensors, pieces)
    }

    /// Writes the moving average of adapters.
    pub fn adapter_ema<D: AsRef<[f32]>>(
        &self,
        record: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        self.model(ADAPTER_EMA, record, tensors, pieces)
    }

    /// Writes a LoRA file of each of `forms`: of the average if it was written, or else of the adapters.
    ///
    /// # Errors
    /// Those of [`crate::lora::write`]; the adapters were not written.
    pub fn export(&self, spec: &LoraSpec, forms: &[Form], metadata: &BTreeMap<String, String>) -> Result<()> {
        let path = self.folder.path();
        let averaged = path.join(ADAPTER_EMA);
        let folder = Folder::open(&if averaged.exists() { averaged } else { path.join(ADAPTER) })?;
        let adapter = Adapter::of(spec, |name| folder.read_f32(name))?;
        for &form in forms {
            let name = match form {
                Form::Comfy => "lora.safetensors".to_owned(),
                other => format!("lora_{}.safetensors", other.name()),
            };
            let file = path.join(&name);
            crate::lora::write(&file, &adapter, form, metadata)?;
            self.files.borrow_mut().insert(name, FileSum::of(&file)?);
        }
        Ok(())
    }

    fn model<D: AsRef<[f32]>>(
        &self,
        part: &str,
        config: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        let written = write_folder_pieces(&self.folder.path().join(part), config, tensors, pieces)?;
        self.files.borrow_mut().extend(written.into_iter().map(|(name, sum)| (format!("{part}/{name}"), sum)));
        Ok(())
    }

    /// Writes the optimizer's tensors: of these parameters all means, `m.NAME`, then all mean squares, `v.NAME`, but of
    /// the matrices that are Muon's.
    pub fn optimizer<D: AsRef<[f32]>>(
        &self,
        kind: OptimizerKind,
        parameters: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        let sum = write_pieces(&self.folder.path().join(OPTIMIZER), &moments(kind, parameters), pieces)?;
        self.files.borrow_mut().insert(OPTIMIZER.to_owned(), sum);
        Ok(())
    }

    /// Writes the state, gives the checkpoint its name, then removes all but the last `keep` (at least 1) checkpoints.
    /// One of the same step is replaced. Returns where it is.
    pub fn finish(self, state: &State, keep: usize) -> Result<PathBuf> {
        let Self { folder, all, step, files } = self;
        if state.step != step {
            bail!(Checkpoint, "a checkpoint begun at step {step} was given the state of step {}", state.step);
        }
        let path = folder.path();
        let weights = if path.join(ADAPTER).exists() { ADAPTER } else { TRANSFORMER };
        for part in [weights, OPTIMIZER] {
            if !path.join(part).exists() {
                bail!(Checkpoint, "the checkpoint of step {step} was finished without its {part}");
            }
        }
        let text = Record { state: state.clone(), files: files.into_inner() }.to_text()?;
        atomic_write(&path.join(STATE), |out| out.write_all(text.as_bytes()))?;
        folder.publish(true)?;
        remove_older(&all, step, keep)?;
        Ok(all.join(folder_name(step)))
    }
}

/// Removes all checkpoints up to that of `step` but the last `keep` (at least 1). One that cannot be removed is a
/// warning.
pub(super) fn remove_older(all: &Path, step: u64, keep: usize) -> Result<()> {
    // A folder without state.json is not ours to count, nor to remove. Newer steps are another history's.
    let older = list(all)?.into_iter().filter(|(s, path)| *s < step && path.join(STATE).is_file());
    let older: Vec<_> = older.collect();
    for (_, path) in older.iter().rev().skip(keep.max(1) - 1) {
        // The run goes on: what is left has no name of a checkpoint, and the next start removes it.
        if let Err(e) = files::remove_folder(path) {
            tracing::warn!("an older checkpoint could not be removed: {e}");
        }
    }
    Ok(())
}
