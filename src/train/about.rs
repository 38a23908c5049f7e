//! Writes what was planned for a run, and what its data are, into its folder, and logs at what noise it trains. What
//! cannot be written is a warning and ends no run.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::setup::RunSetup;
use crate::Result;
use crate::data::{Dataset, draw_sheet, report_buckets};
use crate::diffusion::SigmaDistribution;
use crate::files::atomic_write;
use crate::parallel::LauncherEnv;
use crate::plan::Plan;
use crate::terminal::counted;

/// Files of the data that are named, of those used and of those not; a folder may have millions.
const NAMED: usize = 200;

/// Files on the contact sheet, and the time that decoding them may take: a run is not kept waiting by its pictures.
const SHOWN: usize = 24;
const SHEET_TIME: Duration = Duration::from_secs(5);

/// Files or clips of larger frames, in pixels, get no sheet: a whole frame takes memory that no plan counts.
const LARGEST: usize = 4 << 20;

/// Writes `plan.json`, of the run's `plan`, `data.json` and `data.png` into the run's folder.
pub fn record(setup: &RunSetup, plan: &Plan) {
    for (what, written) in [("plan.json", planned(setup, plan)), ("data.json", data(setup)), ("data.png", sheet(setup))]
    {
        if let Err(e) = written {
            tracing::warn!("{what} is not written, and the run goes on without: {e}");
        }
    }
}

/// Logs at what noise the run trains: the shift and sigma's quantiles, of the smallest and of the largest clips.
pub fn log_sigmas(setup: &RunSetup) -> Result<()> {
    let tokens = setup.clip_tokens()?;
    let ends: BTreeSet<usize> = tokens.iter().min().into_iter().chain(tokens.iter().max()).copied().collect();
    for tokens in ends {
        let sigmas = SigmaDistribution::new(&setup.config.diffusion, tokens)?;
        let quantiles = (1..10).map(|tenth| format!("{:.3}", sigmas.quantile(f64::from(tenth) / 10.0)));
        tracing::info!(
            "clips of {}: shift {:.3}, sigma's quantiles 10 % to 90 %: {}",
            counted(tokens, "token", "tokens"),
            sigmas.shift(),
            quantiles.collect::<Vec<_>>().join(" ")
        );
    }
    Ok(())
}

/// What memory was planned: of the process whose peak the metrics have.
fn planned(setup: &RunSetup, plan: &Plan) -> Result<()> {
    let alone = LauncherEnv::here().is_none(); // then all ranks are its threads
    let bytes = if alone { plan.total() } else { plan.per_rank() };
    let about = json!({
        "bytes": bytes, "ranks": plan.ranks.len(), "tokens_per_clip": plan.tokens, "tokens_per_step": setup.tokens()?,
        "parameters": plan.parameters,
    });
    write(setup, "plan.json", &about)
}

/// What `longreel scan` says of the clips, of many files the first.
fn data(setup: &RunSetup) -> Result<()> {
    let root = &setup.data_root;
    let tokens = |dataset: &Dataset| Some(setup.grid(dataset).ok()?.iter().product());
    let mut about = report_buckets(&setup.clips, root, tokens);
    for (list, count) in [("files", "file_count"), ("skipped", "skipped_count")] {
        let Some(named) = about[list].as_array_mut() else { continue };
        let total = named.len();
        named.truncate(NAMED);
        named.iter_mut().filter_map(Value::as_object_mut).for_each(|file| drop(file.remove("caption")));
        about[count] = total.into();
    }
    write(setup, "data.json", &about)
}

fn sheet(setup: &RunSetup) -> Result<()> {
    let large = |height: usize, width: usize| height.saturating_mul(width) > LARGEST;
    let large_clips = |dataset: &Dataset| large(dataset.options().height, dataset.options().width);
    let large_files = |dataset: &Dataset| dataset.files().iter().any(|file| large(file.height, file.width));
    if setup.clips.buckets().iter().any(|dataset| large_clips(dataset) || large_files(dataset)) {
        return Ok(());
    }
    let path = setup.folder.root().join("data.png");
    let root = &setup.data_root;
    draw_sheet(setup.clips.buckets(), root, &path, SHOWN, Some(SHEET_TIME)).map(drop)
}

fn write(setup: &RunSetup, name: impl AsRef<Path>, about: &Value) -> Result<()> {
    atomic_write(&setup.folder.root().join(name), |out| writeln!(out, "{about:#}"))
}
