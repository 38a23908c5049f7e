//! Casts of contiguous arrays between f32 and bf16 by kernels/cast.cu, which count elements in 64 bits; Candle's count
//! in 32.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};
use half::bf16;

use super::{Kernel, THREADS, empty};

/// Elements that a thread casts.
const EACH: usize = 8;

/// `x` rounded to the nearest bf16, ties to even.
pub(crate) fn to_bf16(device: &CudaDevice, x: &CudaView<'_, f32>) -> Result<CudaSlice<bf16>> {
    cast_by("to_bf16", device, x)
}

/// `x` as f32.
pub(crate) fn to_f32(device: &CudaDevice, x: &CudaView<'_, bf16>) -> Result<CudaSlice<f32>> {
    cast_by("to_f32", device, x)
}

fn cast_by<T: DeviceRepr, U: DeviceRepr>(
    name: &'static str,
    device: &CudaDevice,
    x: &CudaView<'_, T>,
) -> Result<CudaSlice<U>> {
    let mut y = empty::<U>(device, x.len())?;
    let kernel = Kernel::of(device, name)?;
    let n = x.len() as i64;
    let mut call = kernel.call();
    call.arg(x).arg(&mut y).arg(&n);
    // SAFETY: the kernel's arguments, of `n` elements each.
    unsafe { kernel.launch(call, [x.len().div_ceil(THREADS * EACH), 1, 1]) }?;
    Ok(y)
}

/// The contiguous tensor that `layout` says lies in `x`, in `dtype`.
pub(crate) fn cast(x: &CudaStorage, layout: &Layout, dtype: DType) -> Result<CudaStorage> {
    fn values<'a, T: CudaDType + DeviceRepr>(x: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("cast: the tensor is not contiguous") };
        Ok(x.as_cuda_slice::<T>()?.slice(start..end))
    }
    let device = &x.device;
    match (x.dtype(), dtype) {
        (DType::F32, DType::BF16) => {
            let y = to_bf16(device, &values(x, layout)?)?;
            Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
        }
        (DType::BF16, DType::F32) => {
            let y = to_f32(device, &values(x, layout)?)?;
            Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
        }
        (from, to) => bail!("cast: between f32 and bf16 only, not from {from:?} to {to:?}"),
    }
}
