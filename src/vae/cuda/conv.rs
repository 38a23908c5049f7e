//! Packs frames and convolves them on a GPU: kernels/conv.cu gathers what a tile of output pixels sees (im2col), and
//! cuBLAS multiplies it with the weights.

use candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::{Error, Tensor};

use super::{Gpu, Operand, on_operand, rows_of, tile_of};
use crate::Result;
use crate::attention::{Move, copy_rows};
use crate::cuda::{Kernel, Lent, Matrix, THREADS, change, empty, product, tensor};
use crate::ops::bytes::Rows;
use crate::vae::cost::GPU_SCRATCH;
use crate::vae::frame::Frame;

/// Elements of a row of the gathered matrix are a multiple of this for each frame, so that each frame's part of the
/// weights begins at a multiple of 16 bytes.
pub(super) const RUN: usize = 8;

/// Pixels that a block of conv_pack takes.
const PIXELS: usize = THREADS / 32;

/// A convolution's weights, `[frames, RUN-padded rows x columns x channels, out]`.
pub(in crate::vae) struct KernelWeights {
    pub(super) values: Tensor,
    /// Frames, rows and columns of the kernel.
    pub(super) size: [usize; 3],
    pub(super) out: usize,
}

/// `Taps` of kernels/conv.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct TapsInUnits {
    frames: i32,
    rows: i32,
    columns: i32,
    row: i32,
    column: i32,
    stride: i32,
    width: i32,
    channels: i32,
    out_width: i32,
    run: i32,
}

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for TapsInUnits {}

/// What a convolution sees: the frames that are there, the oldest first, and where its taps lie.
pub(super) struct Window<'a> {
    pub inputs: Vec<&'a Tensor>,
    pub origin: [usize; 2],
    pub stride: usize,
    pub out_width: usize,
}

impl Gpu {
    /// Packs pixels of `channels`: with `factors` scaled to norm 1 and multiplied by them, with `silu` SiLU of that.
    pub(super) fn pack_pixels<T: Operand>(
        &self,
        x: &CudaView<'_, f32>,
        y: &mut CudaViewMut<'_, T>,
        factors: Option<&Tensor>,
        channels: usize,
        silu: bool,
    ) -> candle_core::Result<()> {
        let n = x.len() / channels;
        let kernel = Kernel::of(&self.device, T::PACK)?;
        let stream = self.device.cuda_stream();
        let lent = factors.map(Lent::new);
        let factors = lent.as_ref().map(|lent| lent.view::<f32>()).transpose()?;
        let held = factors.as_ref().map(|factors| factors.device_ptr(&stream));
        let factors = held.as_ref().map_or(0, |(at, _)| *at);
        let (count, width, silu) = (n as i64, channels as i32, i32::from(silu));
        let mut call = kernel.call();
        call.arg(x).arg(y).arg(&factors).arg(&count).arg(&width).arg(&silu);
        // SAFETY: the kernel's arguments: n pixels of both, a factor a channel or a null pointer.
        unsafe { kernel.launch(call, [n.div_ceil(PIXELS), 1, 1]) }
    }

    /// A frame between the rows above and below, zeros where there are none.
    pub(super) fn pack_as<T: Operand>(
        &self,
        x: &Frame<Tensor>,
        norm: Option<&Tensor>,
        neighbours: [Option<Vec<f32>>; 2],
    ) -> Result<Tensor> {
        let line = x.width * x.channels;
        let mut y = empty::<T>(&self.device, (x.rows + 2) * line)?;
        let lent = Lent::new(&x.values);
        let whole = lent.view::<f32>()?;
        self.pack_pixels(&whole, &mut y.slice_mut(line..(x.rows + 1) * line), norm, x.channels, true)?;
        for (row, values) in [0, x.rows + 1].into_iter().zip(neighbours) {
            let mut y = y.slice_mut(row * line..(row + 1) * line);
            match values {
                Some(values) => {
                    let values = self.of_memory(values, &[line])?;
                    let lent = Lent::new(&values);
                    self.pack_pixels(&lent.view::<f32>()?, &mut y, norm, x.channels, true)?;
                }
                None => {
                    let zeroed = self.device.cuda_stream().memset_zeros(&mut y);
                    zeroed.map_err(|e| Error::msg(format!("a row of {line} elements cannot be set to zero: {e}")))?;
                }
            }
        }
        Ok(tensor(y, &[x.rows + 2, x.width, x.channels][..], &self.device))
    }

