//! `longreel scan`: a dataset folder to a report of what would be used.

use crate::{Result, bail};
use clap::Args;

/// Report which clips of a dataset would be used, and why others not.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// The dataset's folder, or `hf://owner/name[@revision][/path]`
    #[arg(value_name = "DIR")]
    pub path: String,
}

/// Runs the command.
pub fn run(_args: ScanArgs) -> Result<()> {
    bail!("`longreel scan` is not part of this build")
}
