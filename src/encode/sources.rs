//! Hashes of source files' contents, remembered by path, size and time of change, so that large files are read once.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::{atomic_write, digest_of, read_text, to_hex};
use crate::{Error, Result};

/// The memory's file in a cache's folder.
pub(super) const MEMORY: &str = "sources.json";

/// Bytes that the memory may have: some millions of files.
const MOST: u64 = 1 << 30;

/// What tells whether a file is the one that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    size: u64,
    /// Seconds and nanoseconds of the last change of contents, and of the file's record, which no program can set back.
    changed: [i64; 4],
    inode: u64,
    sha256: String,
}

/// A file that changed less than so many seconds ago may change again within the clock's grain: it is not remembered.
const SETTLED: u64 = 3;

/// The hashes known so far.
pub struct Sources {
    memory: PathBuf,
    /// By path; of a name that is not UTF-8, its bytes in hexadecimal digits.
    known: Mutex<BTreeMap<String, Known>>,
}

impl Sources {
    /// Those remembered in the folder `dir`; a memory that cannot be read is begun anew.
    pub fn open(dir: &Path) -> Self {
        let memory = dir.join(MEMORY);
        let known = read_text(&memory, MOST).ok().and_then(|text| serde_json::from_str(&text).ok());
        Self { memory, known: Mutex::new(known.unwrap_or_default()) }
    }

    /// The SHA-256 of a file's contents, in hexadecimal digits.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hash(&self, path: &Path) -> Result<String> {
        let whole = std::path::absolute(path).map_err(|e| Error::io(path, e))?.into_os_string();
        let whole = whole.into_string().unwrap_or_else(|name| to_hex(name.as_bytes()));
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let changed = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let (size, inode) = (metadata.size(), metadata.ino());
        let same = |known: &&Known| (known.size, known.changed, known.inode) == (size, changed, inode);
        if let Some(known) = self.known.lock().get(&whole).filter(same) {
            return Ok(known.sha256.clone());
        }
        let sha256 =
            File::open(path).and_then(|file| digest_of(Sha256::new(), file)).map_err(|e| Error::io(path, e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if now.saturating_sub(metadata.ctime().max(0) as u64) >= SETTLED {
            self.known.lock().insert(whole, Known { size, changed, inode, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    /// Writes the memory.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&*self.known.lock()).map_err(|e| Error::io(&self.memory, e.into()))?;
        atomic_write(&self.memory, |out| out.write_all(&text))
    }
}
