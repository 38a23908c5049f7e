//! Opening a checkpoint: what was saved, or an error that names the file.
//!
//! state.json has the checksum of every file. Names and lengths are checked when a part is opened, contents while they
//! are read (see
//! [`Tensors::check_sums`]), so that nothing is read twice.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

use super::state::{Record, State};
use super::{
    ADAPTER, ADAPTER_EMA, CHECKPOINTS, EMA, OPTIMIZER, STATE, TRANSFORMER, folder_name, moments, newest, step_of,
};
use crate::files::{FileSum, Tensors};
use crate::model::folder::Folder;
use crate::state::optimizer::OptimizerKind;
use crate::{Error, Result, bail};

/// How often a reader looks for the newest checkpoint anew, while the run that trains removes the one it has found.
const ATTEMPTS: usize = 20;

/// A complete checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    record: Record,
    /// CRC-32C of state.json.
    sum: u32,
}

impl Checkpoint {
    /// Opens a checkpoint: `path` is its folder, or a run's, or that run's `checkpoints`; of several the last is taken.
    ///
    /// # Errors
    /// There is none, or its state.json is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, |_| Ok(())).map(|(checkpoint, ())| checkpoint)
    }

    /// As [`open`](Self::open), with what `read` opens of it. If the run that trains meanwhile removes the checkpoint,
    /// the newest one is taken instead; what is open by then can be read for as long as it is open.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of `read`; or `path` is the checkpoint itself, and was removed.
    pub fn open_with<T>(path: &Path, read: impl Fn(&Self) -> Result<T>) -> Result<(Self, T)> {
        retried(path, || {
            let dir = find(path)?;
            let opened = Self::at(&dir).and_then(|checkpoint| {
                let part = read(&checkpoint)?;
                Ok((checkpoint, part))
            });
            Ok((dir, opened))
        })
    }

    /// Opens the checkpoint in the folder `dir`.
    pub(super) fn at(dir: &Path) -> Result<Self> {
        let file = dir.join(STATE);
        let text = fs::read_to_string(&file).map_err(|e| match e.kind() {
            ErrorKind::InvalidData => Error::Checkpoint(format!(
                "{}: is not the state of a checkpoint, or damaged: it is no text",
                file.display()
            )),
            _ => Error::io(&file, e),
        })?;
        let record = Record::parse(&text, &file)?;
        let step = record.state.step;
        if step_of(dir).is_some_and(|named| named != step) {
            bail!(
                Checkpoint,
                "{}: is of step {step}: the folder was renamed, or the file is another checkpoint's",
                file.display()
            )
        }
        Ok(Self { dir: dir.to_owned(), record, sum: crc32c::crc32c(text.as_bytes()) })
    }

    /// The folder of the checkpoint of another step beside this one.
    pub fn sibling(&self, step: u64) -> PathBuf {
        self.dir.with_file_name(folder_name(step))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Step, seed, position.
    pub fn state(&self) -> &State {
        &self.record.state
    }

    /// CRC-32C of state.json, which has those of all other files: equal in two processes that see the same checkpoint.
    pub fn sum(&self) -> u64 {
        self.sum.into()
    }

    /// Whether its files have checksums; those of 0.1.0 have none.
    pub fn has_sums(&self) -> bool {
        !self.record.files.is_empty()
    }

    /// Its files, by their paths in its folder, with what they were when they were saved; but for state.json.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &FileSum)> {
        self.record.files.iter().map(|(name, sum)| (name.as_str(), sum))
    }

    /// The weights.
    pub fn transformer(&self) -> Result<Folder> {
        self.model(TRANSFORMER)
    }

    /// Whether it is of adapters over a frozen network.
    pub fn is_of_adapters(&self) -> bool {
        self.files().any(|(name, _)| within(name, ADAPTER))
    }

    /// The adapters.
    pub fn adapter(&self) -> Result<Folder> {
        self.model(ADAPTER)
    }

    /// The moving average of the weights, or the weights themselves where the run kept no average.
    pub fn ema(&self) -> Result<Folder> {
        self.model(self.average())
    }

    /// The part that has the moving average, or the weights where the run kept none.
    pub(crate) fn average(&self) -> &'static str {
        let [weights, average] = if self.is_of_adapters() { [ADAPTER, ADAPTER_EMA] } else { [TRANSFORMER, EMA] };
        let saved = self.files().any(|(name, _)| within(name, average));
        if saved || self.dir.join(average).exists() { average } else { weights }
    }

    /// A part that is a model.
    pub(crate) fn model(&self, part: &str) -> Result<Folder> {
        self.check_names(part)?;
        let dir = self.dir.join(part);
        let saved = |extension: &str| self.files().find(|(n, _)| within(n, part) && n.ends_with(extension));
        if let Some((name, sum)) = saved(".json") {
            let file = self.dir.join(name);
            sum.check(FileSum::of(&file)?, &file)?;
        }
        Ok(Folder::open(&dir)?.expecting(saved(".safetensors").map(|(_, sum)| *sum)))
    }

    /// The optimizer's tensors, checked to be the moments that it has of exactly these parameters.
    ///
    /// # Errors
    /// The file is missing or damaged, or is of other parameters or of an optimizer with other moments.
    pub fn optimizer(&self, kind: OptimizerKind, parameters: &[(String, Vec<usize>)]) -> Result<Tensors> {
        self.check_names(OPTIMIZER)?;
        let tensors = Tensors::open(&self.dir.join(OPTIMIZER))?.expecting(self.record.files.get(OPTIMIZER).copied());
        tensors.check(&moments(kind, parameters))?;
        Ok(tensors)
    }

    /// Checks that the files of a part (a file, a folder, or "" for all) are those that were saved, by name and length.
    ///
    /// # Errors
    /// One is missing, shorter or longer, or was not there then.
    pub(crate) fn check_names(&self, part: &str) -> Result<()> {
        if !self.has_sums() {
            return Ok(());
        }
        for (name, sum) in self.files().filter(|(name, _)| within(name, part)) {
            let path = self.dir.join(name);
            match fs::metadata(&path) {
                Ok(there) => sum.check_length(there.len(), &path)?,
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    bail!(Checkpoint, "{}: No such file, though it was saved with this checkpoint", path.display())
                }
                Err(e) => return Err(Error::io(&path, e)),
            }
        }
        let root = self.dir.join(part);
        let visible =
            |entry: &walkdir::DirEntry| entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".");
        for entry in WalkDir::new(&root).follow_links(true).into_iter().filter_entry(visible) {
            let entry = entry.map_err(|e| Error::io(&root, e.into()))?;
            let name = entry.path().strip_prefix(&self.dir).unwrap_or(entry.path()).to_string_lossy();
            if !entry.file_type().is_dir() && name != STATE && !self.record.files.contains_key(&*name) {
                bail!(
                    Checkpoint,
                    "{}: is no part of this checkpoint, it was put there later: remove it",
                    entry.path().display()
                )
            }
        }
        Ok(())
    }
}

