//! `longreel watch`: runs in the browser, as they go.

use clap::Args;
use std::path::PathBuf;

use super::print;
use crate::observe::Server;
use crate::{Result, bail, terminal};

/// Show runs in the browser: curves, samples, configs, data, warnings; as they go, and side by side.
///
/// The page is on 127.0.0.1, for this machine alone. It reads the runs' files and changes nothing. Ctrl-C ends it.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Runs' folders, or folders that have some within
    #[arg(value_name = "RUNS", default_value = "runs", value_parser = super::path())]
    pub runs: Vec<PathBuf>,
    /// Port of 127.0.0.1; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 7007)]
    pub port: u16,
}

/// Runs the command until the process is ended.
///
/// # Errors
/// A folder is not there; the port is taken.
pub fn run(args: &WatchArgs) -> Result<()> {
    check_folders(&args.runs)?;
    let server = Server::bind(args.runs.clone(), args.port)?;
    print(format!("http://{}/", server.address()?))?;
    let places: Vec<_> = args.runs.iter().map(terminal::name).collect();
    tracing::info!("showing the runs in {}; Ctrl-C ends it", places.join(", "));
    server.serve()
}

/// Refuses places that are no folders.
pub(super) fn check_folders(places: &[PathBuf]) -> Result<()> {
    match places.iter().find(|place| !place.is_dir()) {
        Some(place) => {
            bail!(Checkpoint, "{}: there is no such folder; name a run's, or one that has runs within", place.display())
        }
        None => Ok(()),
    }
}
