//! A run's folder and its checkpoints.
//!
//! ```text
//! OUT/config.toml                         the run's whole config
//! OUT/metrics.jsonl                       one line a step
//! OUT/warnings.jsonl                      a line for each warning
//! OUT/plan.json, data.json, data.png      what was planned, what the data are
//! OUT/lock                                while a process trains: which (see `run_lock`)
//! OUT/checkpoints/step-00000100/
//!     state.json                          step, seed, data position, config: [`State`]; checksums of the other files
//!     transformer/                        the weights, a model folder that diffusers loads
//!     ema/                                their moving average, in the same form
//!     optimizer.safetensors               the optimizer's moments: `m.NAME`, `v.NAME`
//!     adapter/, adapter_ema/              of a run of adapters, in place of the two folders above: A and B of each
//!     lora*.safetensors                   and these (their average, if there is one) in the forms that others load
//! OUT/earlier-1/                          what a run left that this one has replaced
//! ```
//!
//! A checkpoint is written into a folder of a temporary name, synced, then renamed: a crash or a full disk leaves no
//! half one, and no older one is removed before the new one is there. One that is removed loses its name first. Only
//! one rank writes. What the numbers mean, and when to save, is the business of the training loop.

mod open;
mod save;
mod state;
mod verify;

use super::optimizer::{OptimizerKind, muon};
use crate::files::{self, atomic_write, create_folders};
use crate::{Error, Result, bail};
use std::path::{Path, PathBuf};

pub use open::Checkpoint;
pub(crate) use open::retried;
pub use save::Saving;
pub use state::{DataCounts, State};
pub use verify::{Verdict, verify};

const CHECKPOINTS: &str = "checkpoints";
pub(crate) const STATE: &str = "state.json";
pub(super) const TRANSFORMER: &str = "transformer";
pub(super) const EMA: &str = "ema";
/// A run's adapters, and their moving average.
pub(super) const ADAPTER: &str = "adapter";
pub(super) const ADAPTER_EMA: &str = "adapter_ema";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The folder of a run, `run.out` in its config.
#[derive(Clone, Debug)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The run folder `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// `warnings.jsonl`.
    pub fn warnings(&self) -> PathBuf {
        self.0.join("warnings.jsonl")
    }

    /// Makes the folder of a new run and writes `config` as its config.toml. What a run left that ended before its
    /// first checkpoint is set aside.
    ///
    /// # Errors
    /// There are checkpoints in it: a new run's would mix with them. Those of writing.
    pub fn create(&self, config: &str) -> Result<()> {
        if let Some((step, _)) = list(&self.0.join(CHECKPOINTS))?.pop() {
            let root = self.0.display();
            bail!(
                Checkpoint,
                "{root}: holds a run up to step {step}; continue it with --resume, or choose another run.out"
            );
        }
        create_folders(&self.0)?;
        if std::fs::symlink_metadata(self.metrics()).is_ok_and(|file| file.is_file() && file.len() > 0) {
            // The metrics last: as long as they are there, there is something to set aside.
            let shown = ["config.toml", "loss.png", "samples", "tensorboard", "plan.json", "data.json", "data.png"];
            let left = shown.into_iter().chain(["warnings.jsonl", "metrics-cut.jsonl", "metrics.jsonl"]);
            let aside = self.set_aside(left)?;
            tracing::warn!(
                "{}: a run ended here before its first checkpoint; this one starts from the beginning, what that one left is in {}",
                self.0.display(),
                aside.display()
            );
        }
        atomic_write(&self.config(), |out| out.write_all(config.as_bytes()))
    }

    /// Removes what killed runs left half done. Nobody else may be at work in the folder.
    pub fn remove_leftovers(&self) -> Result<()> {
        ["", "samples", CHECKPOINTS].iter().try_for_each(|part| files::remove_leftovers(&self.0.join(part)))
    }

    /// Removes the checkpoints up to that of `step` but the last `keep`, as saving does.
    pub fn remove_older(&self, step: u64, keep: usize) -> Result<()> {
        save::remove_older(&self.0.join(CHECKPOINTS), step, keep)
    }

    /// Sets the checkpoints after `step` aside: they are of a history that the run, going on from there, replaces.
    pub fn set_newer_aside(&self, step: u64) -> Result<()> {
        let newer = list(&self.0.join(CHECKPOINTS))?.into_iter().filter(|&(newer, _)| newer > step);
        let newer: Vec<_> = newer.map(|(step, _)| format!("{CHECKPOINTS}/{}", folder_name(step))).collect();
        if !newer.is_empty() {
            let aside = self.set_aside(newer.iter().rev().map(String::as_str))?;
            tracing::info!("checkpoints after step {step} are set aside in {}", aside.display());
        }
        Ok(())
    }

    /// Moves what is there of `names` into a new folder `earlier-N` of the run's, which is returned.
    fn set_aside<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<PathBuf> {
        let free = (1..).map(|n| self.0.join(format!("earlier-{n}"))).find(|path| path.symlink_metadata().is_err());
        let aside = free.expect("numbers do not end");
        for name in names {
            let (from, to) = (self.0.join(name), aside.join(name));
            if from.symlink_metadata().is_ok() {
                create_folders(files::parent(&to))?;
                std::fs::rename(&from, &to).map_err(|e| Error::io(&from, e))?;
                files::sync_folder(files::parent(&to))?;
                files::sync_folder(files::parent(&from))?;
            }
        }
        Ok(aside)
    }

    /// The folder of the checkpoint of `step`.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.0.join(CHECKPOINTS).join(folder_name(step))
    }

    /// All complete checkpoints with their steps, oldest first.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let all = list(&self.0.join(CHECKPOINTS))?;
        Ok(all.into_iter().filter(|(_, path)| path.join(STATE).is_file()).collect())
    }

    /// The last checkpoint, if there is one.
    ///
    /// # Errors
    /// It has no state.json.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        newest(&self.0.join(CHECKPOINTS))
    }

    /// The checkpoint to go on from: of `step`, or the last one, if there is one. Names and lengths of its files are
    /// checked.
    ///
    /// # Errors
    /// It is not there, or not whole; or the folder's checkpoints are of different runs.
    pub fn to_resume(&self, step: Option<u64>) -> Result<Option<Checkpoint>> {
        let dir = match step {
            None => match self.latest()? {
                Some(last) => last,
                None => return Ok(None),
            },
            Some(step) => {
                let all = self.checkpoints()?;
                let Some((_, dir)) = all.iter().find(|(found, _)| *found == step) else {
                    let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
                    let there = if steps.is_empty() {
                        "there is none".into()
                    } else {
                        format!("there are {}", steps.join(", "))
                    };
                    bail!(Checkpoint, "{}: no checkpoint of step {step}; {there}", self.0.display())
                };
                dir.clone()
            }
        };
        let checkpoint = Checkpoint::at(&dir)?;
        checkpoint.check_names("")?;
        for (_, other) in self.checkpoints()?.into_iter().filter(|(_, other)| *other != dir) {
            // A damaged one is no hindrance as long as nobody wants it.
            let Ok(other) = Checkpoint::at(&other) else { continue };
            if let (Some(run), Some(others)) = (&checkpoint.state().run, &other.state().run)
                && run != others
            {
                let (dir, other) = (dir.display(), other.dir().display());
                bail!(
                    Checkpoint,
                    "{dir} is of the run {run}, but {other} of the run {others}: take out what does not belong into this folder"
                )
            }
        }
        Ok(Some(checkpoint))
    }

    /// Starts the checkpoint of `step`; it appears with [`Saving::finish`]. What a killed run left half done is
    /// removed.
    pub fn begin(&self, step: u64) -> Result<Saving> {
        Saving::begin(&self.0.join(CHECKPOINTS), step)
    }
}

