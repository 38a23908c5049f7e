//! The progress of a command: a line that renews itself on a terminal, a log line now and then elsewhere.

use indicatif::ProgressBar;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

use crate::observe::stderr::{bar, leave};
use crate::terminal::clock;
use crate::train::progress::LOG_EVERY;

/// How far a command is, and when it will be done.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
    logged: Mutex<Instant>,
}

/// The bar's length.
const PARTS: u64 = 10_000;

impl Progress {
    /// Of work that begins now.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { bar: bar(PARTS, 0), start: now, logged: Mutex::new(now) }
    }

    /// Shows what is at work, and when all is done, from the share that is.
    pub fn update(&self, what: &str, share: f64) {
        let line = format!("{what}{}", eta(share, self.start.elapsed()));
        if let Some(bar) = &self.bar {
            bar.set_position((share * PARTS as f64) as u64);
            bar.set_message(line);
            return;
        }
        let mut logged = self.logged.lock();
        if logged.elapsed() >= LOG_EVERY {
            tracing::info!("{line}");
            *logged = Instant::now();
        }
    }
}

impl Drop for Progress {
    /// However the work ends: the line goes, what was written is printed in its place.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            leave();
        }
    }
}

/// Two spaces and the time left after `spent`, nothing before there is a share.
fn eta(share: f64, spent: Duration) -> String {
    let left = spent.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0);
    match Duration::try_from_secs_f64(left) {
        Ok(left) if share > 0.0 => format!("  ETA {}", clock(left)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_share() {
        let minute = Duration::from_secs(60);
        assert_eq!(eta(0.0, minute), "");
        assert_eq!(eta(0.375, minute), "  ETA 1m 40s");
        assert_eq!(eta(0.75, minute), "  ETA 20s");
        assert_eq!(eta(1.0, minute), "  ETA 0s");
    }
}
