//! Names what a rank computes on, and in which arithmetic.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// Arithmetic of the heavy operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// IEEE's single precision.
    #[default]
    F32,
    /// Sums are f32 still.
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

    /// Of the tensors that it computes on.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
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
    /// All of its cores, or a rank's share of them.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, with the cargo feature `cuda`
    Cuda,
}
