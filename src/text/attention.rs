//! Attention of short texts, each alone: all of its tokens look at all, with biases by distance where there are some.

use rayon::prelude::*;

use super::buckets::Biases;
use crate::ops::products::{Packed, Products, WeightMatrix, WeightValues};
use crate::ops::softmax;
use crate::simd::Isa;
use crate::simd::product::Epilogue;
use crate::simd::uninit_vec::UninitVec;

/// The heads of an attention, and what becomes of their scores before softmax.
pub(super) struct Heads<'a> {
    pub count: usize,
    /// Features of a head.
    pub dim: usize,
    pub scale: f32,
    pub biases: Option<&'a Biases>,
    pub isa: Isa,
}

impl Heads<'_> {
    /// `softmax(scale q kᵀ + bias) v` of each text: `q`, `k` and `v` are rows `[heads, dim]` of texts of `lengths`
    /// tokens one after the other. Products are of f32.
    pub fn attend(&self, [q, k, v]: [&[f32]; 3], lengths: &[usize]) -> Vec<f32> {
        let Self { count, dim, .. } = *self;
        let row = count * dim;
        let mut out = UninitVec::new(q.len());
        let texts: Vec<_> = out.chunks_of(lengths.iter().map(|n| n * row)).into_iter().zip(lengths).collect();
        let starts = lengths.iter().scan(0, |next, n| Some(std::mem::replace(next, *next + n)));
        texts.into_par_iter().zip(starts.collect::<Vec<_>>()).for_each(|((out, &n), start)| {
            let of_head = |x: &[f32], head: usize| {
                let mut values = Vec::with_capacity(n * dim);
                for x in x[start * row..(start + n) * row].chunks_exact(row) {
                    values.extend_from_slice(&x[head * dim..][..dim]);
                }
                values
            };
            let attend = |head| self.one_head(head, [q, k, v].map(|x| of_head(x, head)), n);
            let heads: Vec<Vec<f32>> = (0..count).into_par_iter().map(attend).collect();
            for (i, out) in out.filled(0.0).chunks_exact_mut(row).enumerate() {
                for (out, head) in out.chunks_exact_mut(dim).zip(&heads) {
                    out.copy_from_slice(&head[i * dim..][..dim]);
                }
            }
        });
        out.into_vec()
    }

    /// Of one head, `[n, dim]` each.
    fn one_head(&self, head: usize, [q, k, v]: [Vec<f32>; 3], n: usize) -> Vec<f32> {
        let Self { dim, scale, biases, isa, .. } = *self;
        let packed = [Packed::default(), Packed::default()];
        let matrix = |values, packed| {
            let values = WeightValues::Same(values);
            WeightMatrix { values, out: n, inner: dim, isa, bf16: false, packed }
        };
        let scored = Scored { scale, biases: biases.map(|biases| (biases, head)) };
        let [mut scores, _] = f32::forward(&matrix(&k, &packed[0]), &q, n, None, false, &scored);
        scores.chunks_exact_mut(n).for_each(softmax);
        f32::input_gradient(&matrix(&v, &packed[1]), &scores, n, None)
    }
}

/// Scales scores and adds a head's biases.
struct Scored<'a> {
    scale: f32,
    biases: Option<(&'a Biases, usize)>,
}

impl Epilogue<f32> for Scored<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], row: usize, column: usize) {
        match self.biases {
            Some((biases, head)) => {
                let biases = biases.row(head, row, column);
                out.iter_mut().zip(biases).for_each(|(x, bias)| *x = *x * self.scale + bias);
            }
            None => out.iter_mut().for_each(|x| *x *= self.scale),
        }
    }
}
