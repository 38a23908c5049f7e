//! Releases the memory of a tensor while views of it live on, and takes it again: parameters and gradients that are
//! sharded over ranks exist as a whole only while their unit is used, but the layers' views of them are made once.
//!
//! A view of what is released must not be read or written: [`read`](super::read) and [`write`](super::write) refuse it.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, DType, backend::BackendStorage};
use half::bf16;

/// Gives the memory of `t`'s storage back; nothing if that is done already.
pub fn release(t: &Tensor) -> Result<()> {
    if storage_bytes(t) > 0 { t.inplace_op1(&Resize(0)) } else { Ok(()) }
}

/// Takes memory for `t`, all of whose storage was [released](release), and fills it with zeros; as it is if it was not.
pub fn restore(t: &Tensor) -> Result<()> {
    if storage_bytes(t) == 0 { t.inplace_op1(&Resize(t.elem_count())) } else { Ok(()) }
}

/// Bytes of the storage that `t` is in, or is a view of.
pub fn storage_bytes(t: &Tensor) -> usize {
    match &*t.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(values)) => size_of_val(values.as_slice()),
        Storage::Cpu(CpuStorage::F64(values)) => size_of_val(values.as_slice()),
        Storage::Cpu(CpuStorage::BF16(values)) => size_of_val(values.as_slice()),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            let (elements, bytes) = match storage.dtype() {
                DType::BF16 => (storage.as_cuda_slice::<bf16>().map_or(0, |values| values.len()), 2),
                _ => (storage.as_cuda_slice::<f32>().map_or(0, |values| values.len()), 4),
            };
            if elements <= RELEASED { 0 } else { bytes * elements }
        }
        _ => 0,
    }
}

/// Elements left of what is released on a GPU: CUDA allocates nothing of no bytes, and no unit has but one parameter.
#[cfg(feature = "cuda")]
const RELEASED: usize = 1;

/// Makes the storage one of so many zeros.
struct Resize(usize);

impl InplaceOp1 for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(values) => *values = vec![0.0; self.0],
            CpuStorage::F64(values) => *values = vec![0.0; self.0],
            CpuStorage::BF16(values) => *values = vec![bf16::ZERO; self.0],
            _ => bail!("release: f32, f64 or bf16 wanted"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device.clone();
        let elements = self.0.max(RELEASED);
        *storage = match storage.dtype() {
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(elements)?, device),
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<bf16>(elements)?, device),
            other => bail!("release: f32 or bf16 wanted, not {other:?}"),
        };
        Ok(())
    }
}
