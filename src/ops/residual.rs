//! The gated residual x + gate y, with one gate row a sample.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::custom::{Custom, Op2, read};
use super::elementwise::CHUNK;
use super::{Param, Real, Rows};

/// x + y * gate, `[n, D]`, where the gate of a row is `modulation[sample, index]` of `modulation` `[B, k, D]`. Differentiable
/// in x and y; the gate's gradient is added to the modulation's.
pub fn gate_residual(x: &Tensor, y: &Tensor, modulation: &Param, index: usize, rows: Rows) -> Result<Tensor> {
    x.apply_op2(y, Custom(Gate { modulation: modulation.clone(), index, rows }))
}

struct Gate {
    modulation: Param,
    index: usize,
    rows: Rows,
}

impl Gate {
    /// Where the sample's gate starts in the modulation.
    fn offset(&self, sample: usize, width: usize) -> usize {
        (sample * self.modulation.value.dims()[1] + self.index) * width
    }
}

impl Op2 for Gate {
    const NAME: &'static str = "gate_residual";

    fn forward<T: Real>(&self, x: &[T], y: &[T], dims: &[usize]) -> Result<Vec<T>> {
        let width = dims[1];
        let m = read::<T>(&self.modulation.value)?;
        let m: &[T] = &m;
        let mut out = x.to_vec();
        out.par_chunks_mut(width).zip(y.par_chunks(width)).enumerate().for_each(|(i, (out, y))| {
            let gate = &m[self.offset((self.rows.start + i) / self.rows.tokens, width)..][..width];
            for ((out, &y), &g) in out.iter_mut().zip(y).zip(gate) {
                *out += y * g;
            }
        });
        Ok(out)
    }

    fn backward<T: Real>(&self, _: &[T], y: &[T], dout: &[T], dims: &[usize]) -> Result<(Vec<T>, Vec<T>)> {
        let (n, width) = (dims[0], dims[1]);
        let m = read::<T>(&self.modulation.value)?;
        let m: &[T] = &m;
        let mut dy = vec![T::zero(); y.len()];
        dy.par_chunks_mut(width).zip(dout.par_chunks(width)).enumerate().for_each(|(i, (dy, dout))| {
            let gate = &m[self.offset((self.rows.start + i) / self.rows.tokens, width)..][..width];
            for ((dy, &dout), &g) in dy.iter_mut().zip(dout).zip(gate) {
                *dy = dout * g;
            }
        });
        let parts: Vec<(usize, Vec<T>)> = self
            .rows
            .runs(n, CHUNK)
            .into_par_iter()
            .map(|(sample, first, count)| {
                let mut sum = vec![T::zero(); width];
                let run = first * width..(first + count) * width;
                for (y, dout) in y[run.clone()].chunks_exact(width).zip(dout[run].chunks_exact(width)) {
                    for ((s, &y), &d) in sum.iter_mut().zip(y).zip(dout) {
                        *s += y * d;
                    }
                }
                (sample, sum)
            })
            .collect();
        for (sample, sum) in parts {
            self.modulation.add_grad(self.offset(sample, width), &sum)?;
        }
        Ok((dout.to_vec(), dy))
    }
}
