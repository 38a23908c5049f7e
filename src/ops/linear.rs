//! The linear layer computes y = x Wᵀ + b with a fused epilogue (GELU, a residual, a gated residual), and adds its
//! weight gradients in place.
//!
//! With bf16 compute both operands of each of the three products are rounded to bf16 and summed in f32, as a
//! dot-product unit does; activations and gradients stay f32. While a layer is [pinned](Linear::pin_packed), its
//! weights are packed once for all tiles.

use candle_core::{DType, Result, Tensor};
use std::sync::OnceLock;

use super::custom::{Custom, Op1, Op2, Values, read, write};
use super::elementwise::sum_columns;
use super::gelu::{gelu, gelu_backward};
use super::low_rank::LowRank;
use super::packed::{Arithmetic, PackedGuard, PackedSlot};
use super::products::{Addend, WeightMatrix};
use super::{Param, Real, Tape};
use crate::simd::product::Epilogue;

/// A linear layer over weights `[out, in]` and bias `[out]`, which may have an adapter.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Param,
    /// What is added to x Wᵀ.
    pub(super) low_rank: Option<LowRank>,
    pub(super) how: Arithmetic,
    pub(super) packed: PackedSlot,
}

impl Linear {
    /// A layer over `weight` `[out, in]` and `bias` `[out]`, rounding operands to bf16 if `bf16` (f32 data only).
    pub fn new(weight: Param, bias: Param, bf16: bool) -> Self {
        Self { weight, bias, low_rank: None, how: Arithmetic::best(bf16), packed: PackedSlot::default() }
    }

    /// Keeps the weights packed, for all clones of this layer, until the guard is dropped. They must not change
    /// meanwhile.
    pub fn pin_packed(&self) -> PackedGuard {
        let adapter = self.low_rank.iter().flat_map(LowRank::packed);
        PackedGuard(std::iter::once(self.packed.get()).chain(adapter).collect())
    }

    /// x Wᵀ + b: `[n, in]` to `[n, out]`, differentiable in x.
    pub fn forward(&self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        tape.one(x, Custom(Plain(self.clone())))
    }

    /// gelu(x Wᵀ + b), differentiable in x.
    pub fn gelu(&self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        tape.one(x, Custom(WithGelu { linear: self.clone(), preactivation: SavedPreactivation::new(tape) }))
    }

    /// residual + x Wᵀ + b, differentiable in both.
    pub fn add_to(&self, tape: &Tape, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        tape.two(residual, x, Custom(WithResidual(self.clone())))
    }

