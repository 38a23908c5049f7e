//! Opens a GPU, after a look at whether driver, GPU and libraries are such as longreel needs: one that is not is told
//! so here, in words, before anything depends on it.

use candle_core::cuda_backend::cudarc::cublas::sys::{cublasGetProperty, cublasStatus_t, libraryPropertyType_t};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED,
};
use candle_core::cuda_backend::cudarc::driver::sys::{CUresult, cuDriverGetVersion};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result};
use candle_core::{CudaDevice, Device};

use super::errors::explain;
use super::{check, meaning, memory};

/// The CUDA that this program is built with, as the driver counts versions: 13.0. A driver must know it, cuBLAS be of
/// its major one.
const CUDA: i32 = 13_000;

/// The oldest compute capability that kernels are compiled for.
const CAPABILITY: [i32; 2] = [8, 0];

/// Queues of a GPU for this process's streams: computing, two for the stash, one a communicator. CUDA's usual number,
/// 8, is soon shared, and what shares a queue waits for each other.
const CONNECTIONS: &str = "32";

/// Sets what the driver reads when it starts, where the user has not: at the start of the program, before there are
/// threads.
pub(crate) fn before_start() {
    const VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(VARIABLE, CONNECTIONS) }
    }
}

type Result<T> = std::result::Result<T, String>;

/// GPUs that this process may use.
///
/// # Errors
/// The driver is too old, or has none.
pub(crate) fn count() -> Result<usize> {
    let mut version = 0;
    // SAFETY: a pointer to a local.
    unsafe { cuDriverGetVersion(&mut version).result() }
        .map_err(|e| format!("the driver does not tell its version: {e}"))?;
    if version < CUDA {
        return Err(format!(
            "the driver here is for CUDA {}, and longreel needs one for {}: install NVIDIA's driver 580 or newer",
            dotted(version),
            dotted(CUDA)
        ));
    }
    result::init().map_err(|e| match e.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "the driver finds no GPU that works: nvidia-smi lists those it has, CUDA_VISIBLE_DEVICES those this process may use".into()
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "libcuda.so.1 is CUDA's stub, for linking only: take its folder out of LD_LIBRARY_PATH".into()
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so.1 is of another version than the driver in the kernel: install them together, or restart the machine".into()
        }
        _ => format!("the driver does not start: {e}; nvidia-smi says how the GPUs are"),
    })?;
    let count = result::device::get_count().map_err(|e| format!("the driver does not count its GPUs: {e}"))?;
    Ok(count.max(0) as usize)
}

/// GPU `ordinal`, with a stream of its own for computing: Candle's usual one is another for each thread, and a rank has
/// several.
///
/// # Errors
/// It is not there or cannot compute what longreel needs, or a library is of another version.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    check::allowed()?;
    let count = count()?;
    if ordinal >= count {
        return Err(format!("there is no GPU {ordinal}: this process may use {count}, see CUDA_VISIBLE_DEVICES"));
    }
    fit(ordinal)?;
    let device = CudaDevice::new_with_stream(ordinal)
        .map_err(|e| format!("GPU {ordinal} cannot be used: {}", explain(&e).unwrap_or_else(|| e.to_string())))?;
    memory::keep(device.cuda_stream().context()).map_err(|e| format!("GPU {ordinal}'s memory pool: {}", meaning(e)))?;
    Ok(Device::Cuda(device))
}

/// Whether the GPU and cuBLAS are such as longreel needs.
fn fit(ordinal: usize) -> Result<()> {
    let context = CudaContext::new(ordinal).map_err(|e| format!("GPU {ordinal} cannot be used: {}", meaning(e)))?;
    let unknown = |e: DriverError| format!("GPU {ordinal} does not tell what it is: {e}");
    let attribute = |attribute| context.attribute(attribute).map_err(unknown);
    let has = [
        attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ];
    if has < CAPABILITY {
        let ([major, minor], [at_least, least]) = (has, CAPABILITY);
        let name = context.name().unwrap_or_else(|_| "it".into());
        return Err(format!(
            "GPU {ordinal}, {name}, has compute capability {major}.{minor}, and longreel needs {at_least}.{least} or newer: an A100 or \
             later"
        ));
    }
    if attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
        return Err(format!(
            "GPU {ordinal} has no memory pools, which longreel allocates from: give it to this machine as a whole"
        ));
    }
    let mut major = 0;
    // SAFETY: a pointer to a local.
    let status = unsafe { cublasGetProperty(libraryPropertyType_t::MAJOR_VERSION, &mut major) };
    if status != cublasStatus_t::CUBLAS_STATUS_SUCCESS || major < CUDA / 1000 {
        return Err(format!(
            "the cuBLAS here is of CUDA {major}, and longreel needs that of CUDA {}: install it, or name its folder in LD_LIBRARY_PATH",
            CUDA / 1000
        ));
    }
    Ok(())
}

/// A version of CUDA for people.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
