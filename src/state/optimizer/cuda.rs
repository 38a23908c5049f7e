//! Runs AdamW and squared norms on a GPU, by kernels/adamw.cu, with the arithmetic of [`super::AdamW`] and
//! [`super::norm_squared`].

use candle_core::cuda_backend::cudarc::driver::{DevicePtrMut, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, Tensor};
use std::ops::Range;

use super::{Step, check_ranges};
use crate::cuda::{Kernel, Lent, THREADS, change, device_of, empty};
use crate::{Result, bail};

/// `AdamW` of kernels/adamw.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Constants {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    scale: f32,
    rate: f32,
    inv_std: f32,
    eps: f32,
    decay: f32,
    average: f32,
}

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for Constants {}

/// Counterpart of [`super::Shard`]: flat f32 tensors on a GPU, of one length.
pub(in crate::state) struct Shard<'a> {
    pub params: &'a Tensor,
    pub grads: &'a Tensor,
    /// AdamW's two moments, and the moving average if there is one.
    pub numbers: &'a [Tensor],
    /// The average's decay.
    pub decay: f64,
}

/// A step of AdamW; the average follows in the same pass.
pub(in crate::state) fn update(step: &Step, shard: &Shard, no_decay: &[Range<usize>]) -> Result<()> {
    let n = shard.params.elem_count();
    let [m, v, average @ ..] = shard.numbers else { bail!(Shape, "AdamW: {} kinds of moments", shard.numbers.len()) };
    if [shard.grads, m, v].into_iter().chain(average).any(|t| t.elem_count() != n) {
        bail!(Shape, "AdamW: {n} parameters, {} gradients, moments of {}", shard.grads.elem_count(), m.elem_count());
    }
    check_ranges(no_decay, n)?;
    if n == 0 {
        return Ok(());
    }
    let device = device_of(shard.params)?;
    let constants = Constants {
        beta1: step.betas[0],
        beta2: step.betas[1],
        rest1: step.rest[0],
        rest2: step.rest[1],
        scale: step.scale,
        rate: step.rate,
        inv_std: step.inv_std,
        eps: step.eps,
        decay: step.decay,
        average: (1.0 - shard.decay) as f32,
    };
    let launch = |average: u64| launch(&device, &constants, shard, [m, v], average, no_decay);
    match average.first() {
        None => launch(0)?,
        Some(average) => change(average, |mut average| {
            let stream = device.cuda_stream();
            let (at, _guard) = average.device_ptr_mut(&stream);
            launch(at)
        })?,
    }
    Ok(())
}

/// The kernel, with the average's address, or 0.
fn launch(
    device: &CudaDevice,
    constants: &Constants,
    shard: &Shard,
    [m, v]: [&Tensor; 2],
    average: u64,
    no_decay: &[Range<usize>],
) -> candle_core::Result<()> {
    let kernel = Kernel::of(device, "adamw")?;
    let n = shard.params.elem_count();
    let (count, ranges) = (n as i64, no_decay.len() as i32);
    let mut bounds: Vec<i64> = no_decay.iter().flat_map(|range| [range.start as i64, range.end as i64]).collect();
    bounds.resize(bounds.len().max(2), 0); // CUDA allocates nothing of no bytes
    let bounds = device.clone_htod(&bounds)?;
    let grads = Lent::new(shard.grads);
    change(shard.params, |mut params| {
        change(m, |mut m| {
            change(v, |mut v| {
                let grads = grads.view::<f32>()?;
                let mut call = kernel.call();
                call.arg(&mut params).arg(&grads).arg(&mut m).arg(&mut v).arg(&average).arg(&count).arg(constants);
                call.arg(&bounds).arg(&ranges);
                // SAFETY: the kernel's arguments: arrays of `n` elements, an address that is held or null, `ranges`
                // pairs.
                unsafe { kernel.launch(call, [n.div_ceil(THREADS), 1, 1]) }?;
                Ok(())
            })
        })
    })
}

/// The sum of squares, in f64; the order of its terms is another than on the CPU.
pub(in crate::state) fn norm_squared(values: &Tensor) -> Result<f64> {
    let n = values.elem_count();
    if n == 0 {
        return Ok(0.0);
    }
    let device = device_of(values)?;
    let kernel = Kernel::of(&device, "norm_squared")?;
    let blocks = n.div_ceil(64 * THREADS);
    let mut parts = empty::<f64>(&device, blocks)?;
    let (values, count) = (Lent::new(values), n as i64);
    let values = values.view::<f32>()?;
    let mut call = kernel.call();
    call.arg(&values).arg(&mut parts).arg(&count);
    // SAFETY: the kernel's arguments; each block leaves one number.
    unsafe { kernel.launch(call, [blocks, 1, 1]) }?;
    Ok(device.clone_dtoh(&parts)?.iter().sum())
}
