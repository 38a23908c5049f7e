//! Samplers: integrate `dx/dsigma = v(x, sigma)` from noise at the first sigma to a clip at the last.
//!
//! Every update is the same linear combination for every element, so a rank samples its shard of a clip with these
//! functions as they are, and only the network inside the velocity talks to other ranks. Coefficients are f64 whatever
//! the state's dtype. Euler and Heun (as in Karras et al. 2022) are here whole; the weights of the exponential
//! integrators are next door. [`Sampler::run`] is the plain form, on whole tensors; clips are sampled by
//! [`Sampler::run_in_tiles`], in `tiled`, which is compared with it.

use super::exponential::{corrector, predictor};
use super::options::SamplerKind;
use crate::{Result, bail};
use candle_core::Tensor;

/// A sampler with its list of sigmas.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    pub(super) kind: SamplerKind,
    sigmas: Vec<f64>,
}

impl Sampler {
    /// A sampler of `sigmas.len() - 1` steps, which visit the sigmas in order; see [`super::inference_sigmas`].
    ///
    /// # Errors
    /// If there are fewer than two sigmas, or they do not fall strictly within [0, 1].
    pub fn new(kind: SamplerKind, sigmas: Vec<f64>) -> Result<Self> {
        if sigmas.len() < 2 {
            bail!(Config, "a sampler needs two sigmas or more, not {}", sigmas.len());
        }
        if let Some(i) = sigmas.iter().position(|sigma| !(0.0..=1.0).contains(sigma)) {
            bail!(Config, "sigma {i} of the sampler is {}: sigmas lie in [0, 1]", sigmas[i]);
        }
        if let Some(i) = sigmas.windows(2).position(|pair| pair[1] >= pair[0]) {
            bail!(
                Config,
                "sigmas {i} and {} of the sampler are {} and {}: sigmas must fall",
                i + 1,
                sigmas[i],
                sigmas[i + 1]
            );
        }
        Ok(Self { kind, sigmas })
    }

    /// The sigma that the state passed to [`Sampler::run`] has.
    pub fn start(&self) -> f64 {
        self.sigmas[0]
    }

    /// How often [`Sampler::run`] calls `velocity`.
    pub fn calls(&self) -> usize {
        let steps = self.sigmas.len() - 1;
        match self.kind {
            SamplerKind::Heun if self.sigmas[steps] == 0.0 => 2 * steps - 1,
            SamplerKind::Heun => 2 * steps,
            _ => steps,
        }
    }

    /// Integrates from `x` (f32 or f64, any shape) at the first sigma to the last.
    ///
    /// `velocity(x, sigma)` is the network's, of the shape and dtype of `x`; it is never asked about sigma = 0.
    ///
    /// # Errors
    /// Those of `velocity`, and a velocity of another shape or dtype.
    pub fn run(&self, x: Tensor, mut velocity: impl FnMut(&Tensor, f64) -> Result<Tensor>) -> Result<Tensor> {
        let velocity = &mut |x: &Tensor, sigma: f64| {
            let v = velocity(x, sigma)?;
            if v.shape() != x.shape() || v.dtype() != x.dtype() {
                let (got, want) = ((v.shape(), v.dtype()), (x.shape(), x.dtype()));
                bail!(Shape, "sampling at sigma = {sigma}: the velocity is {got:?}, the state {want:?}");
            }
            Ok(v)
        };
        match self.kind {
            SamplerKind::Euler | SamplerKind::FlowEuler => self.euler(x, velocity),
            SamplerKind::Heun => self.heun(x, velocity),
            SamplerKind::Dpmpp => self.dpmpp(x, velocity),
            SamplerKind::Unipc | SamplerKind::WanUnipc => self.unipc(x, velocity),
        }
    }

    fn euler(&self, mut x: Tensor, velocity: Whole<'_>) -> Result<Tensor> {
        for (from, to) in self.steps() {
            let v = velocity(&x, from)?;
            x = combine(&[(1.0, &x), (to - from, &v)])?;
        }
        Ok(x)
    }

