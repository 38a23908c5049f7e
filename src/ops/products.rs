//! Computes the three matrix products of a linear layer on slices: in f32 on the CPU's vector units with packed
//! operands, and in f64, which is for checks, through the `gemm` crate.

use half::bf16;
use std::borrow::Cow;
use std::sync::OnceLock;

use super::cast::to_f32;
use super::gemm;
use crate::simd::Isa;
#[cfg(feature = "media")]
use crate::simd::panel::right_words;
use crate::simd::panel::{Lines, Matrix, Panels, across, across_left, along};
use crate::simd::product::{Epilogue, add_product, product};
#[cfg(feature = "media")]
use crate::simd::with_isa;

/// A weight matrix `[out, inner]`, and the instruction set that multiplies it.
pub struct WeightMatrix<'a, T> {
    pub values: WeightValues<'a, T>,
    pub out: usize,
    pub inner: usize,
    pub isa: Isa,
    /// Round operands to bf16 (f32 only).
    pub bf16: bool,
    pub packed: &'a Packed,
}

/// A weight's elements as they are held.
#[derive(Clone, Copy)]
pub enum WeightValues<'a, T> {
    /// In the type that is computed in.
    Same(&'a [T]),
    /// In bf16: of frozen weights, which products in bf16 would round to that anyway.
    Bf16(&'a [bf16]),
}

impl<T: Clone> WeightValues<'_, T> {
    /// In the type that is computed in.
    fn all(&self, widen: impl Fn(&[bf16]) -> Vec<T>) -> Cow<'_, [T]> {
        match self {
            Self::Same(values) => Cow::Borrowed(values),
            Self::Bf16(values) => Cow::Owned(widen(values)),
        }
    }
}

/// As f64.
fn widened(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
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
#[cfg(feature = "media")]
pub(crate) fn packed_words(out: usize, inner: usize, bf16: bool) -> [usize; 2] {
    match bf16 {
        true => with_isa!(Isa::best(), true, S => [right_words::<S>(inner, out), right_words::<S>(out, inner)]),
        false => with_isa!(Isa::best(), false, S => [right_words::<S>(inner, out), right_words::<S>(out, inner)]),
    }
}

/// A number type that linear layers compute in.
pub trait Products: Sized {
    /// `epilogue(x Wᵀ)` for `x` `[n, inner]`, and the epilogue's second result, which is as large, or empty if it is
    /// not wanted.
    fn forward(
        w: &WeightMatrix<Self>,
        x: &[Self],
        n: usize,
        second: bool,
        epilogue: &impl Epilogue<Self>,
    ) -> [Vec<Self>; 2];

    /// `dy W` for `dy` `[n, out]`.
    fn input_gradient(w: &WeightMatrix<Self>, dy: &[Self], n: usize) -> Vec<Self>;

    /// `dw += dyᵀ x`.
    fn weight_gradient(w: &WeightMatrix<Self>, dy: &[Self], x: &[Self], dw: &mut [Self]);
}

/// Runs an expression with `$S` the layer's instruction set.
macro_rules! on_isa {
    ($w:expr, $S:ident => $body:expr) => {
        if $w.bf16 {
            $crate::simd::with_isa!($w.isa, true, $S => $body)
        } else {
            $crate::simd::with_isa!($w.isa, false, $S => $body)
        }
    };
}

pub(crate) use on_isa;

impl Products for f32 {
    fn forward(
        w: &WeightMatrix<f32>,
        x: &[f32],
        n: usize,
        second: bool,
        epilogue: &impl Epilogue<f32>,
    ) -> [Vec<f32>; 2] {
        on_isa!(w, S => {
            let right = w.packed.forward.get_or_init(|| along::<S>(Matrix::new(&w.values.all(to_f32), w.out, w.inner)));
            product::<S, _>(&Lines::new::<S>(Matrix::new(x, n, w.inner)), right, n, second, epilogue)
        })
    }

    fn input_gradient(w: &WeightMatrix<f32>, dy: &[f32], n: usize) -> Vec<f32> {
        on_isa!(w, S => {
            let right = w.packed.backward.get_or_init(|| across::<S>(Matrix::new(&w.values.all(to_f32), w.out, w.inner)));
            let [dx, _] = product::<S, _>(&Lines::new::<S>(Matrix::new(dy, n, w.out)), right, n, false, &());
            dx
        })
    }

    fn weight_gradient(w: &WeightMatrix<f32>, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        let n = dy.len() / w.out;
        on_isa!(w, S => {
            let left = || across_left::<S>(Matrix::new(dy, n, w.out));
            let right = || across::<S>(Matrix::new(x, n, w.inner));
            let (left, right) = rayon::join(left, right);
            add_product::<S>(&left, &right, dw);
        });
    }
}

impl Products for f64 {
    fn forward(
        w: &WeightMatrix<f64>,
        x: &[f64],
        n: usize,
        second: bool,
        epilogue: &impl Epilogue<f64>,
    ) -> [Vec<f64>; 2] {
        let values = w.values.all(widened);
        let (x, w_t) = (gemm::Matrix::new(x, n, w.inner), gemm::Matrix::new(&values, w.out, w.inner).t());
        let (mut y, mut beside) = (vec![0.0; n * w.out], vec![0.0; if second { n * w.out } else { 0 }]);
        gemm::gemm(&mut y, x, w_t, false);
        for (i, y) in y.chunks_exact_mut(w.out).enumerate() {
            let beside = if second { &mut beside[i * w.out..][..w.out] } else { &mut [][..] };
            epilogue.apply(y, beside, i, 0);
        }
        [y, beside]
    }

    fn input_gradient(w: &WeightMatrix<f64>, dy: &[f64], n: usize) -> Vec<f64> {
        let (mut dx, values) = (vec![0.0; n * w.inner], w.values.all(widened));
        gemm::gemm(&mut dx, gemm::Matrix::new(dy, n, w.out), gemm::Matrix::new(&values, w.out, w.inner), false);
        dx
    }

    fn weight_gradient(w: &WeightMatrix<f64>, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        let n = dy.len() / w.out;
        gemm::gemm(dw, gemm::Matrix::new(dy, n, w.out).t(), gemm::Matrix::new(x, n, w.inner), true);
    }
}
