//! The stash in a scratch file, one a rank, opened once a run and used again by every step.
//!
//! The file has no name: it is made with `O_TMPFILE` (or, where a file system lacks that, unlinked while it is still
//! empty). So the kernel gives its space back as soon as the process ends, however it ends: a run that was killed
//! leaves nothing behind, there are no leftovers to look for at the next start, and no start can remove a file that a
//! live run uses. The price is that `ls` and `du` do not show it, only `df` does. It is never synced, for nobody reads
//! it after a crash.

use rustix::fs::{FallocateFlags, fallocate, fstatfs, fstatvfs};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::copies::Store;
use crate::config::{Compute, Stash as Settings};
use crate::{Error, Result, bail};

/// `f_type` of a file system that lies in memory.
const TMPFS: u64 = 0x0102_1994;

/// A scratch file.
pub(super) struct Scratch {
    file: File,
    folder: PathBuf,
    /// What the user could change to need less.
    advice: String,
    /// Bytes that are the file's for good.
    reserved: Mutex<u64>,
    /// Bytes of a block.
    size: AtomicU64,
}

impl Scratch {
    /// An empty file in the scratch folder.
    pub fn open(settings: &Settings) -> Result<Self> {
        let folder = settings.folder.clone().unwrap_or_else(std::env::temp_dir);
        let file = tempfile::tempfile_in(&folder).map_err(|e| {
            let folder = folder.display();
            Error::Invalid(format!(
                "stash.folder: no scratch file can be made in {folder}: {e}; name a folder that can be written to"
            ))
        })?;
        let mut less = vec![];
        if settings.dtype == Compute::F32 {
            less.push("stash.dtype = \"bf16\"");
        }
        if settings.keep_attention {
            less.push("stash.keep_attention = false");
        }
        less.push("a smaller train.batch, or smaller clips");
        let advice = format!("name another stash.folder, or need less: {}", less.join(", "));
        Ok(Self { file, folder, advice, reserved: Mutex::new(0), size: AtomicU64::new(0) })
    }

    /// Fails if the folder has no room for `bytes` more.
    pub fn check(&self, bytes: u64) -> Result<()> {
        let space = fstatvfs(&self.file).map_err(|e| self.error("asking for the space of", e.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if bytes > free {
            let (needed, free, folder) = (gib(bytes), gib(free), self.folder.display());
            bail!("stash.folder: {needed} are needed in {folder}, where {free} are free; {}", self.advice)
        }
        Ok(())
    }

    /// Warns if the folder is no better than memory.
    pub fn warn_of_memory(&self) {
        if fstatfs(&self.file).is_ok_and(|system| system.f_type as u64 == TMPFS) {
            tracing::warn!("stash.folder: {} lies in memory (tmpfs), not on a disk", self.folder.display());
        }
    }

    fn error(&self, what: &str, e: io::Error) -> Error {
        let hint = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => format!("; {}", self.advice),
            ErrorKind::UnexpectedEof => "; something else has cut it short".to_owned(),
            _ => String::new(),
        };
        Error::Invalid(format!("{what} the scratch file in {}: {e}{hint}", self.folder.display()))
    }

    fn at(&self, block: usize, at: u64) -> u64 {
        block as u64 * self.size.load(Ordering::SeqCst) + at
    }
}

impl Store for Scratch {
    fn reserve(&self, blocks: usize, size: u64) -> Result<()> {
        self.size.store(size, Ordering::SeqCst);
        let bytes = size.saturating_mul(blocks as u64);
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= *reserved {
            return Ok(());
        }
        // Other ranks and programs use the folder too: that there is room now is a good message early, that the blocks
        // are the file's own is what a step can rely on.
        self.check(bytes - *reserved)?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // Some network file systems cannot reserve; their writes may then fail, and say so.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(bytes),
            other => other.map_err(io::Error::from),
        }
        .map_err(|e| self.error(&format!("reserving {} for", gib(bytes)), e))?;
        *reserved = bytes;
        Ok(())
    }

    fn write(&self, block: usize, at: u64, from: &[u8]) -> Result<()> {
        self.file.write_all_at(from, self.at(block, at)).map_err(|e| self.error("writing", e))
    }

    fn read(&self, block: usize, at: u64, to: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(to, self.at(block, at)).map_err(|e| self.error("reading", e))
    }
}

/// Bytes for people.
fn gib(bytes: u64) -> String {
    let (mib, gib) = (1u64 << 20, 1u64 << 30);
    if bytes < gib {
        format!("{:.1} MiB", bytes as f64 / mib as f64)
    } else {
        format!("{:.1} GiB", bytes as f64 / gib as f64)
    }
}
