//! `longreel train`: a config to a run.

use crate::Result;
use crate::config::RunConfig;
use clap::Args;
use std::path::PathBuf;

/// Train a model as a TOML file says.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The run's config; docs/configuration.md has all keys
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Ranks, as threads of this process; default: `parallel.ranks`
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    pub ranks: Option<usize>,
    /// Continue from the run's last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Override a key of the config, for example `--set train.lr=1e-4`; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
pub fn run(args: TrainArgs) -> Result<()> {
    let config = args.config()?;
    let threads = super::threads_per_rank(config.parallel.ranks);
    crate::train::run(config, args.resume, threads, super::catch_interrupts()?)
}

impl TrainArgs {
    /// The config with all overrides, `--ranks` among them.
    pub fn config(&self) -> Result<RunConfig> {
        let mut sets = self.set.clone();
        sets.extend(self.ranks.map(|ranks| format!("parallel.ranks={ranks}")));
        RunConfig::load(&self.config, &sets)
    }
}
