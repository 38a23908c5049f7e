//! Muon: momentum of a matrix's gradient, made nearly orthogonal, is its step (Jordan 2024; scaled as in arXiv
//! 2502.16982).
//!
//! For a matrix `[m, n]`, with g its gradient and b the momentum,
//!
//! ```text
//! b = mu b + (1 - mu) g;   u = (1 - mu) g + mu b;   W -= lr (0.2 sqrt(max(m, n)) orthogonal(u) + decay W)
//! ```
//!
//! The factor gives the step the root mean square that AdamW's has, so one learning rate serves both. Orthogonalising
//! takes whole matrices; all else is element by element. It is for the matrices of blocks: embeddings, head, biases,
//! norms and tables are AdamW's.

use candle_core::{Device, Tensor};
use multiversion::multiversion;

use crate::{Result, bail};

/// Iterations of Newton and Schulz.
const ITERATIONS: usize = 5;

/// Their polynomial a x + b x^3 + c x^5, which takes singular values of 0.001 to 1 to about 0.7 to 1.2.
const POLYNOMIAL: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Muon's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    momentum: f64,
    weight_decay: f64,
}

/// What a step does to every element of a matrix.
#[derive(Clone, Copy)]
pub struct MatrixStep {
    momentum: f32,
    rest: f32,
    /// What gradients are multiplied by.
    scale: f32,
    lr: f64,
    /// lr times the weight decay.
    decay: f32,
}

/// Whether Muon changes the parameter of this name and shape.
pub fn takes(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.starts_with("blocks.")
}

impl Muon {
    /// Muon with this momentum and decoupled weight decay.
    ///
    /// # Errors
    /// The momentum is not at least 0 and below 1.
    pub fn new(momentum: f64, weight_decay: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&momentum) {
            bail!(Config, "[train] momentum = {momentum}: must be at least 0 and below 1");
        }
        Ok(Self { momentum, weight_decay })
    }

    /// The constants of a step at learning rate `lr`, with gradients times `scale`.
    pub fn step(&self, lr: f64, scale: f64) -> MatrixStep {
        MatrixStep {
            momentum: self.momentum as f32,
            rest: (1.0 - self.momentum) as f32,
            scale: scale as f32,
            lr,
            decay: (lr * self.weight_decay) as f32,
        }
    }
}

impl MatrixStep {
    /// Moves the momentum of some elements; writes what is to be orthogonalised.
    pub fn accumulate(&self, grads: &[f32], momentum: &mut [f32], update: &mut [f32]) {
        accumulate(self, grads, momentum, update);
    }

    /// Changes some elements of a matrix `[rows, columns]` by theirs of what was orthogonalised.
    pub fn apply(&self, [rows, columns]: [usize; 2], update: &[f32], params: &mut [f32]) {
        let rate = (self.lr * 0.2 * (rows.max(columns) as f64).sqrt()) as f32;
        descend(rate, self.decay, update, params);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn accumulate(step: &MatrixStep, grads: &[f32], momentum: &mut [f32], update: &mut [f32]) {
    for ((&grad, b), u) in grads.iter().zip(momentum).zip(update) {
        let own = step.rest * (step.scale * grad);
        *b = step.momentum * *b + own;
        *u = own + step.momentum * *b;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn descend(rate: f32, decay: f32, update: &[f32], params: &mut [f32]) {
    for (param, u) in params.iter_mut().zip(update) {
        *param -= decay * *param + rate * u;
    }
}

/// A matrix near the orthogonal factor of the row-major `[rows, columns]` matrix `values`: its singular vectors, with
/// singular values of about 1. Computed in f32 on `device`; a matrix of zeros stays one.
///
/// # Errors
/// `values` are not so many; the device's.
pub fn orthogonalise(values: Vec<f32>, [rows, columns]: [usize; 2], device: &Device) -> Result<Vec<f32>> {
    let whole = Tensor::from_vec(values, (rows, columns), device)?;
    let wide = if rows > columns { whole.t()?.contiguous()? } else { whole };
    let norm = f64::from(wide.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let mut x = wide.affine(1.0 / (norm + 1e-7), 0.0)?;
    drop(wide);
    let [a, b, c] = POLYNOMIAL;
    for _ in 0..ITERATIONS {
        let square = x.matmul(&x.t()?)?;
        let inner = (square.affine(b, 0.0)? + square.matmul(&square)?.affine(c, 0.0)?)?;
        x = (x.affine(a, 0.0)? + inner.matmul(&x)?)?;
    }
    let result = if rows > columns { x.t()? } else { x };
    Ok(result.flatten_all()?.to_vec1()?)
}
