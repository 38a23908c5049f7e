//! What ranks compute on: the CPU, or a GPU for each.

use candle_core::Device;

use crate::config::Hardware;
use crate::parallel::Launch;
use crate::{Result, bail};

/// Picks the device of this process's ranks. `ranks` counts those of all processes; `wanted` is the user's setting,
/// which is called `name`. By default it is the CPU, or the GPU that a launcher gave each rank. Without a launcher a
/// GPU is the machine's first.
///
/// # Errors
/// It is a GPU, and longreel was built without CUDA, there is none, or several ranks would share it; or it is the CPU,
/// and the ranks were started on GPUs.
pub fn device(wanted: Option<Hardware>, name: &str, ranks: usize, launch: &Launch) -> Result<Device> {
    let gpu = launch.gpu();
    match (wanted.unwrap_or(if gpu.is_some() { Hardware::Cuda } else { Hardware::Cpu }), gpu) {
        (Hardware::Cpu, None) => Ok(Device::Cpu),
        (Hardware::Cuda, Some(gpu)) => Ok(gpu),
        (Hardware::Cpu, Some(_)) => bail!(
            Config,
            "{name} is \"cpu\", but each rank was started on a GPU of its own: leave {name} out, or start the ranks with mpirun or \
             --ranks (docs/launching.md)"
        ),
        (Hardware::Cuda, None) if !cfg!(feature = "cuda") => bail!(
            Environment,
            "{name} is \"cuda\", but this longreel was built without CUDA: build it with `cargo build --release --features \
             cuda`, or set {name} = \"cpu\""
        ),
        #[cfg(feature = "cuda")]
        (Hardware::Cuda, None) if ranks == 1 => crate::cuda::open(0)
            .map_err(|e| crate::Error::Environment(format!("{name} is \"cuda\", but {e}; or set {name} = \"cpu\""))),
        (Hardware::Cuda, None) => bail!(
            Environment,
            "{name} is \"cuda\" and there are {ranks} ranks, which would share one GPU: start a process for each, as torchrun does \
             (docs/launching.md), or use one rank"
        ),
    }
}

/// What it is, for people.
pub fn name(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let stream = device.cuda_stream();
            let (context, unnamed) = (stream.context(), |_| "a GPU".to_owned());
            format!("GPU {}, {}", context.ordinal(), context.name().unwrap_or_else(unnamed))
        }
        _ => "the CPU".to_owned(),
    }
}

/// The most bytes of a GPU's memory that this process's tensors had in use at one time; None for the CPU. What CUDA
/// itself, cuBLAS and NCCL hold is not among them.
pub fn used_at_most(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::Memory::of(device).ok().map(|memory| memory.used_most),
        _ => None,
    }
}

/// The end of a step: whatever the driver has reported where nobody could be told, such as in a drop, is this step's
/// error.
pub fn check(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device
            .cuda_stream()
            .context()
            .check_err()
            .map_err(|e| crate::Error::Environment(format!("the GPU reports: {}", crate::cuda::meaning(e)))),
        _ => Ok(()),
    }
}
