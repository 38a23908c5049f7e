//! Values of keys that are one of a few words: in a file in lower case, with hyphens. Most are the words of the rooms
//! whose options they set.

use serde::{Deserialize, Serialize};

pub use crate::data::{Crop, Label};
pub use crate::diffusion::{LossWeight, Prediction, SamplerKind, Timesteps};
pub use crate::files::Place;
pub use crate::ops::{Compute, Hardware};
pub use crate::state::optimizer::OptimizerKind;

/// What follows warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[default]
    Constant,
    /// Cosine to zero at `steps`.
    Cosine,
    /// A straight line to zero at `steps`.
    Linear,
    /// Constant, then a straight line to zero over the last `decay` of the steps: warm-up, stable, decay.
    Wsd,
}

/// What a step's loss weighs, beside that of steps of clips of other sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weigh {
    /// Each clip the same, whatever its size.
    #[default]
    Clip,
    /// Each token the same: a clip as much as it has tokens, over their mean.
    Token,
}
