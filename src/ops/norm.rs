//! Computes LayerNorm with what follows it (a modulation, an affine map or nothing) in one pass, and RMSNorm. Backward
//! recomputes the statistics of a row.

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::custom::{Custom, Op1, Values, read};
use super::elementwise::CHUNK;
use super::{Param, Real, Rope, Rows, Tape};
use crate::simd::uninit_vec::UninitVec;

/// What follows the normalisation of a row: y = xhat * a + b.
#[derive(Clone, Debug)]
pub enum Affine {
    /// y = xhat.
    None,
    /// y = xhat * weight + bias, both `[D]`.
    #[allow(missing_docs)]
    Weights { weight: Param, bias: Param },
    /// y = xhat * (1 + scale) + shift, rows of `modulation` `[B, k, D]` at the two indices (adaLN, arXiv 2212.09748).
    #[allow(missing_docs)]
    Modulation { modulation: Param, shift: usize, scale: usize, rows: Rows },
}

/// (x - mean) / sqrt(variance + eps) of each row of `x` `[n, D]`, then `affine`. Differentiable in x; gradients of the
/// affine's parameters are added to them.
pub fn layer_norm(tape: &Tape, x: &Tensor, affine: Affine, eps: f64) -> Result<Tensor> {
    tape.one(x, Custom(LayerNorm { affine, eps }))
}

/// x / sqrt(mean(x^2) + eps) * weight of each row of `x` `[n, D]` (arXiv 1910.07467).
pub fn rms_norm(tape: &Tape, x: &Tensor, weight: &Param, eps: f64) -> Result<Tensor> {
    tape.one(x, Custom(RmsNorm { weight: weight.clone(), eps, turn: None }))
}

/// [`rms_norm`], whose heads are then turned by their rows' positions ([`Rope`]), in one pass.
pub fn rms_rope(tape: &Tape, x: &Tensor, weight: &Param, eps: f64, rope: &Rope, rows: Rows) -> Result<Tensor> {
    tape.one(x, Custom(RmsNorm { weight: weight.clone(), eps, turn: Some((rope.clone(), rows)) }))
}

/// Rows of a forward pass that a thread takes at a time.
const FEW: usize = 8;

pub(super) struct LayerNorm {
    pub(super) affine: Affine,
    pub(super) eps: f64,
}

/// What a row is multiplied with and shifted by, (one to add to a, a, b), or nothing.
type RowAffine<'a, T> = Option<(T, &'a [T], &'a [T])>;

/// The affine's values, locked for reading.
enum Locked<'a, T> {
    None,
    Weights(Values<'a, T>, Values<'a, T>),
    Modulation { values: Values<'a, T>, k: usize, shift: usize, scale: usize },
}

impl<T: Real> Locked<'_, T> {
    /// For a row of `sample`.
    fn row(&self, sample: usize, width: usize) -> RowAffine<'_, T> {
        match self {
            Self::None => None,
            Self::Weights(weight, bias) => Some((T::zero(), weight, bias)),
            Self::Modulation { values, k, shift, scale } => {
                let at = |index: usize| &values[(sample * k + index) * width..][..width];
                Some((T::one(), at(*scale), at(*shift)))
            }
        }
    }
}

impl LayerNorm {
    fn lock<T: Real>(&self) -> Result<Locked<'_, T>> {
        Ok(match &self.affine {
            Affine::None => Locked::None,
            Affine::Weights { weight, bias } => Locked::Weights(read(&weight.value)?, read(&bias.value)?),
            Affine::Modulation { modulation, shift, scale, .. } => Locked::Modulation {
                values: read(&modulation.value)?,
                k: modulation.value.dims()[1],
                shift: *shift,
                scale: *scale,
            },
        })
    }

    /// How rows belong to samples; all to sample 0 where that does not matter.
    fn rows(&self) -> Rows {
        match &self.affine {
            Affine::Modulation { rows, .. } => *rows,
            _ => Rows { start: 0, tokens: usize::MAX },
        }
    }

    /// Adds the sums of dy * xhat and dy over a run of rows to the parameters' gradients.
    fn add<T: Real>(&self, sample: usize, width: usize, da: &[T], db: &[T]) -> Result<()> {
        match &self.affine {
            Affine::None => Ok(()),
            Affine::Weights { weight, bias } => {
                weight.add_grad(0, da)?;
                bias.add_grad(0, db)
            }
            Affine::Modulation { modulation, shift, scale, .. } => {
                let first = sample * modulation.value.dims()[1];
                modulation.add_grad((first + scale) * width, da)?;
                modulation.add_grad((first + shift) * width, db)
            }
        }
    }
}

