//! AdamW and plain SGD on flat f32 buffers, and the gradient norm they are clipped by.
//!
//! A buffer is a unit's parameters or this rank's shard of them; what is in it, and who else holds the rest, is not
//! known here. Each update is one pass over memory, clipping included. Chunks are of a fixed size and sums go in a
//! fixed order, so results have the same bits for any number of threads. AdamW: Loshchilov and Hutter 2019.

pub mod blockwise;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub mod muon;

use super::ema::follow;
use crate::{Result, bail};
use multiversion::multiversion;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Elements a thread takes at a time; part of the definition of [`norm_squared`].
const CHUNK: usize = 1 << 14;

/// Some parameters, their gradients, and the two moments AdamW keeps of each gradient; four slices of one length.
pub struct Shard<'a> {
    /// Master weights.
    pub params: &'a mut [f32],
    /// Gradients, unclipped.
    pub grads: &'a [f32],
    /// Running mean of the gradient; zero before the first step.
    pub m: &'a mut [f32],
    /// Running mean of the gradient's square; zero before the first step.
    pub v: &'a mut [f32],
    /// The moving average of the weights and its decay, if there is one: it follows in the same pass.
    pub average: Option<(f64, &'a mut [f32])>,
}

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW with moments in f32.
    #[default]
    AdamW,
    /// AdamW with moments of eight bits: [`blockwise`].
    AdamW8,
    /// Muon for the matrices of blocks, AdamW for the rest: [`muon`].
    Muon,
}

/// AdamW's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdamWOptions {
    /// Decay of the running means: of the gradient, and of its square.
    pub betas: [f64; 2],
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled weight decay of matrices; biases, norms and tables have none.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW(AdamWOptions);

/// What one step does to every element.
pub(super) struct Step {
    betas: [f32; 2],
    rest: [f32; 2], // 1 - betas, rounded once
    scale: f32,
    rate: f32,    // lr / (1 - beta1^step)
    inv_std: f32, // 1 / sqrt(1 - beta2^step)
    eps: f32,
    decay: f32, // lr times the weight decay: the share of a parameter that goes
}

impl AdamW {
    /// The optimizer with these constants.
    ///
    /// # Errors
    /// If a constant is out of its range.
    pub fn new(options: AdamWOptions) -> Result<Self> {
        let AdamWOptions { betas, eps, weight_decay } = options;
        if let Some(beta) = betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            bail!(Config, "[train] betas: {beta} must be at least 0 and below 1");
        }
        if !(eps > 0.0 && eps.is_finite()) {
            bail!(Config, "[train] eps = {eps}: must be above 0");
        }
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            bail!(Config, "[train] weight_decay = {weight_decay}: must be 0 or more");
        }
        Ok(Self(options))
    }

    /// Makes step number `step`, counted from 1, at learning rate `lr` with gradients times `scale` (see
    /// [`clip_coefficient`]). Elements in `no_decay`, ascending ranges within the shard, have no weight decay.
    ///
    /// # Errors
    /// If the slices differ in length, `step` is 0, or the ranges overlap, descend or lie outside.
    pub fn update(&self, step: u64, lr: f64, scale: f64, shard: Shard<'_>, no_decay: &[Range<usize>]) -> Result<()> {
        let Shard { params, grads, m, v, average } = shard;
        let n = params.len();
        if grads.len() != n || m.len() != n || v.len() != n {
            bail!(Shape, "AdamW: {n} parameters, {} gradients, moments of {} and {}", grads.len(), m.len(), v.len());
        }
        if let Some((_, average)) = &average
            && average.len() != n
        {
            bail!(Shape, "EMA: an average of {} values for {n} parameters", average.len());
        }
        check_ranges(no_decay, n)?;
        let (rest, average) = average.map_or((0.0, None), |(decay, average)| ((1.0 - decay) as f32, Some(average)));
        let averages: Vec<&mut [f32]> = match average {
            Some(average) => average.chunks_mut(CHUNK).collect(),
            None => (0..n.div_ceil(CHUNK)).map(|_| &mut [][..]).collect(),
        };
        let step = self.step(step, lr, scale)?;
        let grads = grads.par_chunks(CHUNK);
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let chunks = params.par_chunks_mut(CHUNK).zip(grads).zip(moments).zip(averages);
        chunks.enumerate().for_each(|(i, (((params, grads), (m, v)), average))| {
            let start = i * CHUNK;
            for (part, decays) in segments(start..start + params.len(), no_decay) {
                let part = part.start - start..part.end - start;
                let values = (&mut params[part.clone()], &grads[part.clone()]);
                let decay = if decays { step.decay } else { 0.0 };
                apply(&step, values, (&mut m[part.clone()], &mut v[part]), decay);
            }
            follow(rest, average, params);
        });
        Ok(())
    }

    /// The constants of step number `step`, counted from 1.
    pub(super) fn step(&self, step: u64, lr: f64, scale: f64) -> Result<Step> {
        if step == 0 {
            bail!(Shape, "AdamW: steps count from 1");
        }
        let AdamWOptions { betas, eps, weight_decay } = self.0;
        let [bias1, bias2] = betas.map(|beta| 1.0 - beta.powf(step as f64));
        Ok(Step {
            betas: betas.map(|beta| beta as f32),
            rest: betas.map(|beta| (1.0 - beta) as f32),
            scale: scale as f32,
            rate: (lr / bias1) as f32,
            inv_std: (1.0 / bias2.sqrt()) as f32,
            eps: eps as f32,
            decay: (lr * weight_decay) as f32,
        })
    }
}

