//! Classifier-free guidance (Ho and Salimans 2022), limited to an interval of sigmas (Kynkaanniemi et al. 2024).

use crate::{Result, bail};
use candle_core::Tensor;

/// What the network is conditioned on in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The label or text asked for.
    Given,
    /// The null label, or no text.
    Null,
}

/// How strongly samples are pushed towards their condition, and at which sigmas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    scale: f64,
    interval: [f64; 2],
}

impl Guidance {
    /// Guidance of this `scale` (1: none), for sigma in `interval` only.
    ///
    /// # Errors
    /// If the scale is not finite or the interval is not one within [0, 1].
    pub fn new(scale: f64, interval: [f64; 2]) -> Result<Self> {
        let [low, high] = interval;
        if !scale.is_finite() {
            bail!(Config, "[sample] guidance = {scale}: must be finite; 1 means none");
        }
        if !(0.0 <= low && low <= high && high <= 1.0) {
            bail!(
                Config,
                "[sample] guidance_interval = [{low}, {high}]: must be [low, high] with 0 <= low <= high <= 1"
            );
        }
        Ok(Self { scale, interval })
    }

    /// Whether guidance acts anywhere.
    pub fn is_on(&self) -> bool {
        self.scale != 1.0
    }

    /// Whether guidance acts at `sigma`, so that the network is called twice.
    pub fn active(&self, sigma: f64) -> bool {
        self.is_on() && (self.interval[0]..=self.interval[1]).contains(&sigma)
    }

    /// The guided velocity `v_null + w (v_given - v_null)`, for where guidance is [`active`](Self::active).
    ///
    /// # Errors
    /// Differing shapes or dtypes.
    pub fn guided(&self, given: &Tensor, null: &Tensor) -> Result<Tensor> {
        let push = (given - null)?.affine(self.scale, 0.0)?;
        Ok((null + push)?)
    }
}
