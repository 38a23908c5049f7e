//! Computes the three matrix products of a linear layer on slices: in f32 on the CPU's vector units with packed
//! operands, and in f64, which is for checks, through the `gemm` crate.

use half::bf16;
use std::borrow::Cow;
use std::sync::OnceLock;

use super::gemm;
use crate::simd::Isa;
use crate::simd::left::Lines;
#[cfg(feature = "media")]
use crate::simd::panel::right_words;
use crate::simd::panel::{Matrix, Panels, Source, across, across_left, along};
use crate::simd::product::{Epilogue, add_product, product};
use crate::simd::vector::Simd;
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

impl WeightMatrix<'_, f32> {
    fn source(&self) -> Source<'_> {
        match self.values {
            WeightValues::Same(values) => Matrix::new(values, self.out, self.inner).into(),
            WeightValues::Bf16(values) => Source::Bf16(values, [self.out, self.inner]),
        }
    }

    /// Its form for the forward product.
    fn forward_panels<S: Simd>(&self) -> &Panels {
        self.packed.forward.get_or_init(|| along::<S>(self.source()))
    }

    /// Its form for the gradient of the input.
    fn backward_panels<S: Simd>(&self) -> &Panels {
        self.packed.backward.get_or_init(|| across::<S>(self.source()))
    }
}

impl WeightMatrix<'_, f64> {
    fn wide_values(&self) -> Cow<'_, [f64]> {
        match self.values {
            WeightValues::Same(values) => Cow::Borrowed(values),
            WeightValues::Bf16(values) => Cow::Owned(values.iter().map(|value| value.to_f64()).collect()),
        }
    }
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

/// An addend of a product: another one, of these weights and this left operand.
pub type Addend<'a, T> = Option<(&'a WeightMatrix<'a, T>, &'a [T])>;

/// A number type that linear layers compute in.
pub trait Products: Sized {
    /// `epilogue(x Wᵀ + addend)` for `x` `[n, inner]`, and the epilogue's second result, which is as large, or empty if
    /// it is not wanted.
    fn forward(
        w: &WeightMatrix<Self>,
        x: &[Self],
        n: usize,
        addend: Addend<Self>,
        second: bool,
        epilogue: &impl Epilogue<Self>,
    ) -> [Vec<Self>; 2];

    /// `dy W + addend` for `dy` `[n, out]`.
    fn input_gradient(w: &WeightMatrix<Self>, dy: &[Self], n: usize, addend: Addend<Self>) -> Vec<Self>;

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
        addend: Addend<f32>,
        second: bool,
        epilogue: &impl Epilogue<f32>,
    ) -> [Vec<f32>; 2] {
        on_isa!(w, S => {
            let factors = std::iter::once((w, x)).chain(addend);
            let terms: Vec<_> = factors
                .map(|(w, x)| (Lines(Matrix::new(x, n, w.inner)), w.forward_panels::<S>()))
                .collect();
            product::<S, _>(&terms, n, second, epilogue)
        })
    }

    fn input_gradient(w: &WeightMatrix<f32>, dy: &[f32], n: usize, addend: Addend<f32>) -> Vec<f32> {
        on_isa!(w, S => {
            let factors = std::iter::once((w, dy)).chain(addend);
            let terms: Vec<_> = factors
                .map(|(w, dy)| (Lines(Matrix::new(dy, n, w.out)), w.backward_panels::<S>()))
                .collect();
            let [dx, _] = product::<S, _>(&terms, n, false, &());
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
        addend: Addend<f64>,
        second: bool,
        epilogue: &impl Epilogue<f64>,
    ) -> [Vec<f64>; 2] {
        let (mut y, mut beside) = (vec![0.0; n * w.out], vec![0.0; if second { n * w.out } else { 0 }]);
        for (i, (w, x)) in std::iter::once((w, x)).chain(addend).enumerate() {
            let values = w.wide_values();
            let (x, w_t) = (gemm::Matrix::new(x, n, w.inner), gemm::Matrix::new(&values, w.out, w.inner).t());
            gemm::gemm(&mut y, x, w_t, i > 0);
        }
        for (i, y) in y.chunks_exact_mut(w.out).enumerate() {
            let beside = if second { &mut beside[i * w.out..][..w.out] } else { &mut [][..] };
            epilogue.apply(y, beside, i, 0);
        }
        [y, beside]
    }

    fn input_gradient(w: &WeightMatrix<f64>, dy: &[f64], n: usize, addend: Addend<f64>) -> Vec<f64> {
        let mut dx = vec![0.0; n * w.inner];
        for (i, (w, dy)) in std::iter::once((w, dy)).chain(addend).enumerate() {
            let values = w.wide_values();
            gemm::gemm(&mut dx, gemm::Matrix::new(dy, n, w.out), gemm::Matrix::new(&values, w.out, w.inner), i > 0);
        }
        dx
    }

    fn weight_gradient(w: &WeightMatrix<f64>, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        let n = dy.len() / w.out;
        gemm::gemm(dw, gemm::Matrix::new(dy, n, w.out).t(), gemm::Matrix::new(x, n, w.inner), true);
    }
}
