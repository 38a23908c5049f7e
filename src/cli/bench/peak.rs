//! Measures what this machine can do at most: multiply-adds on registers or a GPU's products, and bytes to and from
//! memory.

use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::{Report, device_of, on_threads, peak_of, peak_on};
#[cfg(feature = "cuda")]
use crate::Error;
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
        return on_gpu(&device);
    }
    let peaks = |_| Ok([Compute::F32, Compute::Bf16].map(|dtype| peak_of(Isa::best(), dtype) / 1e9));
    let one = on_threads(Some(1), peaks)?;
    let (threads, all_threads, copy) = on_threads(args.threads, |threads| Ok((threads, peaks(threads)?, copy())))?;
    let facts = vec![("path", json!(Isa::best().name())), ("threads", json!(threads))];
    Ok(Report::new("peak", facts)
        .with("f32_gflops_1", "f32, one thread, GFLOP/s", one[0])
        .with("f32_gflops", "f32, all threads, GFLOP/s", all_threads[0])
        .with("bf16_gflops_1", "bf16, one thread, GFLOP/s", one[1])
        .with("bf16_gflops", "bf16, all threads, GFLOP/s", all_threads[1])
        .with("copy_gb_s", "copying memory, GB/s", copy))
}

/// Measures a GPU.
fn on_gpu(device: &Device) -> Result<Report> {
    let products = |dtype| Ok::<_, crate::Error>(peak_on(device, Isa::best(), dtype)? / 1e9);
    let mut report = Report::new("peak", vec![("path", json!("cuda"))])
        .with("f32_gflops", "products in f32, GFLOP/s", products(Compute::F32)?)
        .with("bf16_gflops", "products in bf16, GFLOP/s", products(Compute::Bf16)?);
    let rates = gpu_copies(device)?;
    for ((key, name), rate) in GPU_COPIES.into_iter().zip(rates) {
        report = report.with(key, name, rate);
    }
    Ok(report)
}

/// What [`gpu_copies`] measures: the key in JSON, and the words of the table.
const GPU_COPIES: [(&str, &str); 3] = [
    ("copy_gb_s", "copying on the GPU, GB/s"),
    ("from_host_gb_s", "from pinned memory, GB/s"),
    ("to_host_gb_s", "to pinned memory, GB/s"),
];

/// GB/s of copies on the GPU (read and written), from the host's pinned memory to the GPU, and back.
#[cfg(feature = "cuda")]
fn gpu_copies(device: &Device) -> Result<[f64; 3]> {
    let rates = crate::cuda::copies_per_second(device.as_cuda_device()?).map_err(|e| {
        Error::Environment(format!("copies of 512 MiB on the GPU and to its host cannot be measured: {e}"))
    })?;
    Ok(rates.map(|rate| rate / 1e9))
}

#[cfg(not(feature = "cuda"))]
fn gpu_copies(_: &Device) -> Result<[f64; 3]> {
    bail!(Environment, "this longreel was built without CUDA")
}
