//! Whether a process is at work in a run's folder, as its lock tells: see `train/run_lock.rs`, which takes it.

use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::Path;

/// The lock's name in a run's folder.
pub(crate) const LOCK: &str = "lock";

/// Bytes of a lock's text at most.
const LONGEST: u64 = 1 << 16;

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
    /// The time of day, UTC.
    pub since: String,
    pub command: String,
}

/// What a lock tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// A process is at work, which has said who it is.
    Held(Option<Holder>),
    /// None is; the one that was has left the file behind: it was killed, or its machine went down.
    Left,
    /// None is.
    Free,
    /// The file system has no locks, or does not let this user ask.
    Unknown(String),
}

/// Looks at the lock of the run in `root`. To ask the kernel, it is held together with others for a moment.
pub fn look(root: &Path) -> Lock {
    let path = root.join(LOCK);
    if !path.symlink_metadata().is_ok_and(|about| about.is_file()) {
        return Lock::Free;
    }
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Lock::Free,
        Err(e) => return Lock::Unknown(e.to_string()),
    };
    match file.try_lock_shared() {
        Ok(()) if path.symlink_metadata().is_ok() => Lock::Left,
        Ok(()) => Lock::Free, // its holder ended, and removed it, after it was opened
        Err(TryLockError::WouldBlock) => Lock::Held(read_holder(&file).ok()),
        Err(TryLockError::Error(e)) => Lock::Unknown(e.to_string()),
    }
}

/// Who a lock's text says holds it.
///
/// # Errors
/// It cannot be read, or is not written yet.
pub(crate) fn read_holder(file: &File) -> io::Result<Holder> {
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
