//! Adds an adapter's low-rank product to a linear layer before its epilogue, y = x Wᵀ + s (x Aᵀ) Bᵀ (LoRA, arXiv
//! 2106.09685), and the gradients of A and B in place.
//!
//! x Aᵀ has r elements a row, and backward computes it again. Both products are computed as the layer's own are.

use candle_core::Result;
use std::borrow::Cow;
use std::sync::Arc;

use super::dropout::{Drawn, Dropout, Input};
use super::packed::{Arithmetic, PackedSlot};
use super::products::Packed;
use super::{Linear, Param, Real, Rows, write};
use crate::simd::product::Epilogue;

/// The low-rank addend of a linear layer.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A `[r, in]`.
    pub a: Param,
    /// B `[out, r]`.
    pub b: Param,
    /// s, alpha / r.
    pub scale: f64,
    packed: [PackedSlot; 2],
    /// What drops elements of x in training, and the layer that it draws for.
    dropout: Option<(Arc<Dropout>, u64)>,
    /// Whose rows x has, where that matters.
    input: Option<Input>,
}

impl LowRank {
    /// s B A, for A `[r, in]` and B `[out, r]`.
    pub fn new(a: Param, b: Param, scale: f64) -> Self {
        Self { a, b, scale, packed: Default::default(), dropout: None, input: None }
    }

    /// The same, whose inputs have elements dropped, drawn for a layer of this number.
    pub fn dropping(self, dropout: Option<(Arc<Dropout>, u64)>) -> Self {
        Self { dropout, ..self }
    }

    /// The same for an input of these rows; None if it does not matter whose rows they are.
    pub(super) fn at(&self, input: Input) -> Option<Self> {
        self.dropout.as_ref().map(|_| Self { input: Some(input), ..self.clone() })
    }

    /// x with elements dropped; None if none are.
    pub(super) fn dropped<T: Real>(&self, x: &[T], width: usize) -> Option<Vec<T>> {
        Some(self.drawn(x.len() / width)?.apply(x, width))
    }

    /// What elements of `n` rows of x are drawn by; None if none are dropped.
    pub(super) fn drawn(&self, n: usize) -> Option<Drawn> {
        let (dropout, layer) = self.dropout.as_ref()?;
        dropout.drawn(*layer, n, self.input?)
    }

    /// Both matrices, packed.
    pub(super) fn packed(&self) -> [Arc<Packed>; 2] {
        self.packed.each_ref().map(PackedSlot::get)
    }

    /// The same with packed forms of its own.
    pub(super) fn unpacked(self) -> Self {
        Self { packed: Default::default(), ..self }
    }

    /// Features of x.
    fn width(&self) -> Result<usize> {
        Ok(self.a.value.dims2()?.1)
    }

    /// s x Aᵀ `[n, r]`.
    fn inner<T: Real>(&self, how: Arithmetic, x: &[T], n: usize) -> Result<Vec<T>> {
        let [mut inner, _] = self.packed[0].with(&self.a, how, |a| Ok(T::forward(a, x, n, false, &())))?;
        let scale = T::of(self.scale);
        inner.iter_mut().for_each(|value| *value *= scale);
        Ok(inner)
    }

    /// s x Aᵀ Bᵀ `[n, out]`.
    pub(super) fn forward<T: Real>(&self, how: Arithmetic, x: &[T], n: usize) -> Result<Vec<T>> {
        let dropped = self.dropped(x, self.width()?);
        let inner = self.inner(how, dropped.as_deref().unwrap_or(x), n)?;
        let [addend, _] = self.packed[1].with(&self.b, how, |b| Ok(T::forward(b, &inner, n, false, &())))?;
        Ok(addend)
    }

    /// Adds the gradients of A and B, given that of y; returns its share of x's.
    pub(super) fn backward<T: Real>(&self, how: Arithmetic, x: &[T], dy: &[T], n: usize) -> Result<Vec<T>> {
        let width = self.width()?;
        let dropped = self.dropped(x, width);
        let kept = dropped.as_deref().unwrap_or(x);
        let inner = self.inner(how, kept, n)?;
        let scale = T::of(self.scale);
        let mut d_inner = self.packed[1].with(&self.b, how, |b| {
            // One after the other, as the gradients may be of one storage.
            if let Some(grad) = &self.b.grad {
                write(grad, |db: &mut [T]| T::weight_gradient(b, dy, &inner, db))?;
            }
            Ok(T::input_gradient(b, dy, n))
        })?;
        d_inner.iter_mut().for_each(|value| *value *= scale);
        let dx = self.packed[0].with(&self.a, how, |a| {
            if let Some(grad) = &self.a.grad {
                write(grad, |da: &mut [T]| T::weight_gradient(a, &d_inner, kept, da))?;
            }
            Ok(T::input_gradient(a, &d_inner, n))
        })?;
        drop(dropped);
        Ok(self.dropped(&dx, width).unwrap_or(dx))
    }
}

/// Adds `addend` `[n, width]`, which is empty if there is none, to the sums before `epilogue`.
pub(super) struct Adding<'a, T, E> {
    pub addend: &'a [T],
    pub width: usize,
    pub epilogue: &'a E,
}

impl<T: Real, E: Epilogue<T>> Epilogue<T> for Adding<'_, T, E> {
    #[inline(always)]
    fn apply(&self, out: &mut [T], beside: &mut [T], row: usize, column: usize) {
        if !self.addend.is_empty() {
            let addend = &self.addend[row * self.width + column..];
            out.iter_mut().zip(addend).for_each(|(o, &a)| *o += a);
        }
        self.epilogue.apply(out, beside, row, column);
    }
}

impl Linear {
    /// The same layer with an adapter: x Wᵀ + s x Aᵀ Bᵀ stands for x Wᵀ everywhere.
    pub fn adapted(self, low_rank: Option<LowRank>) -> Self {
        Self { low_rank, ..self }
    }

    /// The layer for an input of these rows, which an adapter's dropout draws by: this rank's tokens of clips if
    /// `sharded`, or else what all ranks have.
    pub fn at(&self, rows: Rows, sharded: bool) -> Cow<'_, Self> {
        match self.low_rank.as_ref().and_then(|low_rank| low_rank.at(Input { rows, sharded })) {
            Some(low_rank) => Cow::Owned(self.clone().adapted(Some(low_rank))),
            None => Cow::Borrowed(self),
        }
    }
}
