//! state.json: what a checkpoint says besides its tensors, and what its files were when they were saved.
//!
//! It is written last. Its last line is the CRC-32C of all that comes before, so that it cannot be changed unnoticed
//! itself.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::Path;

#[cfg(feature = "media")]
use crate::data::ClipSets;
use crate::files::FileSum;
use crate::terminal::counted;
use crate::{Error, Result, bail};

/// What a checkpoint says besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The version of longreel that wrote it.
    pub longreel: String,
    /// A random name of the run, the same in all its checkpoints; none before there were such names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
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

#[cfg(feature = "media")]
impl DataCounts {
    /// Those of the clips of a run; a file counts for each size that it gives clips of.
    pub fn of(clips: &ClipSets) -> Self {
        Self { files: clips.buckets().iter().map(|dataset| dataset.files().len()).sum(), clips: clips.len() }
    }
}

impl Display for DataCounts {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}, {}", counted(self.files, "file", "files"), counted(self.clips, "clip", "clips"))
    }
}

impl State {
    /// The state of a run of `config` (TOML) and `seed` after `step` steps and `position` clips.
    pub fn new(config: String, seed: u64, step: u64, position: u64) -> Self {
        Self {
            longreel: env!("CARGO_PKG_VERSION").to_owned(),
            run: None,
            step,
            seed,
            position,
            config,
            fps: None,
            classes: Vec::new(),
            data: None,
        }
    }
}

/// The whole of state.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub state: State,
    /// The checkpoint's other files by their paths in its folder; none in checkpoints of 0.1.0.
    #[serde(default)]
    pub files: BTreeMap<String, FileSum>,
}

/// How the last line begins, with the end of the line before.
const SEAL: &str = ",\n  \"crc32c\": \"";

/// The rest of the text behind [`SEAL`].
fn seal_of(text: &str) -> String {
    format!("{:08x}\"\n}}\n", crc32c::crc32c(text.as_bytes()))
}

impl Record {
    /// As text, with its checksum.
    pub fn to_text(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::Checkpoint(format!("the state: {e}")))?;
        let open = json.trim_end_matches("\n}");
        Ok(format!("{open}{SEAL}{}", seal_of(open)))
    }

    /// Of the text of `file`.
    ///
    /// # Errors
    /// It is not the state of a checkpoint, or not as it was written.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let file = file.display();
        let record: Self = serde_json::from_str(text)
            .map_err(|e| Error::Checkpoint(format!("{file}: is not the state of a checkpoint, or damaged: {e}")))?;
        let sealed = text.rsplit_once(SEAL).is_some_and(|(before, seal)| seal == seal_of(before));
        let never = record.files.is_empty() && record.state.run.is_none() && !text.contains(SEAL);
        if !sealed && !never {
            bail!(
                Checkpoint,
                "{file}: is damaged, or was changed after it was saved: its last line is not the checksum of the others"
            )
        }
        Ok(record)
    }
}