    /// The explicit trapezoid; the step to sigma = 0, where a network has no velocity, is Euler's.
    fn heun(&self, mut x: Tensor, velocity: Whole<'_>) -> Result<Tensor> {
        for (from, to) in self.steps() {
            let v = velocity(&x, from)?;
            let end = combine(&[(1.0, &x), (to - from, &v)])?;
            x = if to == 0.0 {
                end
            } else {
                let v_end = velocity(&end, to)?;
                let half = 0.5 * (to - from);
                combine(&[(1.0, &x), (half, &v), (half, &v_end)])?
            };
        }
        Ok(x)
    }

    fn dpmpp(&self, mut x: Tensor, velocity: Whole<'_>) -> Result<Tensor> {
        let mut previous: Option<Prediction> = None;
        for (from, to) in self.steps() {
            let current = Prediction::of(&x, from, &velocity(&x, from)?)?;
            x = predict(&x, &current, previous.as_ref(), to)?;
            previous = Some(current);
        }
        Ok(x)
    }

    /// Each prediction does double duty: it corrects the step that led to it, then predicts the next.
    fn unipc(&self, mut x: Tensor, velocity: Whole<'_>) -> Result<Tensor> {
        // The state the last step left from, with the prediction there and the one before.
        let mut last: Option<(Tensor, Prediction, Option<Prediction>)> = None;
        for (from, to) in self.steps() {
            let current = Prediction::of(&x, from, &velocity(&x, from)?)?;
            let mut previous = None;
            if let Some((start, at_start, before)) = last {
                x = correct(&start, &current, &at_start, before.as_ref())?;
                previous = Some(at_start);
            }
            let end = predict(&x, &current, previous.as_ref(), to)?;
            last = Some((x, current, previous));
            x = end;
        }
        Ok(x)
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.sigmas.windows(2).map(|pair| (pair[0], pair[1]))
    }
}

type Whole<'a> = &'a mut dyn FnMut(&Tensor, f64) -> Result<Tensor>;

/// A clean clip, and the sigma it was predicted at.
pub(super) struct Prediction {
    pub sigma: f64,
    pub clean: Tensor,
}

impl Prediction {
    /// The one that the velocity `v` stands for: `x_hat = x - sigma v`.
    pub fn of(x: &Tensor, sigma: f64, v: &Tensor) -> Result<Self> {
        Ok(Self { sigma, clean: combine(&[(1.0, x), (-sigma, v)])? })
    }
}

/// The step from `x`, where `current` was predicted, to sigma `to`.
pub(super) fn predict(x: &Tensor, current: &Prediction, previous: Option<&Prediction>, to: f64) -> Result<Tensor> {
    let keep = to / current.sigma;
    let weights = predictor(previous.map(|p| p.sigma), current.sigma, to).map(|weight| (1.0 - keep) * weight);
    let old = previous.map_or(&current.clean, |p| &p.clean); // without a previous one its weight is 0
    combine(&[(keep, x), (weights[0], &current.clean), (weights[1], old)])
}

/// The same step as [`predict`], from `x` with `current`, now that `next` is known at its end.
pub(super) fn correct(
    x: &Tensor,
    next: &Prediction,
    current: &Prediction,
    previous: Option<&Prediction>,
) -> Result<Tensor> {
    let keep = next.sigma / current.sigma;
    let weights = corrector(previous.map(|p| p.sigma), current.sigma, next.sigma).map(|weight| (1.0 - keep) * weight);
    let old = previous.map_or(&current.clean, |p| &p.clean);
    combine(&[(keep, x), (weights[0], &next.clean), (weights[1], &current.clean), (weights[2], old)])
}

/// The sum of weighted tensors; those of weight 0 are left out.
pub(super) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut terms = terms.iter().filter(|(weight, _)| *weight != 0.0);
    let scaled = |&(weight, tensor): &(f64, &Tensor)| match weight {
        1.0 => Ok(tensor.clone()),
        _ => tensor.affine(weight, 0.0),
    };
    let Some(first) = terms.next() else { bail!(Shape, "a sampler's step has no terms") };
    terms.try_fold(scaled(first)?, |sum, term| Ok((sum + scaled(term)?)?))
}
