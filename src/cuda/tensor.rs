//! Turns tensors into what kernels take, and back.

use std::marker::PhantomData;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, DType, Device, Error, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use parking_lot::Mutex;

/// The device of a tensor on a GPU.
pub(crate) fn device_of(x: &Tensor) -> Result<CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => bail!("a tensor is on {:?} where a kernel of a GPU needs it", other.location()),
    }
}

/// A tensor's storage, held while a kernel is launched on it.
pub(crate) struct Lent<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Lent<'a> {
    pub fn new(x: &'a Tensor) -> Self {
        let (storage, layout) = x.storage_and_layout();
        Self { storage, layout }
    }

    /// From its first element on.
    pub fn view<T: CudaDType + DeviceRepr>(&self) -> Result<CudaView<'_, T>> {
        Ok(self.storage()?.as_cuda_slice::<T>()?.slice(self.layout.start_offset()..))
    }

    pub fn storage(&self) -> Result<&CudaStorage> {
        let Storage::Cuda(storage) = &*self.storage else { bail!("a tensor is not on a GPU") };
        Ok(storage)
    }

    pub fn layout(&self) -> &Layout {
        self.layout
    }
}

/// A contiguous tensor of what a kernel has written.
pub(crate) fn tensor<T: CudaDType>(slice: CudaSlice<T>, shape: impl Into<Shape>, device: &CudaDevice) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// `n` ones.
pub(crate) fn ones(device: &CudaDevice, n: usize) -> Result<Tensor> {
    Tensor::ones(n, DType::F32, &Device::Cuda(device.clone()))
}

/// Sets the elements of the contiguous f32 tensor `t` to zero. The driver counts bytes in 64 bits, Candle's kernel
/// elements in 32.
pub(crate) fn clear(t: &Tensor) -> Result<()> {
    let stream = device_of(t)?.cuda_stream();
    change(t, |mut values| {
        let cleared = stream.memset_zeros(&mut values);
        cleared.map_err(|e| Error::msg(format!("{} elements cannot be set to zero: {e}", t.elem_count())))
    })
}

/// Calls `f` with the elements of the contiguous f32 tensor `t`, to be changed in place. Counterpart of
/// [`crate::ops::write`].
pub(crate) fn change<R>(t: &Tensor, f: impl FnOnce(CudaViewMut<'_, f32>) -> Result<R>) -> Result<R> {
    change_as::<f32, R>(t, f)
}

/// The same for elements of any type.
pub(crate) fn change_as<T: CudaDType + DeviceRepr, R>(
    t: &Tensor,
    f: impl FnOnce(CudaViewMut<'_, T>) -> Result<R>,
) -> Result<R> {
    struct Change<F, R, T>(Mutex<(Option<F>, Option<R>)>, PhantomData<T>);
    impl<T: CudaDType + DeviceRepr, R, F: FnOnce(CudaViewMut<'_, T>) -> Result<R>> InplaceOp1 for Change<F, R, T> {
        fn name(&self) -> &'static str {
            "change"
        }

        fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
            bail!("change: the tensor is not on a GPU")
        }

        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else { bail!("change: the tensor is not contiguous") };
            let values = storage.as_cuda_slice_mut::<T>()?;
            if values.len() < end {
                bail!("change: the tensor is released; its unit must be gathered before it is used")
            }
            let mut slot = self.0.lock();
            if let Some(f) = slot.0.take() {
                slot.1 = Some(f(values.slice_mut(start..end))?);
            }
            Ok(())
        }
    }
    let op = Change(Mutex::new((Some(f), None)), PhantomData::<T>);
    t.inplace_op1(&op)?;
    match op.0.into_inner() {
        (_, Some(result)) => Ok(result),
        _ => bail!("change: the closure did not run"),
    }
}
