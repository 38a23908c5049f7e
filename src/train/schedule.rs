//! The learning rate of each step: a linear warm-up, then constant or a cosine to zero.

use crate::config::{Schedule, Train};
use crate::{Result, bail};

/// A run's learning rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    peak: f64,
    warmup: u64,
    steps: u64,
    schedule: Schedule,
}

impl LearningRate {
    /// The learning rates `[train]` asks for.
    ///
    /// # Errors
    /// If `lr` is negative or not finite.
    pub fn new(config: &Train) -> Result<Self> {
        let Train { lr: peak, warmup, steps, schedule, .. } = *config;
        if !(peak >= 0.0 && peak.is_finite()) {
            bail!(Config, "[train] lr = {peak}: must be 0 or more");
        }
        Ok(Self { peak, warmup, steps, schedule })
    }

    /// The rate of step `step`, counted from 0. Warm-up rises from `lr / warmup` at step 0 to `lr` at its last step;
    /// the cosine leaves `lr` at the first step after it and would be 0 at step `steps`, one past the last.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Cosine if step >= self.steps => 0.0,
            Schedule::Cosine => {
                let progress = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
                self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}
