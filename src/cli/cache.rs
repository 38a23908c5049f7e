//! Runs `longreel cache`: encodes the clips of a run that trains on latents, and embeds its texts, or says what its
//! caches hold.

use candle_core::Device;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::train::TrainArgs;
use crate::encode::cache::Contents;
use crate::parallel::{Launch, is_first};
use crate::terminal::{self, counted};
use crate::train::{Caches, device::device};
use crate::{Result, bail};

/// Encode a run's clips to latents and its texts to embeddings, which `train` does too before its first step.
///
/// What is there already is kept; after a kill the same command goes on. An entry's name is the hash of all that it
/// depends on, so nothing stale is ever trained on.
#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Encode nothing: list what is missing, what is stale (of these clips or texts, as they were before something
    /// changed) and what is unused; fails if something is missing
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
    if config.vae.from.is_none() && config.text.from.is_none() {
        let from = args.train.config.display();
        bail!(
            Config,
            "{from}: names neither a VAE nor a text encoder: there is nothing to encode (vae.from, text.from)"
        );
    }
    let ranks = config.parallel.ranks;
    let device = match args.check {
        true => Device::Cpu, // nothing is encoded
        false => device(Some(config.train.device), "train.device", ranks, launch)?,
    };
    let caches = launch.rank0_first(|| Caches::of_config(&config, &device))?;
    if args.check {
        if !is_first() {
            return Ok(());
        }
        let (mut lines, mut missing) = (vec![], vec![]);
        if let Some(texts) = &caches.texts {
            let contents = texts.contents()?;
            lines.extend(listed(&config.text_cache()?, &contents));
            missing.extend(not_there(&contents, "text is", "texts are", "embedded"));
        }
        if let Some(latents) = &caches.latents {
            let contents = latents.contents()?;
            lines.extend(listed(&config.latent_cache()?, &contents));
            missing.extend(not_there(&contents, "clip is", "clips are", "encoded"));
        }
        super::print(lines.join("\n"))?;
        if !missing.is_empty() {
            bail!(Data, "{}; run `longreel cache` without --check, or train", missing.join(", "));
        }
        return Ok(());
    }
    let never = AtomicBool::new(false); // Ctrl-C ends the process: entries are whole or not there
    launch.run(ranks, |comm| caches.fill_and_log(&comm, true, &never))?;
    if !is_first() {
        return Ok(());
    }
    let mut lines = vec![];
    if let Some(texts) = &caches.texts {
        let there = counted(texts.contents()?.there, "text", "texts");
        lines.push(format!("{}: {there} embedded", config.text_cache()?.display()));
    }
    if let Some(latents) = &caches.latents {
        let there = counted(latents.contents()?.there, "clip", "clips");
        lines.push(format!("{}: {there} encoded", config.latent_cache()?.display()));
    }
    super::print(lines.join("\n"))
}

/// A cache's contents, as lines.
fn listed(cache: &Path, contents: &Contents) -> Vec<String> {
    let mut lines = vec![format!("{}: {} there", cache.display(), contents.there)];
    let paths = |paths: &[PathBuf]| paths.iter().map(terminal::name).collect::<Vec<_>>();
    for (kind, names) in [
        ("missing", contents.missing.clone()),
        ("stale, and not used", paths(&contents.stale)),
        ("unused by this config", paths(&contents.unused)),
    ] {
        lines.push(format!("{} {kind}", names.len()));
        lines.extend(names.iter().take(LISTED).map(|name| format!("  {name}")));
        lines.extend((names.len() > LISTED).then(|| format!("  and {} more", names.len() - LISTED)));
    }
    lines
}

/// How many entries are missing, in words.
fn not_there(contents: &Contents, one: &str, several: &str, done: &str) -> Option<String> {
    let missing = contents.missing.len();
    (missing > 0).then(|| format!("{} not {done}", counted(missing, one, several)))
}
