//! The progress of `longreel sample`: a line that renews itself on a terminal, a log line now and then elsewhere.

use crate::observe::stderr::{bar, leave};
use crate::sample::SamplingState;
use crate::terminal::clock;
use crate::train::progress::LOG_EVERY;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Sampler steps of all clips.
pub(super) struct SamplingProgress {
    bar: Option<ProgressBar>,
    clips: usize,
    steps: usize,
    start: Instant,
    logged: Mutex<Instant>,
}

/// The bar's length for each clip.
const PARTS: u64 = 1000;

impl SamplingProgress {
    /// For `clips` clips of `steps` sampler steps.
    pub fn new(clips: usize, steps: usize) -> Self {
        let now = Instant::now();
        Self { bar: bar(clips as u64 * PARTS, 0), clips, steps, start: now, logged: Mutex::new(now) }
    }

    /// Reports how far sampling is.
    pub fn update(&self, state: &SamplingState) {
        let (line, share) = line(state, self.clips, self.steps, self.start.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position((share * (self.clips as u64 * PARTS) as f64) as u64);
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

impl Drop for SamplingProgress {
    /// However sampling ends: the line goes, what was written is printed in its place.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            leave();
        }
    }
}

/// The line of a moment at which `spent` is behind, and the share of the work that is done.
fn line(state: &SamplingState, clips: usize, steps: usize, spent: Duration) -> (String, f64) {
    let SamplingState { clips: batch, calls: [done, all] } = state;
    let share = (batch.start as f64 + batch.len() as f64 * *done as f64 / *all as f64) / clips as f64;
    let left = spent.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0);
    let eta = match Duration::try_from_secs_f64(left) {
        Ok(left) if share > 0.0 => format!("  ETA {}", clock(left)),
        _ => String::new(),
    };
    let which = match batch.len() {
        1 => format!("clip {}/{clips}", batch.end),
        _ => format!("clips {} to {} of {clips}", batch.start + 1, batch.end),
    };
    (format!("{which}  step {}/{steps}{eta}", done * steps / all), share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_clips_step_and_what_is_left() {
        let minute = Duration::from_secs(60);
        let at = |clips, calls, spent| line(&SamplingState { clips, calls }, 4, 25, spent);
        assert_eq!(at(0..1, [0, 49], Duration::ZERO), ("clip 1/4  step 0/25".to_owned(), 0.0));
        assert_eq!(at(1..2, [25, 50], minute), ("clip 2/4  step 12/25  ETA 1m 40s".to_owned(), 0.375));
        assert_eq!(at(2..4, [25, 50], minute), ("clips 3 to 4 of 4  step 12/25  ETA 20s".to_owned(), 0.75));
        assert_eq!(at(3..4, [50, 50], minute), ("clip 4/4  step 25/25  ETA 0s".to_owned(), 1.0));
    }
}