    /// Adds the weight and bias gradients for input `x` `[n, in]` and output gradient `dy` `[n, out]`, for where the
    /// input's own gradient is not wanted.
    pub fn accumulate(&self, x: &Tensor, dy: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let lent = [x, dy].map(crate::cuda::Lent::new);
            return self.accumulate_on_gpu(lent[0].array("linear")?, lent[1].array("linear")?);
        }
        match x.dtype() {
            DType::F64 => self.add_grads::<f64>(&read(x)?, &read(dy)?),
            _ => self.add_grads::<f32>(&read(x)?, &read(dy)?),
        }
    }

    /// (out, in)
    fn dims(&self) -> Result<(usize, usize)> {
        self.weight.value.dims2()
    }

    /// Calls `f` with the weights as the products want them.
    fn with_weights<T: Real, R>(&self, f: impl FnOnce(&WeightMatrix<T>) -> Result<R>) -> Result<R> {
        self.packed.with(&self.weight, self.how, f)
    }

    /// epilogue(x Wᵀ) for `x` of shape `dims`, the adapter's addend included; its second result, the preactivation,
    /// goes to `saved` if backward needs it.
    pub(super) fn product<T: Real>(
        &self,
        x: &[T],
        dims: &[usize],
        saved: Option<&SavedPreactivation>,
        epilogue: &impl Epilogue<T>,
    ) -> Result<Vec<T>> {
        let (_, inner) = self.dims()?;
        if dims != [dims[0], inner] {
            candle_core::bail!("{}: input [n, {inner}] wanted, got {dims:?}", self.weight.name)
        }
        let rows = dims[0];
        let multiply = |addend: Addend<T>| {
            self.with_weights(|w| {
                let saved = saved.filter(|saved| saved.wanted());
                let [y, sums] = T::forward(w, x, rows, addend, saved.is_some(), epilogue);
                if let Some(saved) = saved {
                    saved.save(sums);
                }
                Ok(y)
            })
        };
        match &self.low_rank {
            None => multiply(None),
            Some(low_rank) => low_rank.with_addend(self.how, &low_rank.inner(self.how, x, rows)?, multiply),
        }
    }

    /// Adds the gradients of weight and bias, unless they are frozen, and of the adapter; returns that of `x`.
    pub(super) fn backward<T: Real>(&self, x: &[T], dy: &[T]) -> Result<Vec<T>> {
        let (_, inner) = self.dims()?;
        let n = x.len() / inner;
        let d_inner = self.low_rank.as_ref().map(|low_rank| low_rank.d_inner(self.how, dy, n)).transpose()?;
        let adapter = self.low_rank.as_ref().zip(d_inner.as_deref());
        // At once, so that no thread waits for another between them. Neither locks what the other changes: one reads
        // the weights, and may pack them, the other reads them and adds to the storage of gradients.
        let gradient = || {
            let multiply = |addend: Addend<T>| self.with_weights(|w| Ok(T::input_gradient(w, dy, n, addend)));
            match adapter {
                None => multiply(None),
                Some((low_rank, d_inner)) => low_rank.with_share(self.how, d_inner, n, multiply),
            }
        };
        let others = || {
            self.add_grads(x, dy)?;
            match adapter {
                None => Ok(()),
                Some((low_rank, d_inner)) => low_rank.add_grads(self.how, x, dy, d_inner, n),
            }
        };
        let (dx, others) = rayon::join(gradient, others);
        others?;
        dx
    }

    fn add_grads<T: Real>(&self, x: &[T], dy: &[T]) -> Result<()> {
        let Some(grad) = &self.weight.grad else { return Ok(()) };
        let (out, _) = self.dims()?;
        let weight = || self.with_weights(|w| write(grad, |dw: &mut [T]| T::weight_gradient(w, dy, x, dw)));
        let (sums, added) = rayon::join(|| sum_columns(dy, out), weight);
        added?;
        self.bias.add_grad(0, &sums) // when no thread holds the weight's gradient, which may be of the same storage
    }

    pub(super) fn bias<T: Real>(&self) -> Result<Values<'_, T>> {
        read(&self.bias.value)
    }
}

/// The preactivation x Wᵀ + b, saved by forward for backward if a tape records.
pub(super) struct SavedPreactivation(Option<OnceLock<Box<dyn std::any::Any + Send + Sync>>>);

impl SavedPreactivation {
    pub fn new(tape: &Tape) -> Self {
        Self(tape.records().then(OnceLock::new))
    }

    fn wanted(&self) -> bool {
        self.0.is_some()
    }

    pub fn save(&self, sums: impl std::any::Any + Send + Sync) {
        if let Some(slot) = &self.0 {
            let _ = slot.set(Box::new(sums)); // an op runs forward once
        }
    }

    /// What was saved: `Vec<T>`, or elements on a GPU.
    pub fn get<S: 'static>(&self) -> Result<&S> {
        let sums = self.0.as_ref().and_then(OnceLock::get).and_then(|sums| sums.downcast_ref::<S>());
        match sums {
            Some(sums) => Ok(sums),
            None => candle_core::bail!("linear: backward without a recorded forward"),
        }
    }
}

