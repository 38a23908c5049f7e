//! Attention of short texts, each alone: all of its tokens look at all, with biases by distance where there are some.

use rayon::prelude::*;

use super::buckets::Biases;
use crate::ops::products::{Packed, Products, WeightMatrix, WeightValues};
use crate::ops::softmax;
use crate::simd::Isa;
use crate::simd::product::Epilogue;

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
        let starts = lengths.iter().scan(0, |next, &n| {
            let start = *next;
            *next += n;
            Some((start, n))
        });
        let tasks: Vec<_> = starts.flat_map(|text| (0..count).map(move |head| (text, head))).collect();
        let outputs: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&((start, n), head)| {
                let of_head = |x: &[f32]| -> Vec<f32> {
                    x[start * row..(start + n) * row]
                        .chunks_exact(row)
                        .flat_map(|x| &x[head * dim..][..dim])
                        .copied()
                        .collect()
                };
                self.one_head(head, [of_head(q), of_head(k), of_head(v)], n)
            })
            .collect();
        let mut out = vec![0.0; q.len()];
        for (((start, n), head), output) in tasks.into_iter().zip(outputs) {
            let rows = out[start * row..(start + n) * row].chunks_exact_mut(row);
            rows.zip(output.chunks_exact(dim)).for_each(|(row, o)| row[head * dim..][..dim].copy_from_slice(o));
        }
        out
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
