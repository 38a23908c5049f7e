//! Ctrl-C: the first asks a command to end cleanly, the second ends the process at once.
//!
//! Only a command with something to save calls [`catch_interrupts`]; all others end at the first signal, as usual.

use crate::parallel::is_first;
use crate::train::progress::Stderr;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP set [`interrupted`]; a second one exits with code 130.
///
/// # Errors
/// The handler cannot be set, for example because there is one.
pub fn catch_interrupts() -> Result<&'static AtomicBool> {
    let first = is_first();
    ctrlc::set_handler(move || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        use std::io::Write;
        if !first {
            return;
        }
        let _ = writeln!(Stderr, "stopping after this step; once more to stop at once, without saving");
    })
    .map_err(|e| Error::Invalid(format!("Ctrl-C cannot be caught: {e}")))?;
    Ok(&INTERRUPTED)
}

/// Whether the user has asked to stop: false until a signal comes after [`catch_interrupts`].
pub fn interrupted() -> &'static AtomicBool {
    &INTERRUPTED
}