/// The step on some elements; `decay` is the share of a parameter that goes, as 1 minus it would be rounded much more
/// coarsely.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn apply(step: &Step, (params, grads): (&mut [f32], &[f32]), (m, v): (&mut [f32], &mut [f32]), decay: f32) {
    for ((param, &grad), (m, v)) in params.iter_mut().zip(grads).zip(m.iter_mut().zip(v)) {
        let grad = step.scale * grad;
        *m = step.betas[0] * *m + step.rest[0] * grad;
        *v = step.betas[1] * *v + step.rest[1] * grad * grad;
        *param -= decay * *param + step.rate * *m / (v.sqrt() * step.inv_std + step.eps);
    }
}

/// Plain gradient descent, `params -= lr * scale * grads`: it hides no wrong factor in a gradient, as AdamW does.
///
/// # Errors
/// If the slices differ in length.
pub fn sgd(lr: f64, scale: f64, params: &mut [f32], grads: &[f32]) -> Result<()> {
    if params.len() != grads.len() {
        bail!(Shape, "SGD: {} parameters, {} gradients", params.len(), grads.len());
    }
    let rate = (lr * scale) as f32;
    params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).for_each(|(params, grads)| {
        for (param, grad) in params.iter_mut().zip(grads) {
            *param -= rate * grad;
        }
    });
    Ok(())
}

/// The sum of squares, in f64, where no finite f32 overflows: the squared norms of shards add up to the global one.
pub fn norm_squared(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let chunk_sum = |chunk: &[f32]| {
        let (groups, tail) = chunk.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for group in groups {
            for (sum, &value) in sums.iter_mut().zip(group) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        tail.iter().map(|&value| f64::from(value) * f64::from(value)).chain(sums).sum::<f64>()
    };
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum).collect();
    sums.iter().sum()
}

/// What gradients are multiplied by so that their global norm, now `norm`, is at most `max`; with `max` 0, by 1.
///
/// A norm that is not finite gives no usable coefficient: check for one first, with [`first_non_finite`] to name the
/// culprit.
pub fn clip_coefficient(norm: f64, max: f64) -> f64 {
    if max == 0.0 || norm <= max { 1.0 } else { max / norm }
}

/// Where the first NaN or infinity is, if there is any.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    let position = |(i, chunk): (usize, &[f32])| Some(i * CHUNK + chunk.iter().position(|value| !value.is_finite())?);
    values.par_chunks(CHUNK).enumerate().find_map_first(position)
}

fn check_ranges(ranges: &[Range<usize>], n: usize) -> Result<()> {
    let mut end = 0;
    for range in ranges {
        if range.start < end || range.end < range.start || range.end > n {
            bail!(Shape, "AdamW: the range {range:?} without decay does not follow {end} within {n} parameters");
        }
        end = range.end;
    }
    Ok(())
}

/// Cuts `whole` at the borders of `no_decay`: consecutive parts, each with whether it decays.
fn segments(whole: Range<usize>, no_decay: &[Range<usize>]) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
    let mut position = whole.start;
    let mut next = no_decay.partition_point(|range| range.end <= position);
    std::iter::from_fn(move || {
        if position >= whole.end {
            return None;
        }
        while no_decay.get(next).is_some_and(|range| range.end <= position) {
            next += 1;
        }
        let (end, decays) = match no_decay.get(next) {
            Some(range) if range.start <= position => (range.end, false),
            Some(range) => (range.start, true),
            None => (whole.end, true),
        };
        let part = position..end.min(whole.end);
        position = part.end;
        Some((part, decays))
    })
}
