//! Values of keys that are one of a few words: in a file in lower case, with hyphens. Most are the words of the rooms
//! whose options they set.

use serde::{Deserialize, Serialize};

pub use crate::data::{Crop, Label};
pub use crate::diffusion::{Prediction, SamplerKind, Timesteps};
pub use crate::files::Place;
pub use crate::ops::{Compute, Hardware};

/// What follows warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[default]
    Constant,
    /// Cosine to zero at `steps`.
    Cosine,
}
