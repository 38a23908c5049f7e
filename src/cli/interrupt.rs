//! Ctrl-C: the first asks a command to end cleanly, the second ends the process at once.
//!
//! Only a command with something to save calls [`catch_interrupts`]; all others end at the first signal, as usual.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::observe::stderr::Stderr;
use crate::parallel::{is_first, thread_refused};
use crate::{Error, Result};

static CAUGHT: AtomicBool = AtomicBool::new(false);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM set [`interrupted`]; a second one exits with code 130. So does SIGHUP, unless it was
/// ignored when the process started: `nohup` has a run survive its terminal.
///
/// # Errors
/// The system refuses the handlers, or their thread.
pub fn catch_interrupts() -> Result<&'static AtomicBool> {
    if CAUGHT.swap(true, Ordering::SeqCst) {
        return Ok(&INTERRUPTED);
    }
    let hangup = (!ignored(SIGHUP)).then_some(SIGHUP);
    let refused = |e: std::io::Error| Error::Environment(format!("Ctrl-C cannot be caught: {e}"));
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)).map_err(refused)?;
    let wait = move || signals.forever().for_each(|_| interrupt());
    let thread = std::thread::Builder::new().name("signals".into()).spawn(wait);
    thread.map_err(|e| thread_refused("a thread to wait for Ctrl-C", &e))?;
    Ok(&INTERRUPTED)
}

/// Whether the user has asked to stop: false until a signal comes after [`catch_interrupts`].
pub fn interrupted() -> &'static AtomicBool {
    &INTERRUPTED
}

fn interrupt() {
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    if !is_first() {
        return;
    }
    let text = "stopping after this step, or at once if that would take more than ten seconds; once more to stop without saving";
    let _ = writeln!(Stderr, "{text}");
}

/// From now on a file that grows beyond the process's limit (`ulimit -f`) is an error of that write, which names the
/// file, and no more the end of the process.
///
/// # Errors
/// The system refuses the handler.
pub(super) fn outlive_file_limit() -> Result<()> {
    // A handler that does nothing: unlike an ignored signal, programs that are started from here do not inherit it.
    let refused = |e: std::io::Error| Error::Environment(format!("SIGXFSZ cannot be caught: {e}"));
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop).map_err(refused)
}

/// Whether the process ignores a signal, from `/proc/self/status`; false where the system does not tell.
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
