//! The three matrix products of a linear layer on slices: in f32 on the CPU's vector units with packed operands, in f64, which is
//! for checks, through the `gemm` crate.

use std::sync::OnceLock;

use super::cpu::panel::{Lines, Matrix, Panels, across, across_left, along, right_words};
use super::cpu::product::{Operand, Tail, product};
use super::cpu::{Path, with_unit};
use super::gemm;

/// A weight matrix `[out, inner]`, and on what it is multiplied.
pub struct Weights<'a, T> {
    pub values: &'a [T],
    pub out: usize,
    pub inner: usize,
    pub path: Path,
    /// Round operands to bf16 (f32 only).
    pub bf16: bool,
    pub packed: &'a Packed,
}

/// A weight matrix packed for the two products it is in, each on its first use.
#[derive(Default)]
pub struct Packed {
    forward: OnceLock<Panels>,
    backward: OnceLock<Panels>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let made = [&self.forward, &self.backward].map(|panels| panels.get().is_some());
        f.debug_tuple("Packed").field(&made).finish()
    }
}

/// Words of a weight matrix `[out, inner]` packed for forward, and for backward.
pub(crate) fn packed_words(out: usize, inner: usize, bf16: bool) -> [usize; 2] {
    match bf16 {
        true => with_unit!(Path::best(), true, S => [right_words::<S>(inner, out), right_words::<S>(out, inner)]),
        false => with_unit!(Path::best(), false, S => [right_words::<S>(inner, out), right_words::<S>(out, inner)]),
    }
}

/// A number that linear layers compute in.
pub trait Products: Sized {
    /// `y = tail(x Wᵀ)` for `x` `[n, inner]`; `beside` is the tail's second result, as large as `y` or empty.
    fn forward(w: &Weights<Self>, x: &[Self], y: &mut [Self], beside: &mut [Self], tail: &impl Tail<Self>);

    /// `dx = dy W` for `dy` `[n, out]`.
    fn input_gradient(w: &Weights<Self>, dy: &[Self], dx: &mut [Self]);

    /// `dw += dyᵀ x`.
    fn weight_gradient(w: &Weights<Self>, dy: &[Self], x: &[Self], dw: &mut [Self]);
}

/// Runs an expression with `$S` the layer's unit.
macro_rules! on_unit {
    ($w:expr, $S:ident => $body:expr) => {
        if $w.bf16 { with_unit!($w.path, true, $S => $body) } else { with_unit!($w.path, false, $S => $body) }
    };
}

impl Products for f32 {
    fn forward(w: &Weights<f32>, x: &[f32], y: &mut [f32], beside: &mut [f32], tail: &impl Tail<f32>) {
        on_unit!(w, S => {
            let right = w.packed.forward.get_or_init(|| along::<S>(Matrix::new(w.values, w.out, w.inner)));
            let lines = Lines::new::<S>(Matrix::new(x, y.len() / w.out, w.inner));
            product::<S, _>(Operand::Lines(&lines), right, y, beside, false, tail);
        });
    }

    fn input_gradient(w: &Weights<f32>, dy: &[f32], dx: &mut [f32]) {
        on_unit!(w, S => {
            let right = w.packed.backward.get_or_init(|| across::<S>(Matrix::new(w.values, w.out, w.inner)));
            let lines = Lines::new::<S>(Matrix::new(dy, dx.len() / w.inner, w.out));
            product::<S, _>(Operand::Lines(&lines), right, dx, &mut [], false, &());
        });
    }

    fn weight_gradient(w: &Weights<f32>, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        let n = dy.len() / w.out;
        on_unit!(w, S => {
            let left = across_left::<S>(Matrix::new(dy, n, w.out));
            let right = across::<S>(Matrix::new(x, n, w.inner));
            product::<S, _>(Operand::Panels(&left), &right, dw, &mut [], true, &());
        });
    }
}

impl Products for f64 {
    fn forward(w: &Weights<f64>, x: &[f64], y: &mut [f64], beside: &mut [f64], tail: &impl Tail<f64>) {
        let (x, w_t) =
            (gemm::Matrix::new(x, y.len() / w.out, w.inner), gemm::Matrix::new(w.values, w.out, w.inner).t());
        gemm::gemm(y, x, w_t, false);
        for (i, y) in y.chunks_exact_mut(w.out).enumerate() {
            let beside = if beside.is_empty() { &mut [][..] } else { &mut beside[i * w.out..][..w.out] };
            tail.apply(y, beside, i, 0);
        }
    }

    fn input_gradient(w: &Weights<f64>, dy: &[f64], dx: &mut [f64]) {
        let n = dx.len() / w.inner;
        gemm::gemm(dx, gemm::Matrix::new(dy, n, w.out), gemm::Matrix::new(w.values, w.out, w.inner), false);
    }

    fn weight_gradient(w: &Weights<f64>, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        let n = dy.len() / w.out;
        gemm::gemm(dw, gemm::Matrix::new(dy, n, w.out).t(), gemm::Matrix::new(x, n, w.inner), true);
    }
}
