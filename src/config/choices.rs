//! Values of keys that are one of a few words: in a file in lower case, with hyphens.

use serde::{Deserialize, Serialize};

/// Where a crop lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    #[default]
    Center,
    Random,
}

/// Where a clip's class comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Clips have no class.
    #[default]
    None,
    /// The folder directly below `path` is the class; classes are numbered in the order of their names.
    Folder,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    #[default]
    V,
    X,
}

/// How training timesteps are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timesteps {
    #[default]
    LogitNormal,
    Uniform,
}

/// Arithmetic of the heavy operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    #[default]
    F32,
    Bf16,
}

impl Compute {
    /// As a config names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// What is trained in where nobody says: f32 on a CPU; on a GPU, whose kernels for f32 are for checks, bf16.
    pub fn usual(on: Hardware) -> Self {
        match on {
            Hardware::Cpu => Self::F32,
            Hardware::Cuda => Self::Bf16,
        }
    }
}

/// What a rank computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Hardware {
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, with the cargo feature `cuda`
    Cuda,
}

/// What follows warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[default]
    Constant,
    /// Cosine to zero at `steps`.
    Cosine,
}

/// Where something large is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Place {
    #[default]
    Ram,
    Disk,
}

/// Which sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    Euler,
    #[default]
    Heun,
    /// DPM-Solver++(2M).
    Dpmpp,
    /// UniPC, order 2, B2(h).
    Unipc,
}
