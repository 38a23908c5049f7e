//! `longreel train`: a config to a run.

use crate::config::{RunConfig, read_config};
use crate::parallel::Launch;
use crate::train::rehearsal::Rehearsal;
use crate::train::{Start, Trainer};
use crate::train::{inherit_diffusion, inherit_dtype};
use crate::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Train a model as a TOML file says.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The run's config; docs/configuration.md has all keys
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Ranks, as threads of this process; default: `parallel.ranks`. Under mpirun or srun each process is a rank
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    pub ranks: Option<usize>,
    /// Continue from the run's last checkpoint; where there is none yet, start
    #[arg(long)]
    pub resume: bool,
    /// With --resume: continue from the checkpoint of this step; those after it are set aside
    #[arg(long, value_name = "N", requires = "resume")]
    pub step: Option<u64>,
    /// Run two steps without attention's arithmetic, to measure their memory; nothing is saved
    #[arg(long, conflicts_with = "resume")]
    pub rehearse: bool,
    /// Override a key of the config, for example `--set train.lr=1e-4`; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
pub fn run(args: &TrainArgs, launch: &Launch) -> Result<()> {
    let config = args.config(launch)?;
    if args.rehearse {
        if launch.processes().is_some() {
            bail!(
                Environment,
                "--rehearse measures one process's memory: start it without a launcher, with --ranks for the ranks"
            )
        }
        tracing::warn!("a rehearsal: attention is not computed, the steps' numbers mean nothing, and nothing is saved");
        return super::print(rehearsed(&crate::train::rehearse(config, launch)?));
    }
    let start = match args.step {
        Some(step) => Start::Step(step),
        None if args.resume => Start::Last,
        None => Start::New,
    };
    let trainer = Trainer::new(config).start(start).launch(launch).stop_when(super::catch_interrupts()?);
    trainer.run().map(drop)
}

/// What was predicted beside what was measured.
fn rehearsed(done: &Rehearsal) -> String {
    let row = |[predicted, measured]: [u64; 2]| {
        let off = 100.0 * (predicted as f64 / measured as f64 - 1.0);
        let [predicted, measured] = [predicted, measured].map(|bytes| bytes as f64 / f64::from(1 << 30));
        format!("predicted {predicted:.4} GiB, measured {measured:.4} GiB ({off:+.1} %)")
    };
    let mut lines = vec![];
    for (name, both) in &done.phases {
        lines.push(format!("in use in \"{name}\": {}", row(*both)));
    }
    lines.push(format!("in use at most: {}", row(done.buffers)));
    lines.push(format!("rehearsed: peak {}", row(done.process)));
    lines.join("\n")
}

impl TrainArgs {
    /// The config with all overrides, `--ranks` among them, and as many ranks as a launcher started, on GPUs if it gave
    /// them any.
    pub fn config(&self, launch: &Launch) -> Result<RunConfig> {
        let mut sets = self.set.clone();
        sets.extend(self.ranks.map(|ranks| format!("parallel.ranks={ranks}")));
        let text = read_config(&self.config)?; // once: a pipe is empty then
        let parse = |sets: &[String]| {
            let mut config = RunConfig::parse(&text, &self.config, sets)?;
            inherit_diffusion(&mut config, |key| RunConfig::names(&text, sets, "diffusion", key))?;
            if self.resume && !RunConfig::names(&text, sets, "train", "dtype") {
                inherit_dtype(&mut config, self.step);
            }
            Ok(config)
        };
        let Some(started) = launch.processes() else { return parse(&sets) };
        if launch.gpu().is_some() && !RunConfig::names(&text, &sets, "train", "device") {
            sets.push("train.device=cuda".to_owned());
        }
        if !RunConfig::names(&text, &sets, "parallel", "ranks") {
            sets.push(format!("parallel.ranks={started}"));
        }
        let config = parse(&sets)?;
        launch.ranks(Some(config.parallel.ranks), "parallel.ranks")?;
        Ok(config)
    }
}
