//! Chooses sigmas: draws them for training, fixes them for the held-out loss, lists them for sampling.
//!
//! Training follows Stable Diffusion 3 (Esser et al. 2024): a logit-normal sigma, shifted towards noise where a clip
//! has many tokens. Draws depend on (seed, step, sample) alone, not on the number of ranks. The
//! held-out loss is taken at evenly spaced quantiles of the same distribution instead, which keeps it comparable from
//! step to step.

use super::options::{DiffusionOptions, LossWeight, SamplerKind, Timesteps};
use crate::rng::{Key, Purpose};
use crate::{Result, bail};

/// How many quantiles: 1/8, 3/8, 5/8 and 7/8 of the distribution.
pub const QUANTILES: usize = 4;

/// The smallest sigma that sampling asks the network about, before the shift, in the limit of many steps.
const LAST_SIGMA: f64 = 1.0 / 1000.0;

/// What the network is told of `sigma`.
pub fn timestep(sigma: f64) -> f64 {
    1000.0 * sigma
}

/// The shift `s' = a s / (1 + (a - 1) s)`; a > 1 moves sigmas towards 1. 0 and 1 stay where they are.
pub fn shift_sigma(sigma: f64, a: f64) -> f64 {
    a * sigma / (1.0 + (a - 1.0) * sigma)
}

/// The shift's `a`: as configured, or for 0 the root of the clip's tokens over `base_tokens`, which keeps the
/// signal-to-noise ratio of coarse features the same at any size.
///
/// # Errors
/// If `shift` is negative or not a number, or there is nothing to take the root of.
pub fn resolve_shift(shift: f64, base_tokens: usize, tokens: usize) -> Result<f64> {
    if !(shift >= 0.0 && shift.is_finite()) {
        bail!(Config, "shift = {shift}: must be positive, or \"auto\" (0) to follow from the token count");
    }
    if shift > 0.0 {
        return Ok(shift);
    }
    if base_tokens == 0 || tokens == 0 {
        bail!(
            Config,
            "shift = \"auto\" needs tokens: the clip has {tokens}, [diffusion] shift_base_tokens = {base_tokens}"
        );
    }
    Ok((tokens as f64 / base_tokens as f64).sqrt())
}

/// How training sigmas are distributed for clips of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct SigmaDistribution {
    timesteps: Timesteps,
    mean: f64,
    std: f64,
    shift: f64,
    /// The bell's mean over all draws; none: all sigmas weigh the same.
    bell: Option<f64>,
}

/// Quantiles that a mean over all draws is taken at.
const DRAWS: usize = 1000;

/// The bell of [`LossWeight::Bell`], before it is over its mean; 0 at both ends.
fn bell(sigma: f64) -> f64 {
    (-2.0 * (sigma - 0.5).powi(2)).exp() - (-0.5f64).exp()
}

impl SigmaDistribution {
    /// The distribution that `options` ask for, on clips of `tokens` tokens.
    ///
    /// The mean is that of logit(sigma): recipes that state it for logit(1 - sigma), as JiT's -0.8, change its sign.
    ///
    /// # Errors
    /// If a number is out of its range.
    pub fn new(options: &DiffusionOptions, tokens: usize) -> Result<Self> {
        let DiffusionOptions { timesteps, logit_mean: mean, logit_std: std, .. } = *options;
        if !mean.is_finite() {
            bail!(Config, "[diffusion] logit_mean = {mean}: must be finite");
        }
        if !(std >= 0.0 && std.is_finite()) {
            bail!(Config, "[diffusion] logit_std = {std}: must be 0 or more");
        }
        let shift = resolve_shift(options.shift, options.shift_base_tokens, tokens)?;
        let flat = Self { timesteps, mean, std, shift, bell: None };
        Ok(match options.loss_weight {
            LossWeight::Uniform => flat,
            LossWeight::Bell => {
                let sum: f64 = flat.heldout(DRAWS).into_iter().map(bell).sum();
                Self { bell: Some(sum / DRAWS as f64), ..flat }
            }
        })
    }

    /// The shift: as configured, or from the token count.
    pub fn shift(&self) -> f64 {
        self.shift
    }

    /// What the loss of `sigma` weighs; 1 on average over all draws.
    pub fn loss_weight(&self, sigma: f64) -> f64 {
        self.bell.map_or(1.0, |mean| bell(sigma) / mean)
    }

    /// The sigma of `sample`, an index in the global batch of `step`.
    pub fn draw(&self, seed: u64, step: u64, sample: u64) -> f64 {
        let mut stream = Key { seed, purpose: Purpose::Timestep, step, sample }.stream(0);
        match self.timesteps {
            Timesteps::LogitNormal => self.at_normal(stream.normal()),
            Timesteps::Uniform => shift_sigma(stream.uniform(), self.shift),
        }
    }

