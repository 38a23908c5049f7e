//! Runs `longreel cache`: encodes the clips of a run that trains on latents, or says what its cache holds.

use candle_core::Device;
use clap::Args;
use std::sync::atomic::AtomicBool;

use super::train::TrainArgs;
use crate::parallel::{Launch, is_first};
use crate::terminal::{self, counted};
use crate::train::{RunLatents, device::device};
use crate::{Result, bail};

/// Encode a run's clips to latents, which `train` does too before its first step.
///
/// What is there already is kept; after a kill the same command goes on. An entry's name is the hash of all that it
/// depends on, so nothing stale is ever trained on.
#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Encode nothing: list what is missing, what is stale (of these clips, as they were before something changed) and
    /// what is unused; fails if something is missing
    #[arg(long)]
    pub check: bool,
}

/// Names of each kind that are listed.
const LISTED: usize = 20;

/// Runs the command.
pub fn run(args: &CacheArgs, launch: &Launch) -> Result<()> {
    if args.train.resume || args.train.rehearse {
        bail!(Config, "--resume and --rehearse are for training; `cache` always goes on where it ended");
    }
    let config = args.train.config(launch)?;
    if config.vae.from.is_none() {
        bail!(Config, "{}: names no VAE: set vae.from to train on latents", args.train.config.display());
    }
    let cache = config.latent_cache()?;
    let ranks = config.parallel.ranks;
    let device = match args.check {
        true => Device::Cpu, // nothing is encoded
        false => device(Some(config.train.device), "train.device", ranks, launch)?,
    };
    let latents = launch.rank0_first(|| RunLatents::of_config(&config, &device))?;
    if args.check {
        if !is_first() {
            return Ok(());
        }
        let contents = latents.contents()?;
        let mut lines = vec![format!("{}: {} there", cache.display(), contents.there)];
        let paths = |paths: &[std::path::PathBuf]| paths.iter().map(terminal::name).collect::<Vec<_>>();
        for (kind, names) in [
            ("missing", contents.missing.clone()),
            ("stale, and not used", paths(&contents.stale)),
            ("unused by this config", paths(&contents.unused)),
        ] {
            lines.push(format!("{} {kind}", names.len()));
            lines.extend(names.iter().take(LISTED).map(|name| format!("  {name}")));
            lines.extend((names.len() > LISTED).then(|| format!("  and {} more", names.len() - LISTED)));
        }
        super::print(lines.join("\n"))?;
        if !contents.missing.is_empty() {
            let missing = counted(contents.missing.len(), "clip is", "clips are");
            bail!(Data, "{missing} not encoded; run `longreel cache` without --check, or train");
        }
        return Ok(());
    }
    let never = AtomicBool::new(false); // Ctrl-C ends the process: entries are whole or not there
    launch.run(ranks, |comm| latents.fill_and_log(&comm, true, &never))?;
    if !is_first() {
        return Ok(());
    }
    let contents = latents.contents()?;
    super::print(format!("{}: {} encoded", cache.display(), counted(contents.there, "clip", "clips")))
}
