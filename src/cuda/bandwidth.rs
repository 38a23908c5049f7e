//! Measures a GPU's copies: within its memory, and from and to pinned memory of the host, where the stash is kept.

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::DriverError;
use std::time::Instant;

/// Bytes of each copy: far more than a GPU's caches hold.
const COPIED: usize = 512 << 20;
/// Copies that are timed together, after one that is not timed.
const RUNS: usize = 8;

/// Bytes/s of copies on the GPU (read and written), from the host's pinned memory to the GPU, and back.
///
/// # Errors
/// There is no room for the copies, or the driver fails.
pub(crate) fn copies_per_second(device: &CudaDevice) -> Result<[f64; 3], DriverError> {
    let stream = device.cuda_stream();
    let mut from = stream.alloc_zeros::<u8>(COPIED)?;
    let mut to = stream.alloc_zeros::<u8>(COPIED)?;
    // SAFETY: bytes of any value are bytes, and all are written by the slice's fill before they are read.
    let mut pinned = unsafe { stream.context().alloc_pinned_with_flags::<u8>(COPIED, 0) }?;
    pinned.as_mut_slice()?.fill(1);
    let rate = |bytes: usize, copy: &mut dyn FnMut() -> Result<(), DriverError>| -> Result<f64, DriverError> {
        copy()?;
        stream.synchronize()?;
        let start = Instant::now();
        for _ in 0..RUNS {
            copy()?;
        }
        stream.synchronize()?;
        Ok((RUNS * bytes) as f64 / start.elapsed().as_secs_f64())
    };
    Ok([
        rate(2 * COPIED, &mut || stream.memcpy_dtod(&from, &mut to))?,
        rate(COPIED, &mut || stream.memcpy_htod(&pinned, &mut from))?,
        rate(COPIED, &mut || stream.memcpy_dtoh(&to, &mut pinned))?,
    ])
}
