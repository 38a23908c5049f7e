//! Adds an adapter's low-rank product on a GPU, and its gradients: products by cuBLAS, and dropout by
//! kernels/dropout.cu, which draws what the CPU draws.

use candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use candle_core::{CudaDevice, Result};

use super::linear::Operand;
use super::{Array, Numbers};
use crate::cuda::{Kernel, KeyWords, Lent, THREADS, change, empty, product, scaled_product};
use crate::ops::dropout::Drawn;
use crate::ops::low_rank::LowRank;

/// Elements that a thread draws for.
const DRAWN: usize = 32;

/// The input of an adapter's layer: as it is, and as products take it.
#[derive(Clone, Copy)]
pub(super) struct LayerInput<'a> {
    pub x: Array<'a>,
    pub rounded: &'a Operand<'a>,
}

impl LowRank {
    /// y += s x Aᵀ Bᵀ.
    pub(super) fn add_on_gpu(&self, input: LayerInput, y: &mut Numbers, bf16: bool) -> Result<()> {
        let ([n, _], device) = (input.x.rows()?, input.x.device());
        let dropped = self.dropped_on_gpu(input.x, bf16)?;
        let inner = self.inner_on_gpu(device, dropped.as_ref().unwrap_or(input.rounded), n, bf16)?;
        let b = Lent::new(&self.b.value);
        let b = Operand::weight(&b, bf16)?;
        product(device, &inner.matrix(false)?, &b.matrix(true)?, &mut y.as_view_mut(), true)
    }

    /// Adds the gradients of A and B, given that of y, and its share of that of x.
    pub(super) fn back_on_gpu(&self, input: LayerInput, dy: &Operand, dx: &mut Numbers, bf16: bool) -> Result<()> {
        let ([n, width], device) = (input.x.rows()?, input.x.device());
        let (rank, _) = self.a.value.dims2()?;
        let dropped = self.dropped_on_gpu(input.x, bf16)?;
        let x = dropped.as_ref().unwrap_or(input.rounded);
        let inner = self.inner_on_gpu(device, x, n, bf16)?;
        if let Some(grad) = &self.b.grad {
            change(grad, |mut grad| product(device, &dy.matrix(true)?, &inner.matrix(false)?, &mut grad, true))?;
        }
        let (a, b) = (Lent::new(&self.a.value), Lent::new(&self.b.value));
        let (a, b) = (Operand::weight(&a, bf16)?, Operand::weight(&b, bf16)?);
        let (mut d_inner, scale) = (empty::<f32>(device, n * rank)?, self.scale as f32);
        scaled_product(device, &dy.matrix(false)?, &b.matrix(false)?, &mut d_inner.as_view_mut(), scale, false)?;
        let d_inner = Operand::own(device, d_inner, [n, rank], bf16)?;
        if let Some(grad) = &self.a.grad {
            change(grad, |mut grad| product(device, &d_inner.matrix(true)?, &x.matrix(false)?, &mut grad, true))?;
        }
        let Some(drawn) = self.drawn(n) else {
            return product(device, &d_inner.matrix(false)?, &a.matrix(false)?, &mut dx.as_view_mut(), true);
        };
        let mut share = empty::<f32>(device, n * width)?;
        product(device, &d_inner.matrix(false)?, &a.matrix(false)?, &mut share.as_view_mut(), false)?;
        drop_into(device, &drawn, &share.as_view(), &mut dx.as_view_mut(), width, true)
    }

    /// s x Aᵀ `[n, r]`, as an operand.
    fn inner_on_gpu(&self, device: &CudaDevice, x: &Operand, n: usize, bf16: bool) -> Result<Operand<'static>> {
        let (rank, _) = self.a.value.dims2()?;
        let (a, mut inner) = (Lent::new(&self.a.value), empty::<f32>(device, n * rank)?);
        let (a, scale) = (Operand::weight(&a, bf16)?, self.scale as f32);
        scaled_product(device, &x.matrix(false)?, &a.matrix(true)?, &mut inner.as_view_mut(), scale, false)?;
        Operand::own(device, inner, [n, rank], bf16)
    }

    /// x with elements dropped, as an operand; None if none are.
    fn dropped_on_gpu(&self, x: Array, bf16: bool) -> Result<Option<Operand<'static>>> {
        let ([n, width], device) = (x.rows()?, x.device());
        let Some(drawn) = self.drawn(n) else { return Ok(None) };
        let mut kept = empty::<f32>(device, n * width)?;
        drop_into(device, &drawn, &x.view()?, &mut kept.as_view_mut(), width, false)?;
        Operand::own(device, kept, [n, width], bf16).map(Some)
    }
}

/// y = x, or with `add` y += x, with elements dropped and the rest scaled up.
fn drop_into(
    device: &CudaDevice,
    drawn: &Drawn,
    x: &CudaView<'_, f32>,
    y: &mut CudaViewMut<'_, f32>,
    width: usize,
    add: bool,
) -> Result<()> {
    let kernel = Kernel::of(device, "dropout")?;
    let (least, scale, add) = (drawn.least, drawn.scale as f32, i32::from(add));
    for run in &drawn.runs {
        let elements = run.rows.start * width..run.rows.end * width;
        let (x, mut y) = (x.slice(elements.clone()), y.slice_mut(elements));
        let (key, token, n, columns) = (KeyWords::from(run.key), run.token as i64, run.rows.len(), width as i32);
        let count = n as i64;
        let mut call = kernel.call();
        call.arg(&x).arg(&mut y).arg(&key).arg(&token).arg(&count).arg(&columns).arg(&least).arg(&scale).arg(&add);
        // SAFETY: the kernel's arguments: `n` rows of `width` elements of both.
        unsafe { kernel.launch(call, [(n * width.div_ceil(DRAWN)).div_ceil(THREADS), 1, 1]) }?;
    }
    Ok(())
}
