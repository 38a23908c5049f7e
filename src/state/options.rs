//! How a run's state changes in a step, and where it is held.

use std::path::PathBuf;

use super::optimizer::{AdamWOptions, OptimizerKind};
use crate::files::Place;

/// How a run's state changes in a step, and where it is held.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateOptions {
    /// Which optimizer.
    pub optimizer: OptimizerKind,
    /// AdamW's constants; of Muon, those of what it leaves to AdamW, and the weight decay of all.
    pub adamw: AdamWOptions,
    /// Muon's momentum.
    pub momentum: f64,
    /// Global gradient norm above which gradients are scaled down; 0: never.
    pub clip: f64,
    /// Decay of the weights' moving average, after its warm-up; 0: no average.
    pub ema: f64,
    /// Where the optimizer's moments and the moving average are.
    pub moments: Place,
    /// ZeRO's stage, what is sharded over all ranks: 1, moments and average; 2, gradients too; 3, parameters too; 0,
    /// nothing.
    pub zero: usize,
    /// Whether ranks are threads of this process, which have frozen parameters once and do not shard them.
    pub shared: bool,
    /// Folder of scratch files; none: the system's folder for temporary files.
    pub scratch: Option<PathBuf>,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::AdamW,
            adamw: AdamWOptions::default(),
            momentum: 0.95,
            clip: 1.0,
            ema: 0.999,
            moments: Place::Ram,
            zero: 0,
            shared: false,
            scratch: None,
        }
    }
}
