//! Names where something large is kept.

use serde::{Deserialize, Serialize};

/// Where something large is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Place {
    #[default]
    Ram,
    Disk,
}
