//! Measures what a GPU can do at most: products by cuBLAS, and bytes within its memory, from and to its host.

use candle_core::{Device, Tensor};

use super::{Report, peak_of, seconds};
use crate::config::Compute;
use crate::simd::Isa;
use crate::{Error, Result};

/// FLOP/s that `device` reaches in `dtype`: these threads on `isa`, or a GPU in large products by cuBLAS.
pub fn peak_on(device: &Device, isa: Isa, dtype: Compute) -> Result<f64> {
    if device.is_cpu() {
        return Ok(peak_of(isa, dtype));
    }
    const N: usize = 8192;
    const RUNS: usize = 8;
    let x = Tensor::rand(-1f32, 1f32, (N, N), device)?.to_dtype(dtype.dtype())?;
    let products = |runs| -> Result<()> {
        (0..runs).try_for_each(|_| x.matmul(&x).map(drop))?;
        Ok(device.synchronize()?)
    };
    products(1)?;
    Ok((RUNS * 2 * N.pow(3)) as f64 / seconds(|| products(RUNS))?)
}

/// Measures it.
pub fn run(device: &Device) -> Result<Report> {
    let products = |dtype| Ok::<_, Error>(peak_on(device, Isa::best(), dtype)? / 1e9);
    let [copy, from_host, to_host] = copies(device)?;
    Ok(Report::new("peak", facts![path = "cuda"])
        .with("f32_gflops", "products in f32, GFLOP/s", products(Compute::F32)?)
        .with("bf16_gflops", "products in bf16, GFLOP/s", products(Compute::Bf16)?)
        .with("copy_gb_s", "copying on the GPU, GB/s", copy)
        .with("from_host_gb_s", "from pinned memory, GB/s", from_host)
        .with("to_host_gb_s", "to pinned memory, GB/s", to_host))
}

/// GB/s of copies on the GPU (read and written), from the host's pinned memory to the GPU, and back.
#[cfg(feature = "cuda")]
fn copies(device: &Device) -> Result<[f64; 3]> {
    let rates = crate::cuda::copies_per_second(device.as_cuda_device()?).map_err(|e| {
        Error::Environment(format!("copies of 512 MiB on the GPU and to its host cannot be measured: {e}"))
    })?;
    Ok(rates.map(|rate| rate / 1e9))
}

#[cfg(not(feature = "cuda"))]
fn copies(_: &Device) -> Result<[f64; 3]> {
    crate::bail!(Environment, "this longreel was built without CUDA")
}
