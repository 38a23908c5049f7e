//! Shares standard error between log lines and one progress line, so that neither runs through the other.

use crate::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use std::io::Write;

/// The bar on the screen, if any, so that log lines can step aside.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Standard error for log lines: they appear above the progress line instead of through it. Give it to tracing's
/// subscriber as the writer: `with_writer(|| stderr::Stderr)`.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let bar = BAR.lock().clone();
        match bar {
            Some(bar) => bar.suspend(|| std::io::stderr().write_all(bytes))?,
            None => std::io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// A line that renews itself, of which `done` parts of `length` are done, if stderr is a terminal that can do so. Log
/// lines step aside for it until [`leave`].
pub fn bar(length: u64, done: u64) -> Option<ProgressBar> {
    terminal::renews_lines().then(|| {
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(8));
        // The template is a constant, so the fallback is never seen.
        let style = ProgressStyle::with_template("{bar:24.cyan/blue} {msg}").unwrap_or(ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_position(done);
        *BAR.lock() = Some(bar.clone());
        bar
    })
}

/// Lets log lines come as they would without this line.
pub fn leave() {
    *BAR.lock() = None;
}
