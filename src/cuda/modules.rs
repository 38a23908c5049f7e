//! The compiled kernels: where they are in the program, how each is launched, and their modules on a device.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaStream, DriverError, LaunchArgs, LaunchConfig,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Error, Result, bail};
use parking_lot::Mutex;

use super::check::checked;
use super::meaning;

/// What build.rs made of each file of kernels/.
static IMAGES: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Threads of a block and its bytes of shared memory, by kernel: kernels/launch.h.
static BLOCKS: LazyLock<HashMap<&str, [u32; 2]>> = LazyLock::new(|| blocks(include_str!("../../kernels/launch.h")));

fn blocks(header: &'static str) -> HashMap<&'static str, [u32; 2]> {
    let line = |line: &'static str| {
        let mut words = line.strip_prefix("KERNEL(")?.strip_suffix(')')?.split(", ");
        let name = words.next()?;
        Some((name, [words.next()?.parse().ok()?, words.next()?.parse().ok()?]))
    };
    header.lines().filter_map(line).collect()
}

/// A kernel on a device, and the stream of that device that Candle computes on.
#[derive(Clone)]
pub(crate) struct Kernel {
    name: &'static str,
    function: CudaFunction,
    stream: Arc<CudaStream>,
    threads: u32,
    shared: u32,
}

/// The modules of each device in use, by its number, and the kernels that were asked for.
type Loaded = HashMap<usize, (Vec<Arc<CudaModule>>, HashMap<&'static str, Kernel>)>;

static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

impl Kernel {
    /// The kernel `name` of kernels/ on `device`.
    pub fn of(device: &CudaDevice, name: &'static str) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context().clone();
        let mut loaded = LOADED.lock();
        let (modules, kernels) = match loaded.entry(context.ordinal()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let module = |(file, image): &(&str, &[u8])| {
                    let module = context.load_module(Ptx::from_binary(image.to_vec()));
                    module.map_err(|e| Error::msg(format!("{file} cannot be loaded: {}", meaning(e))))
                };
                entry.insert((IMAGES.iter().map(module).collect::<Result<_>>()?, HashMap::new()))
            }
        };
        if let Some(kernel) = kernels.get(name) {
            return Ok(Self { stream, ..kernel.clone() });
        }
        let mut found = Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND));
        for module in modules.iter() {
            found = module.load_function(name);
            if !matches!(found, Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND))) {
                break;
            }
        }
        let function = found.map_err(|e| Error::msg(format!("the kernel {name} cannot be loaded: {}", meaning(e))))?;
        let Some(&[threads, shared]) = BLOCKS.get(name) else { bail!("kernels/launch.h does not have {name}") };
        // More than 48 KiB have to be asked for.
        let asked = function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32);
        asked.map_err(|e| Error::msg(format!("{name} needs {shared} bytes of shared memory: {}", meaning(e))))?;
        let kernel = Self { name, function, stream, threads, shared };
        kernels.insert(name, kernel.clone());
        Ok(kernel)
    }

    /// A call, to be given the kernel's arguments in their order.
    pub fn call(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }

    /// Launches `call` on a grid of `[x, y, z]` blocks; an error says which kernel on which.
    ///
    /// # Safety
    /// The call's arguments are those that the kernel declares, and memory that they point to holds what it reads and
    /// writes.
    pub unsafe fn launch(&self, mut call: LaunchArgs, blocks: [usize; 3]) -> Result<()> {
        let (grid, [x, y, z]) = (self.grid(blocks)?, blocks);
        let what = format_args!("kernel {} on a grid of {x} x {y} x {z} blocks of {} threads", self.name, self.threads);
        checked(&self.stream, what, || {
            // SAFETY: the caller's promise.
            let launched = unsafe { call.launch(grid) };
            launched.map(drop).map_err(|e| Error::msg(format!("{what} cannot be launched: {}", meaning(e))))
        })
    }

    fn grid(&self, [x, y, z]: [usize; 3]) -> Result<LaunchConfig> {
        // The most blocks that a grid may have: CUDA C++ Programming Guide, compute capabilities.
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as usize || y.max(z) > 65_535 {
            bail!("kernel {} cannot be launched on a grid of {x} x {y} x {z} blocks", self.name)
        }
        Ok(LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: self.shared,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_header_is_understood() {
        let header = include_str!("../../kernels/launch.h");
        assert_eq!(BLOCKS.len(), header.lines().filter(|line| line.starts_with("KERNEL(")).count());
        assert_eq!(BLOCKS["flash_backward_kv_bf16_d128"], [128, 66048]);
        assert_eq!(BLOCKS["add_assign"], [256, 0]);
    }
}
