//! Folders and files below a dataset's path that are no part of it: runs, whose samples and loss curves would be
//! trained on, and what is held out.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use walkdir::{DirEntry, DirEntryExt};

use crate::{Result, bail};

/// What is left out of a dataset, with the reasons. Folders that look like a run's are left out in any case.
#[derive(Clone, Debug, Default)]
pub struct Apart(Vec<Place>);

#[derive(Clone, Debug)]
struct Place {
    device: u64,
    inode: u64,
    reason: String,
}

/// What a run puts into its folder; other folders there may hold data.
const OF_A_RUN: [&str; 3] = ["samples", "checkpoints", "tensorboard"];

impl Apart {
    /// What a run that puts its files into `out` leaves out of the data that it trains on.
    #[must_use]
    pub fn of_run(out: &Path, held_out: Option<&Path>) -> Self {
        let own = Self::default().with(out, "it is this run's own folder (run.out)");
        held_out.into_iter().fold(own, |apart, path| apart.with(path, "it is held out (data.heldout)"))
    }

    /// Leaves out the folder or file `path` too, if it is there, because `reason` ("it is ...").
    #[must_use]
    pub fn with(mut self, path: &Path, reason: &str) -> Self {
        if let Ok(about) = std::fs::metadata(path) {
            self.0.push(Place { device: about.dev(), inode: about.ino(), reason: reason.to_owned() });
        }
        self
    }

    /// Why an entry below a dataset's path is left out, if it is.
    pub(super) fn reason(&self, entry: &DirEntry) -> Option<&str> {
        let folder = entry.file_type().is_dir();
        // A folder may be a mount point, whose entry has another inode.
        if folder || self.0.iter().any(|place| place.inode == entry.ino()) {
            let about = entry.metadata().ok()?;
            let is = |place: &&Place| (place.device, place.inode) == (about.dev(), about.ino());
            if let Some(place) = self.0.iter().find(is) {
                return Some(&place.reason);
            }
        }
        (folder && is_run(entry.path())).then_some("it is the folder of a run, whose samples and curves are no data")
    }
}

/// Whether a folder looks like a run's.
fn is_run(folder: &Path) -> bool {
    folder.join("config.toml").is_file()
        && (folder.join("metrics.jsonl").is_file() || folder.join("checkpoints").is_dir())
}

/// Refuses `path`, the value of `key`, if a run in `out` would write its own files there.
///
/// # Errors
/// It is `out` itself, or lies in what a run writes there.
pub fn refuse_own_output(key: &str, path: &Path, out: &Path) -> Result<()> {
    let (Ok(real), Ok(own)) = (path.canonicalize(), out.canonicalize()) else { return Ok(()) };
    let Ok(inner) = real.strip_prefix(&own) else { return Ok(()) };
    let first = inner.components().next().map(|first| first.as_os_str().to_owned());
    if first.is_none_or(|first| OF_A_RUN.iter().any(|name| first == *name)) {
        let (path, out) = (path.display(), out.display());
        bail!(
            Config,
            "{key} is {path}, where the run in run.out = {out} puts its own files, which would be trained on: choose another run.out"
        )
    }
    Ok(())
}
