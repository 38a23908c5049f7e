//! A scratch file without a name, for what a process puts aside while it runs.
//!
//! It is made with `O_TMPFILE` (or, where a file system lacks that, unlinked while it is still empty). So the kernel
//! gives its space back as soon as the process ends, however it ends: a run that was killed leaves nothing behind,
//! there are no leftovers to look for at the next start, and no start can remove a file that a live run uses. The price
//! is that `ls` and `du` do not show it, only `df` does. It is never synced, for nobody reads it after a crash.

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{file_size, free_space};
use crate::{Error, Result, bail};

/// `f_type` of a file system that lies in memory.
const TMPFS: u64 = 0x0102_1994;

/// A scratch file.
pub(crate) struct Scratch {
    file: File,
    folder: PathBuf,
    /// What the user could change to need less.
    advice: String,
    /// Bytes that are the file's for good.
    reserved: Mutex<u64>,
}

impl Scratch {
    /// An empty file in `folder`, the config's `stash.folder`; none: the system's folder for temporary files. Errors of
    /// a full disk end with `advice`.
    pub fn open(folder: Option<&Path>, advice: String) -> Result<Self> {
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let file = tempfile::tempfile_in(&folder).map_err(|e| {
            let folder = folder.display();
            Error::Environment(format!(
                "stash.folder: no scratch file can be made in {folder}: {e}; name a folder that can be written to"
            ))
        })?;
        Ok(Self { file, folder, advice, reserved: Mutex::new(0) })
    }

    /// Fails if the folder has no room for `bytes` more.
    pub fn check(&self, bytes: u64) -> Result<()> {
        let free = free_space(&self.file).map_err(|e| self.error("asking for the space of", e))?;
        if bytes > free {
            let (needed, free, folder) = (file_size(bytes), file_size(free), self.folder.display());
            bail!(Environment, "stash.folder: {needed} are needed in {folder}, where {free} are free; {}", self.advice)
        }
        Ok(())
    }

    /// Warns if the folder is no better than memory.
    pub fn warn_of_memory(&self) {
        if fstatfs(&self.file).is_ok_and(|system| system.f_type as u64 == TMPFS) {
            tracing::warn!("stash.folder: {} lies in memory (tmpfs), not on a disk", self.folder.display());
        }
    }

    /// Makes the first `bytes` the file's for good, if they are not yet.
    ///
    /// # Errors
    /// The folder has no room.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        let mut reserved = self.reserved.lock();
        if bytes <= *reserved {
            return Ok(());
        }
        // Other ranks and programs use the folder too: that there is room now is a good message early, that the bytes
        // are the file's own is what a step can rely on.
        self.check(bytes - *reserved)?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // Some network file systems cannot reserve; their writes may then fail, and say so.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(bytes),
            other => other.map_err(io::Error::from),
        }
        .map_err(|e| self.error(&format!("reserving {} for", file_size(bytes)), e))?;
        *reserved = bytes;
        Ok(())
    }

    /// Writes `from` at byte `at`.
    pub fn write(&self, at: u64, from: &[u8]) -> Result<()> {
        self.file.write_all_at(from, at).map_err(|e| self.error("writing", e))
    }

    /// Reads from byte `at` on until `to` is full.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(to, at).map_err(|e| self.error("reading", e))
    }

    fn error(&self, what: &str, e: io::Error) -> Error {
        let hint = match (super::advice(e.kind()), e.kind()) {
            (Some(limit), ErrorKind::FileTooLarge) => format!("; {limit}, or {}", self.advice),
            (Some(_), _) => format!("; {}", self.advice),
            (None, ErrorKind::UnexpectedEof) => "; something else has cut it short".to_owned(),
            (None, _) => String::new(),
        };
        Error::Environment(format!("{what} the scratch file in {}: {e}{hint}", self.folder.display()))
    }
}
