//! Adds an adapter's low-rank product to a linear layer before its epilogue, y = x Wᵀ + s (x Aᵀ) Bᵀ (LoRA, arXiv
//! 2106.09685), and the gradients of A and B in place.
//!
//! x Aᵀ has r elements a row, and backward computes it again. Times Bᵀ it is a second term of the layer's own product,
//! so that no addend as large as y lies in memory; the share of x's gradient is one of dy W.

use candle_core::Result;
use std::borrow::Cow;
use std::sync::Arc;

use super::dropout::{Drawn, Dropout, Input};
use super::elementwise::add_into;
use super::packed::{Arithmetic, PackedSlot};
use super::products::{Addend, Packed, WeightMatrix};
use super::{Linear, Param, Real, Rows, write};

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

    /// s x Aᵀ `[n, r]`, elements of x being dropped if there is dropout: what is multiplied by Bᵀ.
    pub(super) fn inner<T: Real>(&self, how: Arithmetic, x: &[T], n: usize) -> Result<Vec<T>> {
        let dropped = self.dropped(x, self.width()?);
        self.inner_of(how, dropped.as_deref().unwrap_or(x), n)
    }

    fn inner_of<T: Real>(&self, how: Arithmetic, kept: &[T], n: usize) -> Result<Vec<T>> {
        let [mut inner, _] = self.packed[0].with(&self.a, how, |a| Ok(T::forward(a, kept, n, None, false, &())))?;
        self.rescale(&mut inner);
        Ok(inner)
    }

    /// Calls `f` with B and the [inner](Self::inner) rows: the addend of x Wᵀ.
    pub(super) fn with_addend<T: Real, R>(
        &self,
        how: Arithmetic,
        inner: &[T],
        f: impl FnOnce(Addend<T>) -> Result<R>,
    ) -> Result<R> {
        self.packed[1].with(&self.b, how, |b| f(Some((b, inner))))
    }

    /// The gradient s dy B `[n, r]` of x Aᵀ.
    pub(super) fn d_inner<T: Real>(&self, how: Arithmetic, dy: &[T], n: usize) -> Result<Vec<T>> {
        let mut d_inner = self.packed[1].with(&self.b, how, |b| Ok(T::input_gradient(b, dy, n, None)))?;
        self.rescale(&mut d_inner);
        Ok(d_inner)
    }

    /// Calls `f` with A and that gradient: the addend of dy W; with none if dropout comes between, and then adds the
    /// adapter's share to what `f` returns.
    pub(super) fn with_share<T: Real>(
        &self,
        how: Arithmetic,
        d_inner: &[T],
        n: usize,
        f: impl FnOnce(Addend<T>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        self.packed[0].with(&self.a, how, |a| match self.drawn(n) {
            None => f(Some((a, d_inner))),
            Some(drawn) => {
                let share = drawn.apply(&T::input_gradient(a, d_inner, n, None), self.width()?);
                let mut dx = f(None)?;
                add_into(&mut dx, &share);
                Ok(dx)
            }
        })
    }

    /// Adds the gradients of A and B, given that of y and that of x Aᵀ.
    pub(super) fn add_grads<T: Real>(&self, how: Arithmetic, x: &[T], dy: &[T], d_inner: &[T], n: usize) -> Result<()> {
        let dropped = self.dropped(x, self.width()?);
        let kept = dropped.as_deref().unwrap_or(x);
        // One after the other, as the gradients may be of one storage.
        if let Some(grad) = &self.b.grad {
            let inner = self.inner_of(how, kept, n)?;
            let add = |b: &WeightMatrix<T>| write(grad, |db: &mut [T]| T::weight_gradient(b, dy, &inner, db));
            self.packed[1].with(&self.b, how, add)?;
        }
        if let Some(grad) = &self.a.grad {
            let add = |a: &WeightMatrix<T>| write(grad, |da: &mut [T]| T::weight_gradient(a, d_inner, kept, da));
            self.packed[0].with(&self.a, how, add)?;
        }
        Ok(())
    }

    fn rescale<T: Real>(&self, rows: &mut [T]) {
        let scale = T::of(self.scale);
        rows.iter_mut().for_each(|value| *value *= scale);
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
