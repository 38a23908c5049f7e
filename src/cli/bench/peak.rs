//! Measures what this machine can do at most: multiply-adds on registers, and bytes to and from memory.

use clap::Args;

use super::{Report, device_of, gpu, on_threads, peak_of};
use crate::cli::at_least_1;
use crate::cli::machine::copy;
use crate::config::{Compute, Hardware};
use crate::simd::Isa;
use crate::{Result, bail};

/// The arithmetic peak of the best instruction set, on one thread and on all, and the bandwidth of memory. With
/// --device cuda: matrix products by cuBLAS, and the bandwidth of the GPU's memory and of copies from and to its host.
#[derive(Debug, Args)]
pub struct PeakArgs {
    /// Threads of "all"; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
    /// What is measured; default: the CPU
    #[arg(long)]
    device: Option<Hardware>,
}

/// Measures it.
pub fn run(args: &PeakArgs) -> Result<Report> {
    let device = device_of(args.device, 1)?;
    if device.is_cuda() {
        if args.threads.is_some() {
            bail!(Config, "--threads is of CPUs: leave it out, or --device cuda")
        }
        return gpu::run(&device);
    }
    let peaks = |_| Ok([Compute::F32, Compute::Bf16].map(|dtype| peak_of(Isa::best(), dtype) / 1e9));
    let one = on_threads(Some(1), peaks)?;
    let (threads, all_threads, copy) = on_threads(args.threads, |threads| Ok((threads, peaks(threads)?, copy())))?;
    Ok(Report::new("peak", facts![path = Isa::best().name(), threads])
        .with("f32_gflops_1", "f32, one thread, GFLOP/s", one[0])
        .with("f32_gflops", "f32, all threads, GFLOP/s", all_threads[0])
        .with("bf16_gflops_1", "bf16, one thread, GFLOP/s", one[1])
        .with("bf16_gflops", "bf16, all threads, GFLOP/s", all_threads[1])
        .with("copy_gb_s", "copying memory, GB/s", copy))
}
