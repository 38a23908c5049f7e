//! Our CUDA kernels as Candle's GPUs run them: embedded, loaded once a device, launched by name, on tensors.
//!
//! What a kernel computes is said in kernels/, and which op launches which one in the op. **Nothing here has run on a GPU yet.**

mod add;
mod bandwidth;
mod cast;
mod gemm;
mod modules;
mod rows;
mod tensor;

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::DriverError;

pub(crate) use add::add_assign;
pub(crate) use bandwidth::copies_per_second;
pub(crate) use cast::cast;
pub(crate) use gemm::{Matrix, product};
pub(crate) use modules::Kernel;
pub(crate) use rows::{PerSample, RUN, Reading, Sum, THREADS, TileRows, sum_runs};
pub(crate) use tensor::{Lent, change, change_as, clear, device_of, empty, ones, tensor};

/// Bytes of the device's memory that are taken.
pub(crate) fn taken(device: &CudaDevice) -> Result<u64, DriverError> {
    let (free, all) = device.cuda_stream().context().mem_get_info()?;
    Ok((all - free) as u64)
}

/// A kernel could not be launched.
pub(crate) fn failed(e: DriverError) -> candle_core::Error {
    candle_core::Error::msg(format!("a kernel cannot be launched on the GPU: {e}"))
}
