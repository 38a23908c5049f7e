//! A run's folder and its checkpoints.
//!
//! ```text
//! OUT/config.toml                         the run's whole config
//! OUT/metrics.jsonl                       one line a step
//! OUT/checkpoints/step-00000100/
//!     state.json                          step, seed, data position, config: [`State`]
//!     transformer/                        the weights, a model folder that diffusers loads
//!     ema/                                their moving average, likewise
//!     optimizer.safetensors               AdamW's moments: `m.NAME`, `v.NAME`
//! ```
//!
//! A checkpoint is written into a folder of a temporary name, synced, then renamed: a crash or a full disk leaves no half
//! one, and no older one is removed before the new one is there. Only one rank writes. What the numbers mean, and when to
//! save, is the business of the training loop.

use crate::config::RunConfig;
use crate::data::Dataset;
use crate::files::{self, NewFolder, Tensors, atomic_write, write_pieces};
use crate::model::folder::{Folder, write_folder_pieces};
use crate::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

const CHECKPOINTS: &str = "checkpoints";
pub(super) const STATE: &str = "state.json";
pub(super) const TRANSFORMER: &str = "transformer";
pub(super) const EMA: &str = "ema";
const OPTIMIZER: &str = "optimizer.safetensors";

/// What a checkpoint says besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The version of longreel that wrote it.
    pub longreel: String,
    /// Optimizer steps done.
    pub step: u64,
    /// The run's seed.
    pub seed: u64,
    /// Clips consumed by all data ranks together: where the data goes on.
    pub position: u64,
    /// The run's config, as TOML.
    pub config: String,
    /// Frames per second of the data, for writing samples.
    #[serde(default)]
    pub fps: Option<f64>,
    /// The names of the classes, in the order of their numbers.
    #[serde(default)]
    pub classes: Vec<String>,
    /// What the data was, in numbers; none of a checkpoint of 0.1.0.
    #[serde(default)]
    pub data: Option<DataCounts>,
}

/// How much data a run had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCounts {
    /// Files that give clips.
    pub files: usize,
    /// Clips in them.
    pub clips: usize,
}

impl DataCounts {
    /// Those of `dataset`.
    pub fn of(dataset: &Dataset) -> Self {
        Self { files: dataset.files().len(), clips: dataset.len() }
    }
}

impl Display for DataCounts {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{} files, {} clips", self.files, self.clips)
    }
}

impl State {
    /// The state of a run of `config` after `step` steps and `position` clips.
    pub fn new(config: &RunConfig, step: u64, position: u64) -> Result<Self> {
        Ok(Self {
            longreel: env!("CARGO_PKG_VERSION").to_owned(),
            step,
            seed: config.run.seed,
            position,
            config: config.to_toml()?,
            fps: None,
            classes: Vec::new(),
            data: None,
        })
    }
}

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

    /// Makes the folder of a new run and writes its config.toml.
    ///
    /// # Errors
    /// There are checkpoints or metrics in it: a new run's would mix with them. Those of writing.
    pub fn create(&self, config: &RunConfig) -> Result<()> {
        if let Some((step, _)) = self.checkpoints()?.pop() {
            let root = self.0.display();
            bail!("{root}: holds a run up to step {step}; continue it with --resume, or choose another run.out");
        }
        if std::fs::metadata(self.metrics()).is_ok_and(|file| file.len() > 0) {
            let file = self.metrics();
            bail!(
                "{}: from a run that ended before its first checkpoint; remove it, or choose another run.out",
                file.display()
            );
        }
        files::create_folders(&self.0)?;
        let text = config.to_toml()?;
        atomic_write(&self.config(), |out| out.write_all(text.as_bytes()))
    }

    /// All complete checkpoints with their steps, oldest first.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        list(&self.0.join(CHECKPOINTS))
    }

    /// The last complete checkpoint, if there is one.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        Ok(self.checkpoints()?.pop().map(|(_, path)| path))
    }

    /// Starts the checkpoint of `step`; it appears with [`Saving::finish`]. What a killed run left half done is removed.
    pub fn begin(&self, step: u64) -> Result<Saving> {
        let all = self.0.join(CHECKPOINTS);
        files::remove_leftovers(&all)?;
        Ok(Saving { folder: NewFolder::begin(&all.join(name(step)))?, all, step })
    }
}

/// A checkpoint being written: call each part once, then [`finish`](Self::finish). Dropped before that, nothing remains.
///
/// Tensors are names and shapes; `pieces` are their elements in order, made one after another: see [`write_pieces`].
#[derive(Debug)]
pub struct Saving {
    folder: NewFolder,
    all: PathBuf,
    step: u64,
}

impl Saving {
    /// Writes the weights with the model's config.json.
    pub fn transformer<D: AsRef<[f32]>>(
        &self,
        config: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        write_folder_pieces(&self.folder.path().join(TRANSFORMER), config, tensors, pieces)
    }

