//! The token-local parts of text encoders: linear layers with what follows them, and norms.

use multiversion::multiversion;
use rayon::prelude::*;
use std::time::Instant;

use super::attention::Heads;
use super::matrix::Matrix;
use super::times::Times;
use crate::Result;
use crate::ops::gelu;
use crate::simd::product::Epilogue;
use crate::simd::uninit_vec::UninitVec;

/// Query, key and value projections, attention, and the projection back.
pub(super) struct Attention<'a> {
    /// Of query, key and value.
    pub projections: [Matrix<'a>; 3],
    /// Their biases, which T5 has not.
    pub biases: Option<[Vec<f32>; 3]>,
    pub output: Matrix<'a>,
    pub heads: Heads<'a>,
}

impl Attention<'_> {
    /// `epilogue(output(attention(x)))` of texts of `lengths` tokens.
    ///
    /// # Errors
    /// Those of [`Matrix::apply`].
    pub fn apply(&self, x: &[f32], lengths: &[usize], epilogue: &impl Epilogue<f32>) -> Result<Vec<f32>> {
        let rows = self.projections[0].rows(x);
        let project = |i: usize| match &self.biases {
            Some(biases) => self.projections[i].apply(&rows, &Bias(&biases[i])),
            None => self.projections[i].apply(&rows, &()),
        };
        // At once, so that no thread waits for another between them.
        let (q, (k, v)) = rayon::join(|| project(0), || rayon::join(|| project(1), || project(2)));
        let projected = [q?, k?, v?];
        drop(rows);
        let start = Instant::now();
        let attended = self.heads.attend(projected.each_ref().map(Vec::as_slice), lengths);
        Times::add(&self.output.times().attention, start);
        drop(projected);
        let rows = self.output.rows(&attended);
        drop(attended);
        self.output.apply(&rows, epilogue)
    }
}

/// Adds a column's bias.
pub(super) struct Bias<'a>(pub &'a [f32]);

impl Epilogue<f32> for Bias<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, column: usize) {
        out.iter_mut().zip(&self.0[column..]).for_each(|(x, b)| *x += b);
    }
}

/// GELU, by the error function, of sums and bias.
pub(super) struct BiasGelu<'a>(pub &'a [f32]);

impl Epilogue<f32> for BiasGelu<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, column: usize) {
        for (x, b) in out.iter_mut().zip(&self.0[column..]) {
            let y = f64::from(*x + b);
            *x = (0.5 * y * (1.0 + candle_core::cpu::erf::erf_f64(y * std::f64::consts::FRAC_1_SQRT_2))) as f32;
        }
    }
}

/// Adds rows of the same width.
pub(super) struct Residual<'a> {
    pub rows: &'a [f32],
    pub width: usize,
}

impl Epilogue<f32> for Residual<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], row: usize, column: usize) {
        out.iter_mut().zip(&self.rows[row * self.width + column..]).for_each(|(x, r)| *x += r);
    }
}

/// Adds a column's bias and rows of the same width.
pub(super) struct BiasResidual<'a>(pub Bias<'a>, pub Residual<'a>);

impl Epilogue<f32> for BiasResidual<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], beside: &mut [f32], row: usize, column: usize) {
        self.0.apply(out, beside, row, column);
        self.1.apply(out, beside, row, column);
    }
}

/// Takes the positive part.
pub(super) struct Relu;

impl Epilogue<f32> for Relu {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, _: usize) {
        out.iter_mut().for_each(|x| *x = x.max(0.0));
    }
}

/// Multiplies with GELU, in tanh form, of what is beside.
pub(super) struct Gated;

impl Epilogue<f32> for Gated {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], gate: &mut [f32], _: usize, _: usize) {
        gated(out, gate);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn gated(out: &mut [f32], gate: &[f32]) {
    out.iter_mut().zip(gate).for_each(|(x, &gate)| *x *= gelu(gate));
}

/// Each row of `x` `[n, D]` by its root mean square, times `weight` `[D]`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let width = weight.len();
    let mut out = UninitVec::new(x.len());
    out.copied_chunks(x, width).for_each(|row| {
        let scale = (1.0 / (sum(row, |x| x * x) / width as f64 + eps).sqrt()) as f32;
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
    });
    out.into_vec()
}

/// Each row of `x` `[n, D]` less its mean, by its deviation, times `weight`, plus `bias`.
pub(super) fn layer_norm(x: &mut [f32], [weight, bias]: [&[f32]; 2], eps: f64) {
    let width = weight.len();
    x.par_chunks_exact_mut(width).for_each(|row| {
        let mean = (sum(row, |x| x) / width as f64) as f32;
        let scale = (1.0 / (sum(row, |x| (x - mean) * (x - mean)) / width as f64 + eps).sqrt()) as f32;
        row.iter_mut().zip(weight.iter().zip(bias)).for_each(|(x, (w, b))| *x = (*x - mean) * scale * w + b);
    });
}

/// Sums of 16 elements each in f32, those in f64.
#[inline(always)]
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    row.chunks(16).map(|run| f64::from(run.iter().map(|&x| of(x)).sum::<f32>())).sum()
}
