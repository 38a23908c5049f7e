//! Writes what a shell and `man` want to know of the command line: completions and manual pages.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::files::{atomic_write, create_folders};
use crate::{Error, Result};

/// Prints a script that completes longreel's commands and options in a shell
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that it is for
    shell: Shell,
}

/// Prints the manual page
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of longreel and of each of its commands into this folder instead
    #[arg(short, long, value_name = "DIR", value_parser = super::path())]
    out: Option<PathBuf>,
}

/// Prints completions of `command` for a shell.
///
/// # Errors
/// stdout cannot be written.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, "longreel", &mut script);
    print_bytes(&script)
}

/// Prints the manual page of `command`, or writes its pages to files.
///
/// # Errors
/// stdout or a file cannot be written.
pub fn man(args: &ManArgs, mut command: Command) -> Result<()> {
    command.build();
    let Some(folder) = &args.out else { return print_bytes(&page(command)?) };
    create_folders(folder)?;
    let pages = command.get_subcommands().filter(|inner| !inner.is_hide_set()).cloned().collect::<Vec<_>>();
    for inner in std::iter::once(command).chain(pages) {
        let name = inner.get_display_name().unwrap_or_else(|| inner.get_name()).to_owned();
        let page = page(inner)?;
        atomic_write(&folder.join(format!("{name}.1")), |file| file.write_all(&page))?;
    }
    Ok(())
}

/// A page in roff.
fn page(command: Command) -> Result<Vec<u8>> {
    let mut text = vec![];
    clap_mangen::Man::new(command).render(&mut text).map_err(|e| Error::io("a manual page", e))?;
    Ok(text)
}

/// Writes bytes of our own making to stdout as they are.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Error::io("stdout", e))
}
