//! Says what was wrong when the process ends because memory cannot be had.
//!
//! Rust ends a process whose allocation fails by SIGABRT, with a line of no help. Here the allocator notes what it was
//! asked for in vain, and a handler of that signal says what to do, and has the process end like any other that fails.
//! Code that can do without the memory it asked for goes on; nothing is said then.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::SIGABRT;
use signal_hook::low_level;

/// The most bytes that could not be had at once; 0: all could.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// `bytes` could not be had.
pub(super) fn note(bytes: usize) {
    REFUSED.fetch_max(bytes, Ordering::SeqCst); // what reports the failure may ask in vain, too
}

/// From now on an allocation that fails ends the process with one line of error and exit code 1. For programs whose
/// global allocator is [`Allocator`](super::Allocator); without effect elsewhere.
///
/// # Errors
/// The system refuses the handler.
pub fn report_shortage() -> std::io::Result<()> {
    // SAFETY: the handler reads an atomic number, formats it on its stack, writes it by one system call and ends the
    // process by another: all of that is allowed in a handler.
    unsafe { low_level::register(SIGABRT, say) }.map(drop)
}

fn say() {
    let bytes = REFUSED.load(Ordering::SeqCst);
    if bytes == 0 {
        return; // aborted for another reason
    }
    let mut text = [0; 400];
    let mut left = &mut text[..];
    let _ = writeln!(
        left,
        "error: memory is short: {:.4} GiB more could not be had; checkpoints that were saved are good; \
         `longreel plan CONFIG.toml --memory SIZE` says what a run needs and which settings need less",
        bytes as f64 / f64::from(1 << 30)
    );
    let length = 400 - left.len();
    let _ = rustix::io::write(std::io::stderr(), &text[..length]);
    low_level::exit(1);
}
