//! The progress of `longreel sample`.

use super::progress::Progress;
use crate::sample::SamplingState;

/// Sampler steps of all clips.
pub(super) struct SamplingProgress {
    progress: Progress,
    clips: usize,
    steps: usize,
}

impl SamplingProgress {
    /// For `clips` clips of `steps` sampler steps.
    pub fn new(clips: usize, steps: usize) -> Self {
        Self { progress: Progress::new(), clips, steps }
    }

    /// Reports how far sampling is.
    pub fn update(&self, state: &SamplingState) {
        let (what, share) = line(state, self.clips, self.steps);
        self.progress.update(&what, share);
    }
}

/// What is at work, and the share of the work that is done.
fn line(state: &SamplingState, clips: usize, steps: usize) -> (String, f64) {
    let SamplingState { clips: batch, calls: [done, all] } = state;
    let share = (batch.start as f64 + batch.len() as f64 * *done as f64 / *all as f64) / clips as f64;
    let which = match batch.len() {
        1 => format!("clip {}/{clips}", batch.end),
        _ => format!("clips {} to {} of {clips}", batch.start + 1, batch.end),
    };
    (format!("{which}  step {}/{steps}", done * steps / all), share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_clips_and_step() {
        let at = |clips, calls| line(&SamplingState { clips, calls }, 4, 25);
        assert_eq!(at(0..1, [0, 49]), ("clip 1/4  step 0/25".to_owned(), 0.0));
        assert_eq!(at(1..2, [25, 50]), ("clip 2/4  step 12/25".to_owned(), 0.375));
        assert_eq!(at(2..4, [25, 50]), ("clips 3 to 4 of 4  step 12/25".to_owned(), 0.75));
        assert_eq!(at(3..4, [50, 50]), ("clip 4/4  step 25/25".to_owned(), 1.0));
    }
}
