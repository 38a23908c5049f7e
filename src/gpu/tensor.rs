//! From tensors to what kernels take, and back.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

/// The device of a tensor on a GPU.
pub(crate) fn device_of(x: &Tensor) -> Result<CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => bail!("a tensor is on {:?} where a kernel of a GPU needs it", other.location()),
    }
}

/// A tensor's storage, held while a kernel is launched on it.
pub(crate) struct Held<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Held<'a> {
    pub fn new(x: &'a Tensor) -> Self {
        let (storage, layout) = x.storage_and_layout();
        Self { storage, layout }
    }

    /// From its first element on.
    pub fn view<T: CudaDType + DeviceRepr>(&self) -> Result<CudaView<'_, T>> {
        let Storage::Cuda(storage) = &*self.storage else { bail!("a tensor is not on a GPU") };
        Ok(storage.as_cuda_slice::<T>()?.slice(self.layout.start_offset()..))
    }
}

/// Room for `n` numbers, which are not set.
pub(crate) fn empty<T: DeviceRepr>(device: &CudaDevice, n: usize) -> Result<CudaSlice<T>> {
    // SAFETY: callers give it to a kernel that sets all of it before anything reads it.
    unsafe { device.alloc::<T>(n) }
}

/// A contiguous tensor of what a kernel has written.
pub(crate) fn tensor<T: CudaDType>(slice: CudaSlice<T>, shape: impl Into<Shape>, device: &CudaDevice) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}
