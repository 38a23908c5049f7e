//! Mirrors what kernels/rows.cuh declares, and sums over rows to make gradients of parameters.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, PushKernelArg, SyncOnDrop};
use candle_core::{CudaDevice, Result, Tensor};

use super::Kernel;
use super::tensor::{Lent, change};

/// Threads of a block of every kernel but attention's; rows of a run.
pub(crate) const THREADS: usize = 256;
pub(crate) const RUN: usize = 64;

/// `Rows`: how a tile's rows belong to samples.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TileRows {
    start: i64,
    tokens: i64,
}

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for TileRows {}

impl TileRows {
    /// Samples do not matter.
    pub const ANY: Self = Self { start: 0, tokens: 1 << 62 };

    /// Rows from `start` of the batch on, each sample having `tokens`.
    pub fn new(start: usize, tokens: usize) -> Self {
        Self { start: start as i64, tokens: tokens as i64 }
    }

    /// Of a tile of `n` rows: its first sample, how many it touches, and runs that each may have.
    pub fn samples(&self, n: usize) -> [usize; 3] {
        let sample = |row: i64| ((self.start + row) / self.tokens) as usize;
        let first = sample(0);
        [first, sample(n as i64 - 1) - first + 1, n.div_ceil(RUN)]
    }
}

/// `PerSample`: a row of elements for each sample, or one for all, or none.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PerSample {
    values: u64,
    stride: i64,
}

// SAFETY: an address on the device and a number, laid out as in C.
unsafe impl DeviceRepr for PerSample {}

impl PerSample {
    pub const NONE: Self = Self { values: 0, stride: 0 };

    /// From number `offset` of what is held, for a kernel of `stream`, and what is to be dropped once that is launched.
    pub fn at<'a>(lent: &'a Lent, stream: &'a CudaStream, offset: usize, stride: usize) -> Result<(Self, Reading<'a>)> {
        let (start, reading) = lent.view::<f32>()?.view_ptr(stream);
        Ok((Self { values: start + 4 * offset as u64, stride: stride as i64 }, reading))
    }
}

/// Elements that a kernel reads by their address: dropped after the launch, it records that they are read until then,
/// for other streams.
pub(crate) type Reading<'a> = SyncOnDrop<'a>;

/// Which of the sums that a kernel left in `parts` `[samples, runs, count, width]` goes to a gradient, and where there.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub which: usize,
    pub count: usize,
    pub width: usize,
    /// Samples and runs of `parts`.
    pub samples: usize,
    pub runs: usize,
    /// The number in the gradient where the first sample's begins, and from one sample's to the next.
    pub offset: usize,
    pub stride: usize,
}

/// Adds it to the gradient, run by run.
pub(crate) fn sum_runs(device: &CudaDevice, parts: &CudaSlice<f32>, gradient: Option<&Tensor>, sum: Sum) -> Result<()> {
    let Some(gradient) = gradient else { return Ok(()) };
    let kernel = Kernel::of(device, "sum_runs")?;
    change(gradient, |mut gradient| {
        let mut gradient = gradient.slice_mut(sum.offset..);
        let stride = sum.stride as i64;
        let [runs, which, count, width] = [sum.runs, sum.which, sum.count, sum.width].map(|n| n as i32);
        let mut call = kernel.call();
        call.arg(parts).arg(&mut gradient).arg(&stride).arg(&runs).arg(&which).arg(&count).arg(&width);
        // SAFETY: the kernel's arguments; the caller's sums are within `parts` and the gradient.
        unsafe { kernel.launch(call, [sum.width.div_ceil(THREADS), sum.samples, 1]) }?;
        Ok(())
    })
}