impl Op1 for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let width = dims[1];
        let (locked, rows, eps) = (self.lock::<T>()?, self.rows(), T::of(self.eps));
        let mut y = UninitVec::new(x.len());
        y.copied_chunks(x, FEW * width).enumerate().for_each(|(run, y)| {
            for (i, row) in y.chunks_exact_mut(width).enumerate() {
                forward_row(row, locked.row((rows.start + run * FEW + i) / rows.tokens, width), eps);
            }
        });
        Ok(y.into_vec())
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let (n, width) = (dims[0], dims[1]);
        let (locked, eps) = (self.lock::<T>()?, T::of(self.eps));
        let mut dx = UninitVec::new(dy.len());
        let runs = self.rows().runs(n, CHUNK);
        let parts: Vec<(usize, Vec<T>, Vec<T>)> = dx
            .chunks_of(runs.iter().map(|(_, _, count)| count * width))
            .into_par_iter()
            .zip(runs)
            .map(|(dx, (sample, first, count))| {
                let (mut da, mut db) = (vec![T::zero(); width], vec![T::zero(); width]);
                let run = first * width..(first + count) * width;
                let dx = dx.copy_of(&dy[run.clone()]);
                for (dx, x) in dx.chunks_exact_mut(width).zip(x[run].chunks_exact(width)) {
                    backward_row(dx, x, locked.row(sample, width), eps, &mut da, &mut db);
                }
                (sample, da, db)
            })
            .collect();
        drop(locked);
        for (sample, da, db) in parts {
            self.add(sample, width, &da, &db)?;
        }
        Ok(dx.into_vec())
    }

    super::on_gpu!();
}

/// (mean, 1 / sqrt(variance + eps)) of a row.
#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: T) -> (T, T) {
    let n = T::of(x.len() as f64);
    let mean = sum(x, |v| v) / n;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
    (mean, T::one() / (variance + eps).sqrt())
}

/// The sum of f(v), in 16 lanes so that it vectorises.
#[inline(always)]
fn sum<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.into_iter().sum::<T>() + rest.iter().map(|&v| f(v)).sum()
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_row<T: Real>(row: &mut [T], affine: RowAffine<T>, eps: T) {
    let (mean, r) = statistics(row, eps);
    match affine {
        None => row.iter_mut().for_each(|v| *v = (*v - mean) * r),
        Some((one, a, b)) => {
            for ((v, &a), &b) in row.iter_mut().zip(a).zip(b) {
                *v = (*v - mean) * r * (one + a) + b;
            }
        }
    }
}

/// Turns `dx`, which holds dy, into the row's dx, and adds dy * xhat to `da`, dy to `db`.
///
/// With g = dy * a: dx = r (g - mean(g) - xhat mean(g xhat)).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_row<T: Real>(dx: &mut [T], x: &[T], affine: RowAffine<T>, eps: T, da: &mut [T], db: &mut [T]) {
    let (mean, r) = statistics(x, eps);
    if let Some((one, a, _)) = affine {
        for ((((g, &x), &a), da), db) in dx.iter_mut().zip(x).zip(a).zip(da).zip(db) {
            *da += *g * (x - mean) * r;
            *db += *g;
            *g *= one + a;
        }
    }
    let n = T::of(x.len() as f64);
    let mean_g = sum(dx, |g| g) / n;
    let mut lanes = [T::zero(); 16];
    for (g, x) in dx.chunks(16).zip(x.chunks(16)) {
        for ((lane, &g), &x) in lanes.iter_mut().zip(g).zip(x) {
            *lane += g * (x - mean) * r;
        }
    }
    let mean_gx = lanes.into_iter().sum::<T>() / n;
    for (g, &x) in dx.iter_mut().zip(x) {
        *g = r * (*g - mean_g - (x - mean) * r * mean_gx);
    }
}

