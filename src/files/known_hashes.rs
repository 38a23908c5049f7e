//! Remembers hashes of what large files hold, by what tells each file from any other state of it, so that a model of
//! gigabytes is not read at every start.
//!
//! The memory is a file of JSON that can do without: what is damaged, unreadable or of another form is begun anew.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{atomic_write, read_text, to_hex};
use crate::{Error, Result};

/// The memory's file in a cache's folder.
const MEMORY: &str = "models.json";

/// Bytes that the memory may have: some hundred thousand models.
const MOST: u64 = 64 << 20;

/// A file that changed less than so many seconds ago may change again within the clock's grain: it is not remembered.
const SETTLED: i64 = 3;

/// What tells whether a file is the one that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of contents, and of the file's record, which no program can set back.
    changed: [i64; 4],
}

impl Identity {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        let changed = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.size());
        Self { path: path.to_owned(), device, inode, size, changed }
    }

    fn has_settled(&self, now: i64) -> bool {
        now.saturating_sub(self.changed[2]) >= SETTLED
    }
}

/// A hash that is known, and the files that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    files: Vec<Identity>,
    sha256: String,
}

impl Known {
    /// Whether it is of `files`, and a hash.
    fn is_of(&self, files: &[Identity]) -> bool {
        let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        self.files == files && self.sha256.len() == 64 && self.sha256.bytes().all(digits)
    }
}

/// The hashes known so far, and those learnt since.
#[derive(Debug)]
pub struct KnownHashes {
    memory: PathBuf,
    known: BTreeMap<String, Known>,
    learnt: Mutex<BTreeMap<String, Known>>,
}

impl KnownHashes {
    /// Those that the folder `dir` remembers.
    pub fn open(dir: &Path) -> Self {
        let memory = dir.join(MEMORY);
        Self { known: read(&memory), learnt: Mutex::default(), memory }
    }

    /// The hash of what `files` hold, of which `what` says what is hashed and how: as is remembered, or by `compute`.
    ///
    /// # Errors
    /// Those of `compute`; a file's record cannot be read.
    pub fn get(
        &self,
        what: &str,
        files: &[(&Path, &File)],
        compute: impl FnOnce() -> Result<String>,
    ) -> Result<String> {
        let identities = || -> Result<Vec<Identity>> {
            let of = |(path, file): &(&Path, &File)| {
                let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
                let path = std::path::absolute(path).map_err(|e| Error::io(path, e))?;
                Ok(Identity::of(&path, &metadata))
            };
            files.iter().map(of).collect()
        };
        let before = identities()?;
        let paths: Vec<&PathBuf> = before.iter().map(|file| &file.path).collect();
        let key = to_hex(Sha256::digest(format!("{what} {paths:?}")));
        if let Some(known) = self.known.get(&key).filter(|known| known.is_of(&before)) {
            return Ok(known.sha256.clone());
        }
        let sha256 = compute()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        if before.iter().all(|file| file.has_settled(now)) && identities()? == before {
            self.learnt.lock().insert(key, Known { files: before, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    /// Writes down what was learnt, if anything was and the folder is there, beside what other processes have written
    /// meanwhile. That it cannot be written is no error: the files are then read again next time.
    pub fn save(&self) {
        let learnt = self.learnt.lock();
        if learnt.is_empty() || !self.memory.parent().is_some_and(Path::is_dir) {
            return;
        }
        let mut all = read(&self.memory);
        all.extend(learnt.clone());
        let written = serde_json::to_vec(&all).map_err(|e| Error::io(&self.memory, e.into()));
        let written = written.and_then(|text| atomic_write(&self.memory, |out| out.write_all(&text)));
        if let Err(e) = written {
            tracing::debug!("hashes of models are not remembered: {e}");
        }
    }
}

/// What a memory says; nothing where it is not there or damaged.
fn read(memory: &Path) -> BTreeMap<String, Known> {
    let text = read_text(memory, MOST).ok();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
