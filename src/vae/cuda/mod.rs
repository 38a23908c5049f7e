//! Computes the VAE's layers on a GPU; frames stay there between them.

mod attend;
mod conv;

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits};
use candle_core::{CudaDevice, DType, Device, Tensor};
use half::bf16;
use std::ops::Range;

use super::backend::Backend;
use super::conv::Taps;
use super::cost::GPU_SCRATCH;
use super::frame::Frame;
use super::resample::{AverageDown, CopyUp};
use super::shards::RowShards;
use crate::attention::{Move, copy_rows};
use crate::cuda::{Elements, Lent, Matrix, add_assign, change, empty, ones, product, tensor, to_bf16};
use crate::ops::bytes::Rows;
use crate::{Result, bail};
use conv::{KernelWeights, RUN, Window};

/// Output pixels, and queries, of a tile are a multiple of this, so that tiles begin at multiples of 16 bytes.
const TILE: usize = 8;

/// A GPU, and whether operands of products are rounded to bf16 there.
#[derive(Clone)]
pub(super) struct Gpu {
    device: CudaDevice,
    dtype: DType,
}

/// Elements that operands are made of.
trait Operand: CudaDType + DeviceRepr + ValidAsZeroBits + 'static {
    const PACK: &'static str;
    const SOFTMAX: &'static str;
    fn elements(view: CudaView<'_, Self>) -> Elements<'_>;
}

impl Operand for f32 {
    const PACK: &'static str = "conv_pack_f32";
    const SOFTMAX: &'static str = "softmax_f32";
    fn elements(view: CudaView<'_, Self>) -> Elements<'_> {
        Elements::F32(view)
    }
}

impl Operand for bf16 {
    const PACK: &'static str = "conv_pack_bf16";
    const SOFTMAX: &'static str = "softmax_bf16";
    fn elements(view: CudaView<'_, Self>) -> Elements<'_> {
        Elements::Bf16(view)
    }
}

macro_rules! on_operand {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            ::candle_core::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

use on_operand;

/// The rows `rows` of a row-major matrix of `columns` in a contiguous tensor.
fn rows_of<'a, T: Operand>(
    x: &'a Lent,
    rows: Range<usize>,
    columns: usize,
    transposed: bool,
) -> candle_core::Result<Matrix<'a>> {
    let values = x.view::<T>()?.slice(rows.start * columns..rows.end * columns);
    Ok(Matrix { values: T::elements(values), rows: rows.len(), columns, transposed })
}

impl Gpu {
    pub fn new(device: &CudaDevice, bf16: bool) -> Self {
        Self { device: device.clone(), dtype: if bf16 { DType::BF16 } else { DType::F32 } }
    }

    /// Values from memory, in f32.
    fn of_memory(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, &Device::Cuda(self.device.clone()))?)
    }

    /// An operand of products from memory.
    fn operand_of_memory(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        self.operand(&self.of_memory(values, shape)?)
    }

    /// Values as products take them.
    fn operand(&self, x: &Tensor) -> Result<Tensor> {
        match self.dtype {
            DType::BF16 => {
                let lent = Lent::new(x);
                let rounded = to_bf16(&self.device, &lent.view::<f32>()?.slice(..x.elem_count()))?;
                Ok(tensor(rounded, x.dims(), &self.device))
            }
            _ => Ok(x.clone()),
        }
    }

    /// A tensor of f32, to be written by a product that does not add.
    fn room(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(tensor(empty::<f32>(&self.device, shape.iter().product())?, shape, &self.device))
    }

    /// `to`, of rows as long as `row`, becomes or is increased by `row` in each.
    fn put_row(&self, to: &mut CudaViewMut<'_, f32>, row: &Tensor, add: bool) -> candle_core::Result<()> {
        let (columns, row) = (row.elem_count(), Lent::new(row));
        let rows = to.len() / columns;
        let ones = ones(&self.device, rows)?;
        let ones = Lent::new(&ones);
        product(
            &self.device,
            &rows_of::<f32>(&ones, 0..rows, 1, false)?,
            &rows_of::<f32>(&row, 0..1, columns, false)?,
            to,
            add,
        )
    }
}

/// Rows of a tile, of `bytes` each in the scratch.
fn tile_of(bytes: usize, rows: usize) -> usize {
    (GPU_SCRATCH / bytes / TILE * TILE).max(TILE).min(rows.next_multiple_of(TILE))
}