/// Opens what `open` finds by the name `path`, of the checkpoint whose folder it tells; anew where the run that trains
/// meanwhile has removed that one. A run's checkpoint loses its name at once, before any of its files goes.
///
/// # Errors
/// Those of `open`; or `path` itself was removed.
pub(crate) fn retried<T>(path: &Path, open: impl Fn() -> Result<(PathBuf, Result<T>)>) -> Result<T> {
    let mut attempt = 1;
    loop {
        let (dir, opened) = open()?;
        match opened {
            Err(_) if !path.exists() => {
                let path = path.display();
                bail!(
                    Checkpoint,
                    "{path}: was removed while it was opened: its run keeps the last train.keep checkpoints only"
                )
            }
            Err(_) if attempt < ATTEMPTS && !dir.exists() => attempt += 1,
            other => return other,
        }
    }
}

/// The folder of the checkpoint that `path` names.
fn find(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    if !path.is_dir() {
        bail!(Checkpoint, "{shown}: is not a folder; a run's folder or a checkpoint's is needed");
    }
    let inner = path.join(CHECKPOINTS);
    if path.join(STATE).is_file() {
        return Ok(path.to_owned());
    }
    if step_of(path).is_some() && !inner.is_dir() {
        bail!(
            Checkpoint,
            "{shown}: has no {STATE}, without which what is there cannot be trusted; choose another checkpoint"
        )
    }
    match newest(if inner.is_dir() { &inner } else { path })? {
        Some(found) => Ok(found),
        None => bail!(Checkpoint, "{shown}: holds no checkpoint (a folder step-NNNNNNNN with {STATE} in it)"),
    }
}

/// Whether the file `name` is `part`, or in the folder `part`; everything is in "".
fn within(name: &str, part: &str) -> bool {
    part.is_empty() || name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