    /// Writes the weights' moving average with the model's config.json.
    pub fn ema<D: AsRef<[f32]>>(
        &self,
        config: &Value,
        tensors: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        write_folder_pieces(&self.folder.path().join(EMA), config, tensors, pieces)
    }

    /// Writes the optimizer's tensors: of these parameters all means, `m.NAME`, then all mean squares, `v.NAME`.
    pub fn optimizer<D: AsRef<[f32]>>(
        &self,
        parameters: &[(String, Vec<usize>)],
        pieces: impl IntoIterator<Item = Result<D>>,
    ) -> Result<()> {
        write_pieces(&self.folder.path().join(OPTIMIZER), &moments(parameters), pieces).map(drop)
    }

    /// Writes the state, gives the checkpoint its name, then removes all but the last `keep` (at least 1) checkpoints.
    /// One of the same step is replaced. Returns where it is.
    pub fn finish(self, state: &State, keep: usize) -> Result<PathBuf> {
        let Self { folder, all, step } = self;
        if state.step != step {
            bail!("a checkpoint begun at step {step} was given the state of step {}", state.step);
        }
        let path = folder.path();
        for part in [TRANSFORMER, OPTIMIZER] {
            if !path.join(part).exists() {
                bail!("the checkpoint of step {step} was finished without its {part}");
            }
        }
        atomic_write(&path.join(STATE), |out| {
            serde_json::to_writer_pretty(&mut *out, state)?;
            out.write_all(b"\n")
        })?;
        folder.publish(true)?;
        let found = list(&all)?;
        // A restart from an older checkpoint may have left newer steps behind: they are another history's.
        let older: Vec<_> = found.into_iter().filter(|&(s, _)| s < step).collect();
        for (_, path) in older.iter().rev().skip(keep.max(1) - 1) {
            // The run goes on: what is left has no name of a checkpoint, and the next start removes it.
            if let Err(e) = files::remove_folder(path) {
                tracing::warn!("an older checkpoint could not be removed: {e}");
            }
        }
        Ok(all.join(name(step)))
    }
}

/// A complete checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    state: State,
}

impl Checkpoint {
    /// Opens a checkpoint: `path` is its folder, or a run's, or that run's `checkpoints`; of several the last is taken.
    ///
    /// # Errors
    /// There is none, or its state.json is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        if !path.is_dir() {
            bail!("{shown}: is not a folder; a run's folder or a checkpoint's is needed");
        }
        let inner = path.join(CHECKPOINTS);
        let dir = if path.join(STATE).is_file() {
            path.to_owned()
        } else {
            let all = if inner.is_dir() { inner } else { path.to_owned() };
            let Some((_, last)) = list(&all)?.pop() else {
                bail!("{shown}: holds no checkpoint (a folder step-NNNNNNNN with {STATE} in it)");
            };
            last
        };
        let file = dir.join(STATE);
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        let state = serde_json::from_str(&text).map_err(|e| {
            Error::Invalid(format!("{}: is not the state of a checkpoint, or damaged: {e}", file.display()))
        })?;
        Ok(Self { dir, state })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Step, seed, position.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The config of the run that wrote it.
    pub fn config(&self) -> Result<RunConfig> {
        RunConfig::parse(&self.state.config, &self.dir.join(STATE), &[])
    }

    /// The weights.
    pub fn transformer(&self) -> Result<Folder> {
        Folder::open(&self.dir.join(TRANSFORMER))
    }

    /// The moving average of the weights, or the weights themselves where the run kept no average.
    pub fn ema(&self) -> Result<Folder> {
        let ema = self.dir.join(EMA);
        if ema.exists() { Folder::open(&ema) } else { self.transformer() }
    }

    /// The optimizer's tensors, checked to be the two moments of exactly these parameters.
    ///
    /// # Errors
    /// The file is missing or damaged, or is of other parameters.
    pub fn optimizer(&self, parameters: &[(String, Vec<usize>)]) -> Result<Tensors> {
        let tensors = Tensors::open(&self.dir.join(OPTIMIZER))?;
        tensors.check(&moments(parameters))?;
        Ok(tensors)
    }
}

/// Names and shapes of the two moments of these parameters.
fn moments(parameters: &[(String, Vec<usize>)]) -> Vec<(String, Vec<usize>)> {
    let moments = ["m", "v"].into_iter();
    moments.flat_map(|m| parameters.iter().map(move |(n, s)| (format!("{m}.{n}"), s.clone()))).collect()
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The complete checkpoints in a folder, by step. A folder without state.json was not written by [`Saving`].
fn list(all: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !all.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(all).map_err(|e| Error::io(all, e))? {
        let path = entry.map_err(|e| Error::io(all, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let Some(step) = name.strip_prefix("step-").and_then(|digits| digits.parse().ok()) else { continue };
        if path.join(STATE).is_file() {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}
