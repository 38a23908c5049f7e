//! `longreel verify`: whether a run's checkpoints are what was saved.

use clap::Args;
use std::path::PathBuf;

use super::print;
use crate::files::file_size;
use crate::state::checkpoint::{Verdict, verify};
use crate::terminal::counted;
use crate::{Result, bail, terminal};

/// Read every file of a run's checkpoints and compare it with its checksum.
///
/// A line a checkpoint, and one for each file that is not what was saved; the exit code is 1 if there is any.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A run's folder, or a checkpoint's
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    pub run: PathBuf,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let (mut all, mut damaged) = (0, 0);
    verify(&args.run, |dir, verdict| {
        let name = terminal::name(dir.file_name().unwrap_or(dir.as_os_str()));
        all += 1;
        match verdict {
            Verdict::Whole { files, bytes } => {
                print(format!("{name}  whole: {}, {}", counted(files, "file", "files"), file_size(bytes)))
            }
            Verdict::Unknown => {
                print(format!("{name}  has no checksums; its files can be opened, nothing more is known"))
            }
            Verdict::Gone => print(format!("{name}  was removed by its run meanwhile")),
            Verdict::Damaged(errors) => {
                damaged += 1;
                print(format!("{name}  DAMAGED"))?;
                errors.iter().try_for_each(|e| print(format!("    {}", terminal::message(&e.to_string()))))
            }
        }
    })?;
    if damaged > 0 {
        bail!(
            Checkpoint,
            "{}: {damaged} of {} damaged; remove what is, or go on from another with --resume --step N",
            args.run.display(),
            counted(all, "checkpoint is", "checkpoints are")
        )
    }
    Ok(())
}
