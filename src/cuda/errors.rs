//! CUDA's errors in words: which kernel, how much memory there is, what to do.
//!
//! A kernel that fails does so after its launch has succeeded: the error comes back from a later call, which is
//! innocent. So where the driver reports such an error, the message says how to learn the kernel's name:
//! `LONGREEL_GPU_CHECK=1`, see [`super::check`].

use candle_core::Error as CandleError;
use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::driver::DriverError;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;

use super::check;
use super::memory::Memory;
use crate::Error;

/// What an error of the driver means and what to do about it.
pub(crate) fn meaning(e: DriverError) -> String {
    match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => format!(
            "the GPU has no memory left{}; use a smaller train.tile, a smaller train.batch, more ranks or parallel.zero: \
             `longreel plan` says what a step needs",
            Memory::now().map_or_else(String::new, |memory| format!(": {memory}"))
        ),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
            if !check::checks() =>
        {
            format!(
                "{e}: a kernel that was launched earlier has failed; run again with {}=1 to see which",
                check::VARIABLE
            )
        }
        CUresult::CUDA_ERROR_NOT_FOUND => {
            format!(
                "{e}: this program lacks a kernel; it was not built from one state of the source, so build it again"
            )
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            format!(
                "{e}: this program's kernels are for GPUs of compute capability 8.0 and newer and drivers of CUDA 13.0 and newer"
            )
        }
        _ => e.to_string(),
    }
}

impl From<CandleError> for Error {
    /// Where a GPU's driver is at the root, with what its error means, for Candle gives the error's name only.
    fn from(e: CandleError) -> Self {
        explain(&e).map_or(Self::Candle(e), Self::Environment)
    }
}

/// The meaning of Candle's error, if the driver is at its root.
pub(super) fn explain(e: &CandleError) -> Option<String> {
    match e {
        CandleError::WithBacktrace { inner, .. }
        | CandleError::Context { inner, .. }
        | CandleError::WithPath { inner, .. } => explain(inner),
        CandleError::Cuda(e) => match e.downcast_ref::<CudaError>()? {
            CudaError::Cuda(e) => Some(meaning(*e)),
            CudaError::Load { cuda, module_name } => {
                Some(format!("the kernel {module_name} of Candle cannot be loaded: {}", meaning(*cuda)))
            }
            _ => None,
        },
        _ => None,
    }
}