/// Names and shapes of the moments that an optimizer has of these parameters: two of each; of what is Muon's, the
/// first.
fn moments(kind: OptimizerKind, parameters: &[(String, Vec<usize>)]) -> Vec<(String, Vec<usize>)> {
    let first = parameters.iter().map(|(name, shape)| (format!("m.{name}"), shape.clone()));
    let both = parameters.iter().filter(|(name, shape)| kind != OptimizerKind::Muon || !muon::takes(name, shape));
    first.chain(both.map(|(name, shape)| (format!("v.{name}"), shape.clone()))).collect()
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step that a checkpoint's folder is named for.
fn step_of(dir: &Path) -> Option<u64> {
    let name = dir.file_name()?.to_str()?;
    name.strip_prefix("step-")?.parse().ok().filter(|&step| folder_name(step) == name)
}

/// What has the name of a checkpoint in a folder, by step, whole or not.
fn list(all: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !all.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(all).map_err(|e| Error::io(all, e))? {
        let path = entry.map_err(|e| Error::io(all, e))?.path();
        found.extend(step_of(&path).map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// The last checkpoint in a folder.
///
/// # Errors
/// It has no state.json: it was not written by [`Saving`], or something has damaged it. To take an older one in silence
/// would be to lose steps in silence.
fn newest(all: &Path) -> Result<Option<PathBuf>> {
    let whole = |path: &Path| path.join(STATE).is_file();
    // While a run trains, what is listed may be gone at the next look: its newest checkpoint is another one then.
    let (mut listed, mut last) = (list(all)?, None);
    while last.is_none() && !listed.is_empty() {
        last = listed.iter().rev().find(|(_, path)| whole(path) || path.symlink_metadata().is_ok()).cloned();
        if last.is_none() {
            listed = list(all)?;
        }
    }
    let Some((_, last)) = last else { return Ok(None) };
    if whole(&last) || last.symlink_metadata().is_err() {
        return Ok(Some(last));
    }
    let older = match listed.iter().rev().find(|(_, path)| whole(path)) {
        Some((step, path)) => {
            format!("choose an older one, {} (to go on from it: --resume --step {step})", path.display())
        }
        None => "there is no older one".to_owned(),
    };
    bail!(
        Checkpoint,
        "{}: has no {STATE}, without which what is there cannot be trusted; remove that folder, or {older}",
        last.display()
    )
}
