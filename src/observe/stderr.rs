//! Shares standard error between log lines and one progress line, so that neither runs through the other.

use crate::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use std::io::Write;
use std::time::{Duration, Instant};

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

/// A line of which `done` parts of `length` are done, if stderr is a terminal that can renew it.
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

/// Without such a line a log line comes this often.
pub const LOG_EVERY: Duration = Duration::from_secs(60);

/// How far some work is: a line that renews itself on a terminal, for which log lines step aside; a log line now and
/// then elsewhere.
#[derive(Debug)]
pub struct ProgressLine {
    bar: Option<ProgressBar>,
    log_every: Duration,
    /// When the last log line came, or the work began.
    logged: Mutex<Instant>,
}

impl ProgressLine {
    /// Of work that begins now, on this [`bar`] or in the log.
    pub fn new(bar: Option<ProgressBar>, log_every: Duration) -> Self {
        Self { bar, log_every, logged: Mutex::new(Instant::now()) }
    }

    /// Shows `line` when `done` parts are done; without a terminal only if it is `due`, or the last one is long ago.
    pub fn show(&self, done: u64, line: String, due: bool) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return bar.set_message(line);
        }
        let mut logged = self.logged.lock();
        if due || logged.elapsed() >= self.log_every {
            tracing::info!("{line}");
            *logged = Instant::now();
        }
    }

    /// Leaves the line as it stands, or clears it; what is logged now comes below it, or in its place.
    pub fn finish(&self, clear: bool) {
        if let Some(bar) = &self.bar {
            if clear {
                bar.finish_and_clear()
            } else {
                bar.abandon()
            }
            *BAR.lock() = None;
        }
    }
}
