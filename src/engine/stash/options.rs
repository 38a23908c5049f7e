//! Where a stash is, and how much it keeps.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::files::Place;
use crate::ops::Compute;

/// What blocks remember between forward and backward: `[stash]` of a config. Loss and samples do not need it, training
/// does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StashOptions {
    /// In memory or in a scratch file for each rank.
    #[serde(rename = "where")]
    pub place: Place,
    /// Folder of the scratch files; none: the system's folder for temporary files, `$TMPDIR` or else /tmp.
    pub folder: Option<PathBuf>,
    /// What a block's input and attention's output are kept in: f32, as they are; bf16, rounded.
    pub dtype: Compute,
    /// Keep attention's output; else compute it again.
    pub keep_attention: bool,
}

impl Default for StashOptions {
    fn default() -> Self {
        Self { place: Place::Ram, folder: None, dtype: Compute::F32, keep_attention: true }
    }
}