pub(super) struct Plain(pub Linear);
pub(super) struct WithGelu {
    pub linear: Linear,
    pub preactivation: SavedPreactivation,
}
pub(super) struct WithResidual(pub Linear);
/// Adds the bias.
struct Bias<'a, T>(&'a [T]);

impl<T: Real> Epilogue<T> for Bias<'_, T> {
    #[inline(always)]
    fn apply(&self, out: &mut [T], _: &mut [T], _: usize, column: usize) {
        out.iter_mut().zip(&self.0[column..]).for_each(|(o, &b)| *o += b);
    }
}

/// Adds the bias, keeps the sum beside and takes its GELU.
struct BiasGelu<'a, T>(&'a [T]);

impl<T: Real> Epilogue<T> for BiasGelu<'_, T> {
    #[inline(always)]
    fn apply(&self, out: &mut [T], beside: &mut [T], _: usize, column: usize) {
        out.iter_mut().zip(&self.0[column..]).for_each(|(o, &b)| *o += b);
        if !beside.is_empty() {
            beside.copy_from_slice(out);
        }
        out.iter_mut().for_each(|o| *o = gelu(*o));
    }
}

/// Adds the bias and the residual.
struct BiasResidual<'a, T> {
    bias: &'a [T],
    residual: &'a [T],
}

impl<T: Real> Epilogue<T> for BiasResidual<'_, T> {
    #[inline(always)]
    fn apply(&self, out: &mut [T], _: &mut [T], row: usize, column: usize) {
        let residual = &self.residual[row * self.bias.len() + column..];
        for ((o, &b), &r) in out.iter_mut().zip(&self.bias[column..]).zip(residual) {
            *o = r + (*o + b);
        }
    }
}

impl Op1 for Plain {
    const NAME: &'static str = "linear";

    fn shape(&self, x: &[usize]) -> Vec<usize> {
        vec![x[0], self.0.weight.value.dims()[0]]
    }

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        self.0.product(x, dims, None, &Bias(&self.0.bias::<T>()?))
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], _: &[usize]) -> Result<Vec<T>> {
        self.0.backward(x, dy)
    }

    super::on_gpu!();
}

impl Op1 for WithGelu {
    const NAME: &'static str = "linear, gelu";

    fn shape(&self, x: &[usize]) -> Vec<usize> {
        vec![x[0], self.linear.weight.value.dims()[0]]
    }

    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Result<Vec<T>> {
        self.linear.product(x, dims, Some(&self.preactivation), &BiasGelu(&self.linear.bias::<T>()?))
    }

    fn backward<T: Real>(&self, x: &[T], _: &[T], dy: &[T], _: &[usize]) -> Result<Vec<T>> {
        self.linear.backward(x, &gelu_backward(dy, self.preactivation.get::<Vec<T>>()?))
    }

    super::on_gpu!();
}

impl Op2 for WithResidual {
    const NAME: &'static str = "linear, residual";

    fn forward<T: Real>(&self, residual: &[T], x: &[T], dims: [&[usize]; 2]) -> Result<Vec<T>> {
        let bias = self.0.bias::<T>()?;
        check_residual(&self.0, dims)?;
        self.0.product(x, dims[1], None, &BiasResidual { bias: &bias, residual })
    }

    fn backward<T: Real>(&self, [_, x]: [&[T]; 2], dy: &[T], _: [&[usize]; 2]) -> Result<[Option<Vec<T>>; 2]> {
        Ok([None, Some(self.0.backward(x, dy)?)])
    }

    super::on_gpu!(two);
}

/// The residual is as large as the layer's output.
pub(super) fn check_residual(linear: &Linear, [residual, x]: [&[usize]; 2]) -> Result<()> {
    let out = linear.weight.value.dims()[0];
    if residual != [x[0], out] {
        candle_core::bail!("{}: a residual [{}, {out}] wanted, got {residual:?}", linear.weight.name, x[0])
    }
    Ok(())
}
