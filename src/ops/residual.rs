//! Computes the gate of a gated residual x + gate y, one row a sample, and its gradient; the op is
//! [`Linear::gate_to`](super::Linear::gate_to).

use candle_core::Result;
use rayon::prelude::*;

use super::custom::read;
use super::elementwise::CHUNK;
use super::{Param, Real, Rows};
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
