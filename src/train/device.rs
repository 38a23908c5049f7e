//! What ranks compute on: the CPU, or a GPU for each.

use candle_core::Device;

use crate::config::Hardware;
use crate::parallel::Launch;
use crate::{Error, Result, bail};

/// The device of this process's ranks, of whom there are `ranks` in all, where the user wants `wanted`, a setting called `name`: by
/// default the CPU, or the GPU that a launcher gave each rank. Without one it is the machine's first.
///
/// # Errors
/// It is a GPU, and longreel was built without CUDA, there is none, or several ranks would share it; or it is the CPU, and the ranks were
/// started on GPUs.
pub fn device(wanted: Option<Hardware>, name: &str, ranks: usize, launch: &Launch) -> Result<Device> {
    let gpu = launch.gpu();
    match (wanted.unwrap_or(if gpu.is_some() { Hardware::Cuda } else { Hardware::Cpu }), gpu) {
        (Hardware::Cpu, None) => Ok(Device::Cpu),
        (Hardware::Cuda, Some(gpu)) => Ok(gpu),
        (Hardware::Cpu, Some(_)) => bail!(
            "{name} is \"cpu\", but each rank was started on a GPU of its own: leave {name} out, or start the ranks with mpirun or \
             --ranks (docs/launching.md)"
        ),
        (Hardware::Cuda, None) if !cfg!(feature = "cuda") => bail!(
            "{name} is \"cuda\", but this longreel was built without CUDA: build it with `cargo build --release --features \
             cuda`, or set {name} = \"cpu\""
        ),
        // A stream of its own: Candle's usual one is another for each thread, and a rank has several.
        (Hardware::Cuda, None) if ranks == 1 => Device::new_cuda_with_stream(0).map_err(|e| {
            Error::Invalid(format!("{name} is \"cuda\", but no GPU can be used: {e}; set {name} = \"cpu\""))
        }),
        (Hardware::Cuda, None) => bail!(
            "{name} is \"cuda\" and there are {ranks} ranks, which would share one GPU: start a process for each, as torchrun does \
             (docs/launching.md), or use one rank"
        ),
    }
}

/// Bytes of a GPU's memory that are taken, by whomever; None for the CPU. What Candle has freed stays taken until others need it.
pub fn taken(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::gpu::taken(device).ok(),
        _ => None,
    }
}