/// Candle's kernels count elements in 32 bits.
fn check_size(elements: usize) -> Result<()> {
    if elements > i32::MAX as usize {
        bail!(Shape, "a frame has {elements} features in one layer of the VAE, 2^31 or more: work on tiles (--tile)");
    }
    Ok(())
}

impl Backend for Gpu {
    type Values = Tensor;
    type Row = Tensor;
    type Packed = Tensor; // [rows + 2, width, channels]
    type Weights = KernelWeights;
    type Matrix = Tensor;

    fn upload(&self, frame: Frame) -> Result<Frame<Tensor>> {
        let Frame { rows, width, channels, .. } = frame;
        let shape = frame.with(channels, ());
        Ok(shape.with(channels, self.of_memory(frame.values, &[rows, width, channels])?))
    }

    fn download(&self, frame: Frame<Tensor>) -> Result<Frame> {
        Ok(frame.with(frame.channels, frame.values.flatten_all()?.to_vec1()?))
    }

    fn row(&self, values: Vec<f32>) -> Result<Tensor> {
        let n = values.len();
        self.of_memory(values, &[n])
    }

    fn weights(&self, values: &[f32], [out, channels, frames, rows, columns]: [usize; 5]) -> Result<KernelWeights> {
        let taps = rows * columns;
        let run = (taps * channels).next_multiple_of(RUN);
        let mut matrix = vec![0f32; frames * run * out];
        for (o, weights) in values.chunks_exact(channels * frames * taps).enumerate() {
            for (c, weights) in weights.chunks_exact(frames * taps).enumerate() {
                for (i, weight) in weights.iter().enumerate() {
                    matrix[(i / taps * run + i % taps * channels + c) * out + o] = *weight;
                }
            }
        }
        let values = self.operand_of_memory(matrix, &[frames * run, out])?;
        Ok(KernelWeights { values, size: [frames, rows, columns], out })
    }

    fn matrix(&self, values: Vec<f32>, shape: [usize; 2]) -> Result<Tensor> {
        self.operand_of_memory(values, &shape)
    }

    fn repeat(&self, pixel: &Tensor, pixels: usize) -> Result<Tensor> {
        let room = self.room(&[pixels * pixel.elem_count()])?;
        change(&room, |mut room| self.put_row(&mut room, pixel, false))?;
        Ok(room)
    }

    fn add_row(&self, to: &mut Frame<Tensor>, row: &Tensor) -> Result<()> {
        Ok(change(&to.values, |mut to| self.put_row(&mut to, row, true))?)
    }

    fn add(&self, to: &mut Tensor, values: &Tensor) -> Result<()> {
        Ok(add_assign(&to.flatten_all()?, &values.flatten_all()?)?)
    }

    fn part(&self, x: &Frame<Tensor>, rows: Range<usize>, columns: Range<usize>) -> Result<Tensor> {
        let (to, row) = (self.room(&[rows.len() * columns.len() * x.channels])?, 4 * x.channels * columns.len());
        let line = 4 * x.width * x.channels;
        let base = rows.start * line + columns.start * 4 * x.channels;
        let from = Rows { base, counts: [rows.len(), 1, 1], strides: [line, 0, 0], row };
        copy_rows(&x.values, &to, &Move { rows: from, base: 0, strides: [row, 0, 0] })?;
        Ok(to)
    }

    fn gather(&self, values: Tensor, shards: &dyn RowShards) -> Result<Tensor> {
        if shards.is_whole() {
            return Ok(values);
        }
        let all = shards.gather(&values.flatten_all()?.to_vec1::<f32>()?)?;
        let n = all.len();
        self.of_memory(all, &[n])
    }

    fn pack(&self, x: &Frame<Tensor>, norm: Option<&Tensor>, near: Option<&dyn RowShards>) -> Result<Tensor> {
        let neighbours = match near.filter(|shards| !shards.is_whole()) {
            Some(shards) => {
                let row = |row: usize| -> Result<Vec<f32>> { Ok(self.part(x, row..row + 1, 0..x.width)?.to_vec1()?) };
                shards.neighbours([&row(0)?, &row(x.rows - 1)?])?
            }
            None => [None, None],
        };
        on_operand!(self.dtype, T => self.pack_as::<T>(x, norm, neighbours))
    }