    /// `out += the convolution` of output pixels in rows of `out_width`, of which `out` are those from number `first`
    /// on, a tile at a time.
    pub(super) fn convolve_as<T: Operand>(
        &self,
        weights: &KernelWeights,
        taps: &Window,
        first: usize,
        out: &mut CudaViewMut<'_, f32>,
    ) -> candle_core::Result<()> {
        let [_, rows, columns] = weights.size;
        let (_, width, channels) = taps.inputs[0].dims3()?;
        let run = (rows * columns * channels).next_multiple_of(RUN);
        let inner = taps.inputs.len() * run;
        // Of a clip's first frames some are missing, the oldest; their part of the weights is the first.
        let missing = (weights.size[0] - taps.inputs.len()) * run;
        let (pixels, out_channels) = (out.len() / weights.out, weights.out);
        let tile = tile_of(inner * size_of::<T>(), pixels);
        let mut gathered = empty::<T>(&self.device, tile * inner)?;
        let values = Lent::new(&weights.values);
        let lent: Vec<Lent> = taps.inputs.iter().map(|input| Lent::new(input)).collect();
        let views: Vec<CudaView<T>> = lent.iter().map(|input| input.view::<T>()).collect::<candle_core::Result<_>>()?;
        // The largest piece, in elements, that pixels and rows are multiples of; memory from the GPU is aligned.
        let (name, unit) = match 16 / size_of::<T>() {
            wide if channels.is_multiple_of(wide) => ("conv_gather_16", wide),
            _ if size_of::<T>() == 4 => ("conv_gather_4", 1),
            _ => ("conv_gather_2", 1),
        };
        let kernel = Kernel::of(&self.device, name)?;
        let [row, column] = taps.origin;
        let units = [taps.inputs.len(), rows, columns, row, column, taps.stride, width, channels / unit];
        let [frames, rows, columns, row, column, stride, width, channels] = units.map(|n| n as i32);
        let (out_width, units_of_run) = (taps.out_width as i32, (run / unit) as i32);
        let in_units =
            TapsInUnits { frames, rows, columns, row, column, stride, width, channels, out_width, run: units_of_run };
        let newest = views.len() - 1;
        for start in (0..pixels).step_by(tile) {
            let m = tile.min(pixels - start);
            let (begin, n) = ((first + start) as i64, (m * inner / unit) as i32);
            {
                let mut call = kernel.call();
                call.arg(&views[0]).arg(&views[newest.min(1)]).arg(&views[newest]).arg(&mut gathered);
                call.arg(&begin).arg(&in_units).arg(&n);
                // SAFETY: the kernel's arguments; packed frames have a border row on each side, and the tile has room.
                unsafe { kernel.launch(call, [(m * inner / unit).div_ceil(THREADS), 1, 1]) }?;
            }
            let a =
                Matrix { values: T::elements(gathered.slice(..m * inner)), rows: m, columns: inner, transposed: false };
            let b = rows_of::<T>(&values, missing..missing + inner, out_channels, false)?;
            let mut out = out.slice_mut(start * out_channels..(start + m) * out_channels);
            product(&self.device, &a, &b, &mut out, true)?;
        }
        Ok(())
    }

    /// One of four phases, onto every second row and column of `out` from (a, b) on: a band of rows at a time, whose
    /// sums lie side by side meanwhile.
    pub(super) fn convolve_phase(
        &self,
        weights: &KernelWeights,
        taps: &Window,
        [a, b]: [usize; 2],
        out: &Frame<Tensor>,
    ) -> Result<()> {
        let (width, channels) = (taps.out_width, out.channels);
        let (rows, row) = (out.rows / 2, 4 * channels);
        let band = (GPU_SCRATCH / (width * row)).clamp(1, rows.max(1));
        for first in (0..rows).step_by(band) {
            let n = band.min(rows - first);
            let sums = self.room(&[n * width, channels])?;
            let together = Rows { base: 0, counts: [n, 1, width], strides: [width * row, 0, row], row };
            let base = ((2 * first + a) * out.width + b) * row;
            let apart = Rows { base, strides: [2 * out.width * row, 0, 2 * row], ..together };
            copy_rows(&out.values, &sums, &Move { rows: apart, base: 0, strides: together.strides })?;
            change(
                &sums,
                |mut sums| on_operand!(self.dtype, T => self.convolve_as::<T>(weights, taps, first * width, &mut sums)),
            )?;
            copy_rows(&sums, &out.values, &Move { rows: together, base, strides: apart.strides })?;
        }
        Ok(())
    }
}
