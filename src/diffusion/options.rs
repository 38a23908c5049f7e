//! What of noise, target, loss and sampler can be chosen.

use serde::{Deserialize, Serialize};

/// What the network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    #[default]
    V,
    X,
}

/// How training timesteps are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timesteps {
    #[default]
    LogitNormal,
    Uniform,
}

/// Which sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    Euler,
    #[default]
    Heun,
    /// DPM-Solver++(2M).
    Dpmpp,
    /// UniPC, order 2, B2(h).
    Unipc,
}

/// Noise, target and loss: `[diffusion]` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DiffusionOptions {
    /// What the network predicts: the velocity `eps - x0`, or the clean clip.
    pub prediction: Prediction,
    /// How training timesteps are drawn.
    pub timesteps: Timesteps,
    /// Mean of the logit-normal.
    pub logit_mean: f64,
    /// Standard deviation of the logit-normal.
    pub logit_std: f64,
    /// Shift of sigma: s' = a s / (1 + (a - 1) s). 1: none. 0: from the clip's token count (see `shift_base_tokens`).
    pub shift: f64,
    /// With shift = 0: a = sqrt(tokens / shift_base_tokens).
    pub shift_base_tokens: usize,
    /// x-prediction: 1 - t is clamped from below by this in the loss (JiT).
    pub clamp: f64,
    /// Share of labels dropped in training, for guidance.
    pub label_dropout: f64,
    /// Share of captions replaced by the empty text in training, for guidance.
    pub caption_dropout: f64,
}

impl Default for DiffusionOptions {
    fn default() -> Self {
        Self {
            prediction: Prediction::V,
            timesteps: Timesteps::LogitNormal,
            logit_mean: 0.0,
            logit_std: 1.0,
            shift: 1.0,
            shift_base_tokens: 4096,
            clamp: 0.05,
            label_dropout: 0.1,
            caption_dropout: 0.1,
        }
    }
}
