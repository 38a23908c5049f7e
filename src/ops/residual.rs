//! The gate of a gated residual x + gate y, with one row a sample; the op is [`Linear::gate_to`](super::Linear::gate_to).

use candle_core::Result;
use rayon::prelude::*;

use super::custom::read;
use super::elementwise::CHUNK;
use super::{Param, Real, Rows};

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

    /// The gradient of y, given y and that of x + gate y; the gate's is added to the modulation's.
    pub fn backward<T: Real>(&self, y: &[T], dout: &[T]) -> Result<Vec<T>> {
        let width = self.modulation.value.dims()[2];
        let parts: Vec<(usize, Vec<T>)>;
        let mut dy = vec![T::zero(); y.len()];
        {
            let m = read::<T>(&self.modulation.value)?;
            let m: &[T] = &m;
            let mut left = &mut dy[..];
            let mut runs = vec![];
            for (sample, first, count) in self.rows.runs(y.len() / width, CHUNK) {
                let (run, rest) = left.split_at_mut(count * width);
                runs.push((sample, first, run));
                left = rest;
            }
            parts = runs
                .into_par_iter()
                .map(|(sample, first, dy)| {
                    let gate = &m[self.offset(sample, width)..][..width];
                    let run = first * width..first * width + dy.len();
                    let mut sum = vec![T::zero(); width];
                    let rows = y[run.clone()].chunks_exact(width).zip(dout[run].chunks_exact(width));
                    for (dy, (y, dout)) in dy.chunks_exact_mut(width).zip(rows) {
                        for ((((dy, s), &y), &d), &g) in dy.iter_mut().zip(&mut sum).zip(y).zip(dout).zip(gate) {
                            *dy = d * g;
                            *s += y * d;
                        }
                    }
                    (sample, sum)
                })
                .collect();
        }
        for (sample, sum) in parts {
            self.modulation.add_grad(self.offset(sample, width), &sum)?;
        }
        Ok(dy)
    }
}
