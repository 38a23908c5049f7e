//! The progress of `longreel sample`: a line that renews itself on a terminal, a log line now and then elsewhere.

use crate::train::progress::{LOG_EVERY, bar, clock, leave};
use indicatif::ProgressBar;
use std::sync::Mutex;
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

    /// Reports that `done` of a clip's `all` passes of the network are done, `clip` clips before it.
    pub fn update(&self, clip: usize, done: usize, all: usize) {
        let share = (clip as f64 + done as f64 / all as f64) / self.clips as f64;
        let line = line(clip, self.clips, done * self.steps / all, self.steps, share, self.start.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position((share * (self.clips as u64 * PARTS) as f64) as u64);
            bar.set_message(line);
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(|e| e.into_inner());
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

fn line(clip: usize, clips: usize, step: usize, steps: usize, share: f64, spent: Duration) -> String {
    let left = spent.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0);
    let eta = match Duration::try_from_secs_f64(left) {
        Ok(left) if share > 0.0 => format!("  ETA {}", clock(left)),
        _ => String::new(),
    };
    format!("clip {}/{clips}  step {step}/{steps}{eta}", (clip + 1).min(clips))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_clip_step_and_what_is_left() {
        let minute = Duration::from_secs(60);
        assert_eq!(line(0, 4, 0, 25, 0.0, Duration::ZERO), "clip 1/4  step 0/25");
        assert_eq!(line(1, 4, 12, 25, 0.375, minute), "clip 2/4  step 12/25  ETA 1m 40s");
        assert_eq!(line(3, 4, 25, 25, 1.0, minute), "clip 4/4  step 25/25  ETA 0s");
    }
}
