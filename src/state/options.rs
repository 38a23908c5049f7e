//! How a run's state changes in a step, and where it is held.

use std::path::PathBuf;

use super::optimizer::AdamWOptions;
use crate::files::Place;

/// How a run's state changes in a step, and where it is held.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateOptions {
    /// The optimizer's constants.
    pub adamw: AdamWOptions,
    /// Global gradient norm above which gradients are scaled down; 0: never.
    pub clip: f64,
    /// Decay of the weights' moving average, after its warm-up; 0: no average.
    pub ema: f64,
    /// Where AdamW's moments and the moving average are.
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
            adamw: AdamWOptions::default(),
            clip: 1.0,
            ema: 0.999,
            moments: Place::Ram,
            zero: 0,
            shared: false,
            scratch: None,
        }
    }
}
