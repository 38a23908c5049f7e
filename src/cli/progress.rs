//! The progress of a command: a line that renews itself on a terminal, a log line now and then elsewhere.

use std::time::{Duration, Instant};

use crate::observe::stderr::{LOG_EVERY, ProgressLine, bar};
use crate::terminal::clock;

/// How far a command is, and when it will be done.
pub(super) struct Progress {
    line: ProgressLine,
    start: Instant,
}

/// The bar's length.
const PARTS: u64 = 10_000;

impl Progress {
    /// Of work that begins now.
    pub fn new() -> Self {
        Self { line: ProgressLine::new(bar(PARTS, 0), LOG_EVERY), start: Instant::now() }
    }

    /// Shows what is at work, and when all is done, from the share that is.
    pub fn update(&self, what: &str, share: f64) {
        let line = format!("{what}{}", eta(share, self.start.elapsed()));
        self.line.show((share * PARTS as f64) as u64, line, false);
    }
}

impl Drop for Progress {
    /// However the work ends: the line goes, what was written is printed in its place.
    fn drop(&mut self) {
        self.line.finish(true);
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
