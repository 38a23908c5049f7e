//! The learning rate of each step: a linear warm-up, then constant, or falling to zero all along or at the end.

use crate::config::{Schedule, Train};
use crate::{Result, bail};

/// A run's learning rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    peak: f64,
    warmup: u64,
    steps: u64,
    schedule: Schedule,
    /// The first step of the final decay.
    stable: u64,
}

impl LearningRate {
    /// The learning rates `[train]` asks for.
    ///
    /// # Errors
    /// If `lr` is negative or not finite.
    pub fn new(config: &Train) -> Result<Self> {
        let Train { lr: peak, warmup, steps, schedule, decay, .. } = *config;
        if !(peak >= 0.0 && peak.is_finite()) {
            bail!(Config, "[train] lr = {peak}: must be 0 or more");
        }
        let stable = steps - ((decay * steps as f64).round() as u64).min(steps);
        Ok(Self { peak, warmup, steps, schedule, stable: stable.max(warmup) })
    }

    /// The rate of step `step`, counted from 0. Warm-up rises from `lr / warmup` at step 0 to `lr` at its last step;
    /// cosine and line leave `lr` at the first step after it, or at the first of the final decay, and would be 0 at
    /// step `steps`, one past the last.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let start = if self.schedule == Schedule::Wsd { self.stable } else { self.warmup };
        if self.schedule == Schedule::Constant || step < start {
            return self.peak;
        }
        if step >= self.steps {
            return 0.0;
        }
        let progress = (step - start) as f64 / (self.steps - start) as f64;
        self.peak
            * match self.schedule {
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                _ => 1.0 - progress,
            }
    }
}
