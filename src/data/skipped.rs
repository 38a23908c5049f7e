//! What is not used of a folder, and why, as the log and reports say it.

use super::buckets::Bucket;
use crate::terminal;
use std::path::PathBuf;

/// A file or folder that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file or folder.
    pub path: PathBuf,
    /// Why it is not used, a clause.
    pub reason: String,
}

impl Skipped {
    pub(super) fn new(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// The line in the log, without which nothing is skipped.
    pub(super) fn log(&self) {
        tracing::warn!("{} is not used: {}", terminal::name(&self.path), self.reason);
    }

    /// The same of a file that may well give clips of another size.
    pub(super) fn log_of(&self, bucket: Bucket) {
        tracing::warn!("{} gives no clip of {bucket}: {}", terminal::name(&self.path), self.reason);
    }
}
