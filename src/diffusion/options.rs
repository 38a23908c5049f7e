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

/// What the loss of a sigma weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossWeight {
    /// All sigmas the same.
    #[default]
    Uniform,
    /// A bell around sigma = 1/2, `exp(-2 (sigma - 1/2)^2)` less what it is at 0 and 1, over its mean over all draws.
    Bell,
}

/// A shift in a config: a number, or `"auto"`, which is 0 here, as older configs have it.
pub mod shift {
    use serde::de::{Deserializer, Error, Unexpected, Visitor};
    use serde::ser::Serializer;

    /// As a number or `"auto"`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(shift: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if *shift == 0.0 { serializer.serialize_str("auto") } else { serializer.serialize_f64(*shift) }
    }

    /// Of a number or `"auto"`.
    ///
    /// # Errors
    /// It is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(NumberOrAuto)
    }

    struct NumberOrAuto;

    impl Visitor<'_> for NumberOrAuto {
        type Value = f64;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a number or \"auto\"")
        }

        fn visit_str<E: Error>(self, word: &str) -> Result<f64, E> {
            if word == "auto" { Ok(0.0) } else { Err(E::invalid_value(Unexpected::Str(word), &self)) }
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<f64, E> {
            Ok(number)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<f64, E> {
            Ok(number as f64)
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<f64, E> {
            Ok(number as f64)
        }
    }
}

/// The same of a shift that may be left out.
pub mod optional_shift {
    use serde::de::Deserializer;
    use serde::ser::Serializer;

    /// As a number or `"auto"`, or nothing.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(shift: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match shift {
            Some(shift) => super::shift::serialize(shift, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Of a number or `"auto"`; where the key is left out nobody asks.
    ///
    /// # Errors
    /// It is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        super::shift::deserialize(deserializer).map(Some)
    }
}

/// Which sampler, and what it asks the network at. The first four tell the network `1000 sigma`, whatever it is; the
/// last two are those that Wan's networks are sampled with elsewhere, and give the same clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    Euler,
    #[default]
    Heun,
    /// DPM-Solver++(2M).
    Dpmpp,
    /// UniPC, order 2, B2(h).
    Unipc,
    /// UniPC on Wan's own sigmas; the network is told whole timesteps.
    WanUnipc,
    /// Euler on the sigmas of diffusers' FlowMatchEulerDiscreteScheduler.
    FlowEuler,
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
    /// Shift of sigma: s' = a s / (1 + (a - 1) s). 1: none. 0 (in a config `"auto"`): from the clip's token count (see
    /// `shift_base_tokens`).
    #[serde(with = "shift")]
    pub shift: f64,
    /// With an automatic shift: a = sqrt(tokens / shift_base_tokens). The default gives Wan's 480p clips of 81 frames,
    /// 32,760 tokens, the 3 that they are used with.
    pub shift_base_tokens: usize,
    /// What the loss of a sigma weighs.
    pub loss_weight: LossWeight,
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
            shift_base_tokens: 32_760 / (3 * 3),
            loss_weight: LossWeight::Uniform,
            clamp: 0.05,
            label_dropout: 0.1,
            caption_dropout: 0.1,
        }
    }
}
