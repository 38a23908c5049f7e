//! `longreel sample`: a run or checkpoint to clips.

use crate::config::SamplerKind;
use crate::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Sample clips from a run's EMA weights.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run's folder (its last checkpoint is taken), a checkpoint's, or `hf://owner/name[@revision][/path]`
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    pub from: String,
    /// Where to write: a video (.mp4), an animation (.gif), a sheet of frames (.png), or a folder
    #[arg(short, long, value_name = "FILE.mp4|.gif|.png|DIR")]
    pub output: PathBuf,
    /// Clips; default: the config's `sample.count`
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub count: Option<usize>,
    /// Frames of a clip; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub frames: Option<usize>,
    /// Height in pixels; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub height: Option<usize>,
    /// Width in pixels; default: as trained
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub width: Option<usize>,
    /// Sampler steps; default: the config's `sample.steps`
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub steps: Option<usize>,
    /// Default: the config's `sample.sampler`
    #[arg(long)]
    pub sampler: Option<SamplerKind>,
    /// Guidance scale, 1 for none; default: the config's `sample.guidance`
    #[arg(long, value_name = "W")]
    pub guidance: Option<f64>,
    /// A class, by number or folder name; default: each class in turn
    #[arg(long, value_name = "CLASS")]
    pub label: Option<String>,
    /// Default: the config's `run.seed`
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Ranks, as threads of this process
    #[arg(long, value_name = "P", default_value = "1", value_parser = super::at_least_1)]
    pub ranks: usize,
}

/// Runs the command.
pub fn run(_args: SampleArgs) -> Result<()> {
    bail!("`longreel sample` is not part of this build")
}