pub(super) struct RmsNorm {
    pub(super) weight: Param,
    pub(super) eps: f64,
    pub(super) turn: Option<(Rope, Rows)>,
}

impl RmsNorm {
    /// Turns row `i` of the tile, if rows are turned.
    fn turn<T: Real>(&self, row: &mut [T], i: usize, angles: &mut (Vec<T>, Vec<T>), back: bool) {
        if let Some((rope, rows)) = &self.turn {
            rope.angles((rows.start + i) % rows.tokens, angles);
            turn_row(rope, row, angles, back);
        }
    }
}

impl Op1 for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let weight = read::<T>(&self.weight.value)?;
        let weight: &[T] = &weight;
        let eps = T::of(self.eps);
        let (width, mut y) = (dims[1], UninitVec::new(x.len()));
        y.copied_chunks(x, FEW * width).enumerate().for_each_init(Default::default, |angles, (run, y)| {
            for (i, row) in y.chunks_exact_mut(width).enumerate() {
                rms_forward_row(row, weight, eps);
                self.turn(row, run * FEW + i, angles, false);
            }
        });
        Ok(y.into_vec())
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let width = dims[1];
        let mut dx = UninitVec::new(dy.len());
        let parts: Vec<Vec<T>> = {
            let weight = read::<T>(&self.weight.value)?;
            let weight: &[T] = &weight;
            let eps = T::of(self.eps);
            dx.copied_chunks(dy, CHUNK * width)
                .zip(x.par_chunks(CHUNK * width))
                .enumerate()
                .map(|(chunk, (dx, x))| {
                    let (mut dw, mut angles) = (vec![T::zero(); width], Default::default());
                    for (i, (dx, x)) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                        self.turn(dx, chunk * CHUNK + i, &mut angles, true);
                        rms_backward_row(dx, x, weight, eps, &mut dw);
                    }
                    dw
                })
                .collect()
        };
        for part in parts {
            self.weight.add_grad(0, &part)?;
        }
        Ok(dx.into_vec())
    }

    super::on_gpu!();
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn turn_row<T: Real>(rope: &Rope, row: &mut [T], angles: &(Vec<T>, Vec<T>), back: bool) {
    rope.turn(row, angles, back);
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn rms_forward_row<T: Real>(row: &mut [T], weight: &[T], eps: T) {
    let r = T::one() / (sum(row, |v| v * v) / T::of(row.len() as f64) + eps).sqrt();
    for (v, &w) in row.iter_mut().zip(weight) {
        *v = *v * r * w;
    }
}

/// Turns `dx`, which holds dy, into the row's dx, and adds dy * xhat to `dw`. With g = dy * w: dx = r (g - xhat mean(g
/// xhat)).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn rms_backward_row<T: Real>(dx: &mut [T], x: &[T], weight: &[T], eps: T, dw: &mut [T]) {
    let n = T::of(x.len() as f64);
    let r = T::one() / (sum(x, |v| v * v) / n + eps).sqrt();
    let mut lanes = [T::zero(); 16];
    for (((g, x), w), dw) in dx.chunks_mut(16).zip(x.chunks(16)).zip(weight.chunks(16)).zip(dw.chunks_mut(16)) {
        for ((((lane, g), &x), &w), dw) in lanes.iter_mut().zip(g).zip(x).zip(w).zip(dw) {
            *dw += *g * x * r;
            *g *= w;
            *lane += *g * x * r;
        }
    }
    let mean_gx = lanes.into_iter().sum::<T>() / n;
    for (g, &x) in dx.iter_mut().zip(x) {
        *g = r * (*g - x * r * mean_gx);
    }
}
