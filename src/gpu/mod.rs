//! Our CUDA kernels as Candle's GPUs run them: embedded, loaded once a device, launched by name, on tensors.
//!
//! What a kernel computes is said in kernels/, and which op launches which one in the op. **Nothing here has run on a GPU yet.**

mod add;
mod gemm;
mod modules;
mod rows;
mod tensor;

use candle_core::cuda_backend::cudarc::driver::DriverError;

pub(crate) use add::add_assign;
pub(crate) use gemm::{Matrix, product};
pub(crate) use modules::Kernel;
pub(crate) use rows::{PerSample, RUN, Sum, THREADS, TileRows, sum_runs};
pub(crate) use tensor::{Lent, change, device_of, empty, ones, tensor};

/// A kernel could not be launched.
pub(crate) fn failed(e: DriverError) -> candle_core::Error {
    candle_core::Error::msg(format!("a kernel cannot be launched on the GPU: {e}"))
}