    fn convolve(&self, taps: &Taps<Self>, out: &mut Frame<Tensor>) -> Result<()> {
        let inputs = || taps.inputs.iter().copied().flatten().collect();
        match taps.phases {
            [(weights, origin)] => {
                let window = Window { inputs: inputs(), origin: *origin, stride: taps.stride, out_width: out.width };
                change(
                    &out.values,
                    |mut out| on_operand!(self.dtype, T => self.convolve_as::<T>(weights, &window, 0, &mut out)),
                )?;
            }
            phases => {
                for (i, (weights, origin)) in phases.iter().enumerate() {
                    let window =
                        Window { inputs: inputs(), origin: *origin, stride: taps.stride, out_width: out.width / 2 };
                    self.convolve_phase(weights, &window, [i / 2, i % 2], out)?;
                }
            }
        }
        Ok(())
    }

    fn multiply(&self, x: &Frame<Tensor>, matrix: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (n, out) = (x.pixels(), bias.elem_count());
        let sums = self.repeat(bias, n)?;
        let operand = self.operand(&x.values)?;
        let (x_lent, matrix) = (Lent::new(&operand), Lent::new(matrix));
        change(&sums, |mut sums| {
            on_operand!(self.dtype, T => {
                let x = rows_of::<T>(&x_lent, 0..n, x.channels, false)?;
                product(&self.device, &x, &rows_of::<T>(&matrix, 0..out, x.columns, true)?, &mut sums, true)
            })
        })?;
        Ok(sums)
    }

    fn normed(&self, x: &Frame<Tensor>, factors: &Tensor) -> Result<Tensor> {
        let y = self.room(&[x.pixels() * x.channels])?;
        let lent = Lent::new(&x.values);
        change(&y, |mut y| self.pack_pixels::<f32>(&lent.view()?, &mut y, Some(factors), x.channels, false))?;
        Ok(y)
    }

    fn attend(&self, query: &Frame<Tensor>, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let [q, k, v] = [&query.values, key, value].map(|x| self.operand(x));
        on_operand!(self.dtype, T => self.attend_as::<T>(&q?, &k?, &v?, query.channels))
    }

    fn mean(
        &self,
        groups: &AverageDown<Self>,
        frames: [Option<&Frame<Tensor>>; 2],
        skip: [usize; 2],
        [rows, width]: [usize; 2],
    ) -> Result<Tensor> {
        let (time, space) = (groups.time, groups.space);
        let Some(like) = frames.into_iter().flatten().next() else { bail!(Shape, "a mean of no frame") };
        let channels = like.channels;
        check_size(time * rows * width * space * space * channels)?;
        let squares = |frame: Option<&Frame<Tensor>>| -> Result<Tensor> {
            let shape = [rows, space, width, space, channels];
            let Some(x) = frame else {
                return Ok(Tensor::zeros(&shape, DType::F32, &Device::Cuda(self.device.clone()))?);
            };
            let [y, column] = skip;
            Ok(self.part(x, y..y + rows * space, column..column + width * space)?.reshape(&shape)?)
        };
        let frames: Vec<Tensor> = frames[..time].iter().map(|frame| squares(*frame)).collect::<Result<_>>()?;
        // [time, row, dy, column, dx, channel] to [row, column, channel, time, dy, dx]: groups lie together.
        let all = Tensor::stack(&frames, 0)?.permute([1, 3, 5, 0, 2, 4])?.contiguous()?;
        let n = groups.per_mean(channels);
        let sums = all.reshape((rows * width * groups.out, n))?.sum(1)?;
        Ok((sums / n as f64)?)
    }

    fn spread(&self, groups: &CopyUp, x: &Frame<Tensor>, time: usize) -> Result<Tensor> {
        let (space, out, repeats) = (groups.space, groups.out, groups.repeats(x.channels));
        let (rows, width) = (x.rows, x.width);
        check_size(rows * width * x.channels * repeats)?;
        let copies =
            x.values.reshape((rows, width, x.channels, 1))?.broadcast_as((rows, width, x.channels, repeats))?;
        let all = copies.contiguous()?.reshape(&[rows, width, out, groups.time, space, space][..])?;
        let frame = all.narrow(3, time, 1)?.squeeze(3)?; // [row, column, channel, dy, dx]
        Ok(frame.permute([0, 3, 1, 4, 2])?.contiguous()?.flatten_all()?)
    }

    fn bytes_of_values(values: &Tensor) -> usize {
        bytes(values)
    }

    fn bytes_of_packed(packed: &Tensor) -> usize {
        bytes(packed)
    }

    fn bytes_of_weights(weights: &KernelWeights) -> usize {
        bytes(&weights.values)
    }

    fn bytes_of_matrix(matrix: &Tensor) -> usize {
        bytes(matrix)
    }
}

fn bytes(x: &Tensor) -> usize {
    x.elem_count() * x.dtype().size_in_bytes()
}
