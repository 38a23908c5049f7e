//! `longreel report`: what `longreel watch` shows, as one file.

use clap::Args;
use std::path::PathBuf;

use crate::Result;
use crate::files::file_size;
use crate::observe::{MOST_MEDIA, write_report};
use crate::terminal::counted;

/// Write what `watch` shows of a run as one HTML file that needs no server: curves, samples, config, data, warnings.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A run's folder; several are compared
    #[arg(value_name = "RUN", required = true, value_parser = super::path())]
    pub runs: Vec<PathBuf>,
    /// Where to write
    #[arg(short, long, value_name = "FILE.html", value_parser = super::path())]
    pub output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
///
/// # Errors
/// There is no run; its metrics cannot be read; the file exists, or cannot be written.
pub fn run(args: &ReportArgs) -> Result<()> {
    super::watch::check_folders(&args.runs)?;
    super::may_write(&args.output, args.force)?;
    let written = write_report(&args.runs, &args.output)?;
    if written.left_out > 0 {
        let (left_out, most) =
            (counted(written.left_out, "clip or picture", "clips and pictures"), file_size(MOST_MEDIA));
        tracing::warn!(
            "{left_out} left out: a report holds {most} of them, those of first and last steps before others"
        );
    }
    let media = counted(written.media, "clip or picture", "clips and pictures");
    tracing::info!("{}: {} with {media}", args.output.display(), counted(written.runs, "run", "runs"));
    Ok(())
}