    /// The sigma below which a share `q` of all draws lies, 0 < q < 1.
    pub fn quantile(&self, q: f64) -> f64 {
        match self.timesteps {
            Timesteps::LogitNormal => self.at_normal(normal_quantile(q)),
            Timesteps::Uniform => shift_sigma(q, self.shift),
        }
    }

    /// The sigmas of the held-out loss: the middles of `count` parts of equal probability, ascending.
    pub fn heldout(&self, count: usize) -> Vec<f64> {
        (0..count).map(|i| self.quantile((i as f64 + 0.5) / count as f64)).collect()
    }

    /// A standard normal number's place in the shifted logit-normal. The shift is monotone, so quantiles map to
    /// quantiles.
    fn at_normal(&self, normal: f64) -> f64 {
        let logit = self.mean + self.std * normal;
        shift_sigma(1.0 / (1.0 + (-logit).exp()), self.shift)
    }
}

/// Which samples are trained on without their label, or without their caption, so that the network also learns the null
/// condition of guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    share: f64,
    purpose: Purpose,
}

impl Dropout {
    /// Drops this share of labels.
    ///
    /// # Errors
    /// If its share is not within [0, 1].
    pub fn of_labels(share: f64) -> Result<Self> {
        Self::new(share, Purpose::LabelDrop, "label_dropout")
    }

    /// Drops this share of captions.
    ///
    /// # Errors
    /// If its share is not within [0, 1].
    pub fn of_captions(share: f64) -> Result<Self> {
        Self::new(share, Purpose::CaptionDrop, "caption_dropout")
    }

    fn new(share: f64, purpose: Purpose, key: &str) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            bail!(Config, "[diffusion] {key} = {share}: must be within [0, 1]");
        }
        Ok(Self { share, purpose })
    }

    /// Whether `sample` of the global batch of `step` loses its condition.
    pub fn drops(&self, seed: u64, step: u64, sample: u64) -> bool {
        Key { seed, purpose: self.purpose, step, sample }.stream(0).uniform() < self.share
    }
}

/// The sigmas of a sampler of `steps` steps: evenly spaced from 1 towards 1/1000, shifted by `a`, then 0; steps + 1 in
/// all.
///
/// # Errors
/// If there are no steps or `a` is not positive.
pub fn inference_sigmas(steps: usize, a: f64) -> Result<Vec<f64>> {
    if steps == 0 {
        bail!(Config, "[sample] steps = 0: sampling needs at least one step");
    }
    if !(a > 0.0 && a.is_finite()) {
        bail!(Config, "shift = {a}: sampling needs a positive shift (resolve 0 from the token count first)");
    }
    let spaced = |i: usize| 1.0 + (LAST_SIGMA - 1.0) * (i as f64 / steps as f64);
    let sigmas = (0..steps).map(|i| shift_sigma(spaced(i), a));
    Ok(sigmas.chain([0.0]).collect())
}

impl SamplerKind {
    /// The sigmas of `steps` steps with shift `a`, and 0; steps + 1 in all.
    ///
    /// Those of Wan's samplers are f32, as diffusers has them: the first step of UniPC leaves from so near to 1 that
    /// rounding moves its length in lambda by hundredths. Its first sigma is 1 - 1e-6. FlowMatchEuler's are evenly
    /// spaced from 1 to the shifted 1/1000, both included, then shifted once more.
    ///
    /// # Errors
    /// As [`inference_sigmas`].
    pub fn sigmas(self, steps: usize, a: f64) -> Result<Vec<f64>> {
        let mut sigmas = inference_sigmas(steps, a)?;
        match self {
            Self::Euler | Self::Heun | Self::Dpmpp | Self::Unipc => return Ok(sigmas),
            Self::WanUnipc => sigmas[0] -= 1e-6,
            Self::FlowEuler => {
                let span = shift_sigma(LAST_SIGMA, a) - 1.0;
                for (i, sigma) in sigmas[1..steps].iter_mut().enumerate() {
                    *sigma = shift_sigma(1.0 + span * (i + 1) as f64 / (steps - 1) as f64, a);
                }
            }
        }
        Ok(sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect())
    }

    /// What the network is told of `sigma`: Wan's own sampler cuts it to a whole timestep, as its networks are told in
    /// Wan's and in diffusers' pipelines.
    pub fn timestep(self, sigma: f64) -> f64 {
        match self {
            Self::WanUnipc => timestep(sigma).trunc(),
            _ => timestep(sigma),
        }
    }
}

/// The standard normal's quantile, by bisection of its distribution function; |error| < 1e-12 for 1e-4 < q < 1 - 1e-4.
fn normal_quantile(q: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < q { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The standard normal's distribution function: 1/2 + density * (x + x^3/3 + x^5/(3 5) + ...) (Marsaglia 2004).
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, 0.0, 1.0);
    while sum + term != sum {
        sum += term;
        n += 2.0;
        term *= x * x / n;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}
