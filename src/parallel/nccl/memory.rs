//! Tensors on a GPU as NCCL sees them: an address and a number of bytes.

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{CudaStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};

use crate::ops::bytes;
use crate::{Result, bail};

/// Where a contiguous tensor lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Of the GPU's memory, not of this process's.
    pub at: u64,
    pub bytes: usize,
    /// It is all of what was allocated for it.
    whole: bool,
}

/// Refuses what is not moved: other dtypes, and tensors of another device. Those in memory pass, for they are small and
/// copied.
pub(super) fn check(t: &Tensor, gpu: &Device) -> Result<()> {
    let movable =
        [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64, DType::BF16, DType::F16, DType::F32, DType::F64];
    if !movable.contains(&t.dtype()) {
        bail!(Shape, "cannot send a tensor of dtype {:?} between ranks", t.dtype());
    }
    if !t.device().is_cpu() && !t.device().same_device(gpu) {
        bail!(
            Shape,
            "this communicator moves tensors of its rank's own GPU; make them with the device that Launch::gpu gives"
        );
    }
    Ok(())
}

/// Where `t`, contiguous and on a GPU, lies for work that is ordered after `stream`'s.
pub(super) fn place(t: &Tensor, stream: &CudaStream) -> Result<Place> {
    let (storage, layout) = t.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!(
            Shape,
            "expected a contiguous tensor on a GPU, got {:?} with strides {:?}",
            layout.dims(),
            layout.stride()
        )
    };
    let (at, length) = match t.dtype() {
        DType::U8 => base::<u8>(storage, stream),
        DType::U32 => base::<u32>(storage, stream),
        DType::I16 => base::<i16>(storage, stream),
        DType::I32 => base::<i32>(storage, stream),
        DType::I64 => base::<i64>(storage, stream),
        DType::BF16 => base::<bf16>(storage, stream),
        DType::F16 => base::<f16>(storage, stream),
        DType::F32 => base::<f32>(storage, stream),
        DType::F64 => base::<f64>(storage, stream),
        other => bail!(Shape, "cannot send a tensor of dtype {other:?} between ranks"),
    }?;
    let size = t.dtype().size_in_bytes();
    let whole = start == 0 && end == length;
    Ok(Place { at: at + (start * size) as u64, bytes: (end - start) * size, whole })
}

/// The address and the elements of a whole storage.
fn base<T: CudaDType>(storage: &CudaStorage, stream: &CudaStream) -> Result<(u64, usize)> {
    let slice = storage.as_cuda_slice::<T>()?;
    // What cudarc would order by this is ordered by events around the whole exchange.
    let (at, _) = slice.device_ptr(stream);
    Ok((at, slice.len()))
}

/// What a rank gives itself: `t`, if nothing else would be given away with it.
pub(super) fn handed_over(t: &Tensor, stream: &CudaStream) -> Result<Tensor> {
    if t.elem_count() > 0 && t.is_contiguous() && place(t, stream)?.whole {
        Ok(t.detach())
    } else {
        bytes::duplicate(t)
    }
}

/// Copies `from` over the contiguous `to`, of as many elements, wherever either is.
pub(super) fn overwrite(to: &Tensor, from: &Tensor) -> Result<()> {
    if to.elem_count() > 0 {
        to.flatten_all()?.slice_set(&from.to_device(to.device())?.flatten_all()?, 0, 0)?;
    }
    Ok(())
}
