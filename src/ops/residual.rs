//! Adds a linear layer's output to a residual through a gate, x + gate y, one gate a sample, with the gate's gradient.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::custom::{Custom, Op2, read};
use super::elementwise::CHUNK;
use super::linear::{Linear, SavedPreactivation, check_residual};
use super::{Param, Real, Rows, Tape};
use crate::simd::product::Epilogue;
use crate::simd::uninit_vec::UninitVec;

/// Row `index` of each sample's `modulation` `[B, k, width]`.
pub(super) struct Gate {
    pub modulation: Param,
    pub index: usize,
    pub rows: Rows,
}

impl Gate {
    /// Where the sample's gate starts in the modulation.
    #[inline(always)]
    fn offset(&self, sample: usize, width: usize) -> usize {
        (sample * self.modulation.value.dims()[1] + self.index) * width
    }

    /// The gate of a tile's row, from the modulation's values.
    #[inline(always)]
    pub fn row<'a, T>(&self, modulation: &'a [T], row: usize, width: usize) -> &'a [T] {
        &modulation[self.offset((self.rows.start + row) / self.rows.tokens, width)..][..width]
    }

    /// The gradient of y, given that of x + gate y, where the gate's is not wanted.
    pub fn scaled<T: Real>(&self, dout: &[T]) -> Result<Vec<T>> {
        let width = self.modulation.value.dims()[2];
        let modulation = read::<T>(&self.modulation.value)?;
        let modulation: &[T] = &modulation;
        let mut dy = UninitVec::new(dout.len());
        dy.copied_chunks(dout, CHUNK * width).enumerate().for_each(|(i, dy)| {
            for (row, dy) in dy.chunks_exact_mut(width).enumerate() {
                let gate = self.row(modulation, i * CHUNK + row, width);
                dy.iter_mut().zip(gate).for_each(|(dy, &g)| *dy *= g);
            }
        });
        Ok(dy.into_vec())
    }

    /// The gradient of y, given y and that of x + gate y; the gate's is added to the modulation's.
    pub fn backward<T: Real>(&self, y: &[T], dout: &[T]) -> Result<Vec<T>> {
        let width = self.modulation.value.dims()[2];
        let parts: Vec<(usize, Vec<T>)>;
        let mut dy = UninitVec::new(y.len());
        {
            let m = read::<T>(&self.modulation.value)?;
            let m: &[T] = &m;
            let runs = self.rows.runs(y.len() / width, CHUNK);
            parts = dy
                .chunks_of(runs.iter().map(|(_, _, count)| count * width))
                .into_par_iter()
                .zip(runs)
                .map(|(dy, (sample, first, count))| {
                    let gate = &m[self.offset(sample, width)..][..width];
                    let run = first * width..(first + count) * width;
                    let mut sum = vec![T::zero(); width];
                    let dy = dy.copy_of(&dout[run.clone()]);
                    for (dy, y) in dy.chunks_exact_mut(width).zip(y[run].chunks_exact(width)) {
                        for (((dy, s), &y), &g) in dy.iter_mut().zip(&mut sum).zip(y).zip(gate) {
                            *s += y * *dy;
                            *dy *= g;
                        }
                    }
                    (sample, sum)
                })
                .collect();
        }
        for (sample, sum) in parts {
            self.modulation.add_grad(self.offset(sample, width), &sum)?;
        }
        Ok(dy.into_vec())
    }
}

/// x + gate (x Wᵀ + b) as an op.
pub(super) struct WithGate {
    pub linear: Linear,
    pub gate: Gate,
    pub preactivation: SavedPreactivation,
    /// The output is not read, and the gate has no gradient.
    pub skipped: bool,
}

impl Linear {
    /// residual + gate * (x Wᵀ + b), differentiable in residual and x. The gate of a row is `modulation[sample, index]`
    /// of `modulation` `[B, k, out]`; its gradient is added to the modulation's.
    pub fn gate_to(
        &self,
        tape: &Tape,
        residual: &Tensor,
        x: &Tensor,
        (modulation, index): (&Param, usize),
        rows: Rows,
    ) -> Result<Tensor> {
        self.gated(tape, [residual, x], Gate { modulation: modulation.clone(), index, rows }, false)
    }

    /// The same for a backward pass that does not read the output: it is zeros where the gate is frozen, as nothing of
    /// x Wᵀ is then needed.
    pub fn gate_to_unread(
        &self,
        tape: &Tape,
        residual: &Tensor,
        x: &Tensor,
        (modulation, index): (&Param, usize),
        rows: Rows,
    ) -> Result<Tensor> {
        let skipped = modulation.is_frozen();
        self.gated(tape, [residual, x], Gate { modulation: modulation.clone(), index, rows }, skipped)
    }

    fn gated(&self, tape: &Tape, [residual, x]: [&Tensor; 2], gate: Gate, skipped: bool) -> Result<Tensor> {
        let preactivation = SavedPreactivation::new(tape);
        tape.two(residual, x, Custom(WithGate { linear: self.clone(), gate, preactivation, skipped }))
    }
}

/// Adds the bias, keeps the sum beside, and adds it to the residual times the row's gate.
struct BiasGate<'a, T> {
    bias: &'a [T],
    residual: &'a [T],
    gate: &'a Gate,
    modulation: &'a [T],
}

impl<T: Real> Epilogue<T> for BiasGate<'_, T> {
    #[inline(always)]
    fn apply(&self, out: &mut [T], beside: &mut [T], row: usize, column: usize) {
        let width = self.bias.len();
        out.iter_mut().zip(&self.bias[column..]).for_each(|(o, &b)| *o += b);
        if !beside.is_empty() {
            beside.copy_from_slice(out);
        }
        let residual = &self.residual[row * width + column..];
        let gate = &self.gate.row(self.modulation, row, width)[column..];
        for ((o, &r), &g) in out.iter_mut().zip(residual).zip(gate) {
            *o = r + *o * g;
        }
    }
}

impl Op2 for WithGate {
    const NAME: &'static str = "linear, gate, residual";

    fn forward<T: Real>(&self, residual: &[T], x: &[T], dims: [&[usize]; 2]) -> Result<Vec<T>> {
        check_residual(&self.linear, dims)?;
        if self.skipped {
            return Ok(vec![T::zero(); residual.len()]);
        }
        let (bias, modulation) = (self.linear.bias::<T>()?, read::<T>(&self.gate.modulation.value)?);
        let epilogue = BiasGate { bias: &bias, residual, gate: &self.gate, modulation: &modulation };
        self.linear.product(x, dims[1], Some(&self.preactivation), &epilogue)
    }

    fn backward<T: Real>(&self, [_, x]: [&[T]; 2], dy: &[T], _: [&[usize]; 2]) -> Result<[Option<Vec<T>>; 2]> {
        let d_sums = match self.skipped {
            true => self.gate.scaled(dy)?,
            false => self.gate.backward(self.preactivation.get::<Vec<T>>()?, dy)?,
        };
        Ok([None, Some(self.linear.backward(x, &d_sums)?)])
    }

    super::on_gpu!(two);
}
