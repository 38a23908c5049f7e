//! Rotary position embedding over the three axes of a clip (Su et al., arXiv 2104.09864; axes split as in Wan).
//!
//! Pairs of neighbouring features (2i, 2i + 1) of each head are turned by an angle that depends on the token's position. Of the
//! d / 2 pairs of a head the first belong to time, then height, then width: height and width have 2 (d / 6) features each, time
//! the rest. Angles are position * theta^(-2i / axis features), computed in f64.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use super::custom::{Custom, Op1};
use super::{Real, Rows};

/// Cosines and sines for every position of each axis of a grid, and the token range of this rank.
#[derive(Clone, Debug)]
pub struct Rope {
    /// For each axis, for each position: (cos, sin) of the axis' pairs.
    axes: Arc<[Vec<Vec<(f64, f64)>>; 3]>,
    /// Tokens along time, height and width.
    grid: [usize; 3],
    /// The clip's token that is this rank's first.
    first: usize,
    /// Features of a head.
    d: usize,
}

impl Rope {
    /// Angles for a `grid` (time, height, width) of tokens, of which this rank's first is token `first`, and heads of `d`
    /// features. `d` is even.
    pub fn new(grid: [usize; 3], first: usize, d: usize, theta: f64) -> Self {
        let side = 2 * (d / 6);
        let features = [d - 2 * side, side, side];
        let axis = |axis: usize| -> Vec<Vec<(f64, f64)>> {
            let angle =
                |position: usize, i: usize| position as f64 * theta.powf(-2.0 * i as f64 / features[axis] as f64);
            let pairs =
                |position| (0..features[axis] / 2).map(|i| angle(position, i)).map(|a| (a.cos(), a.sin())).collect();
            (0..grid[axis]).map(pairs).collect()
        };
        Self { axes: Arc::new([axis(0), axis(1), axis(2)]), grid, first, d }
    }

    /// (cos, sin) of every pair of a head, for this rank's token `local`.
    fn pairs<T: Real>(&self, local: usize, out: &mut Vec<(T, T)>) {
        let token = self.first + local;
        let [_, height, width] = self.grid;
        let position = [token / (height * width), token / width % height, token % width];
        out.clear();
        for (axis, at) in self.axes.iter().zip(position) {
            out.extend(axis[at].iter().map(|&(c, s)| (T::of(c), T::of(s))));
        }
    }

    /// Turns every head of every row of `x` `[n, heads * d]`; by the negative angle if `back`.
    fn turn<T: Real>(&self, x: &[T], width: usize, rows: Rows, back: bool) -> Vec<T> {
        let mut y = x.to_vec();
        y.par_chunks_mut(width).enumerate().for_each_init(Vec::new, |pairs, (i, row)| {
            self.pairs::<T>((rows.start + i) % rows.tokens, pairs);
            for head in row.chunks_exact_mut(self.d) {
                for (x, &(cos, sin)) in head.chunks_exact_mut(2).zip(pairs.iter()) {
                    let sin = if back { -sin } else { sin };
                    (x[0], x[1]) = (x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos);
                }
            }
        });
        y
    }
}

/// Turns the heads of `x` `[n, H * d]` by their rows' positions. Differentiable: the gradient is turned back.
pub fn rope(x: &Tensor, rope: &Rope, rows: Rows) -> Result<Tensor> {
    x.apply_op1(Custom(Turn { rope: rope.clone(), rows }))
}

struct Turn {
    rope: Rope,
    rows: Rows,
}

impl Op1 for Turn {
    const NAME: &'static str = "rope";

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        Ok(self.rope.turn(x, dims[1], self.rows, false))
    }

    fn backward<T: Real>(&self, _: &[T], _: &[T], dy: &[T], dims: &[usize]) -> Result<Vec<T>> {
        Ok(self.rope.turn(dy, dims[1], self.rows, true))
    }
}
