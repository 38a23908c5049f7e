//! Computes the VAE's layers on the CPU, with the instruction set and the arithmetic that it is given.

use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::backend::Backend;
use super::conv::Taps;
use super::frame::Frame;
use super::resample::{AverageDown, CopyUp};
use super::shards::RowShards;
use super::{Arithmetic, Result};
use crate::ops::products::{Packed, Products, WeightMatrix, WeightValues};
use crate::ops::{add_into, softmax};
use crate::simd::conv::{ConvWeights, Convolution, Phase};
use crate::simd::packed_frame::{Activation, PackedFrame};
use crate::simd::product::Epilogue;
use crate::simd::uninit_vec::UninitVec;
use crate::simd::with_isa;

/// Scores that attention holds at a time, in elements.
const SCORES: usize = 4 << 20;

/// Pixels that a thread takes at a time.
const RUN: usize = 256;

macro_rules! on_isa {
    ($arithmetic:expr, $S:ident => $body:expr) => {
        if $arithmetic.bf16 {
            with_isa!($arithmetic.isa, true, $S => $body)
        } else {
            with_isa!($arithmetic.isa, false, $S => $body)
        }
    };
}

/// The CPU.
#[derive(Clone, Copy)]
pub(super) struct Cpu(pub Arithmetic);

/// A matrix as it is, and packed once it is used.
pub(super) struct Matrix {
    values: Vec<f32>,
    packed: Packed,
}

impl Cpu {
    fn operand<'a>(self, values: &'a [f32], [out, inner]: [usize; 2], packed: &'a Packed) -> WeightMatrix<'a, f32> {
        let Arithmetic { isa, bf16 } = self.0;
        WeightMatrix { values: WeightValues::Same(values), out, inner, isa, bf16, packed }
    }
}

impl Backend for Cpu {
    type Values = Vec<f32>;
    type Row = Arc<Vec<f32>>;
    type Packed = Arc<PackedFrame>;
    type Weights = ConvWeights;
    type Matrix = Matrix;

    fn upload(&self, frame: Frame) -> Result<Frame> {
        Ok(frame)
    }

    fn download(&self, frame: Frame) -> Result<Frame> {
        Ok(frame)
    }

    fn row(&self, values: Vec<f32>) -> Result<Arc<Vec<f32>>> {
        Ok(Arc::new(values))
    }

    fn weights(&self, values: &[f32], shape: [usize; 5]) -> Result<ConvWeights> {
        Ok(on_isa!(self.0, S => ConvWeights::pack::<S>(values, shape)))
    }

    fn matrix(&self, values: Vec<f32>, _: [usize; 2]) -> Result<Matrix> {
        Ok(Matrix { values, packed: Packed::default() })
    }

    fn repeat(&self, pixel: &Arc<Vec<f32>>, pixels: usize) -> Result<Vec<f32>> {
        let mut values = UninitVec::new(pixels * pixel.len());
        values.chunks(RUN * pixel.len()).for_each(|run| {
            let run = run.filled(0.0);
            run.chunks_exact_mut(pixel.len()).for_each(|to| to.copy_from_slice(pixel));
        });
        Ok(values.into_vec())
    }

    fn add_row(&self, to: &mut Frame, row: &Arc<Vec<f32>>) -> Result<()> {
        to.values.par_chunks_mut(RUN * row.len()).for_each(|run| {
            let pixels = run.chunks_exact_mut(row.len());
            pixels.for_each(|pixel| pixel.iter_mut().zip(&**row).for_each(|(x, b)| *x += b));
        });
        Ok(())
    }

    fn add(&self, to: &mut Vec<f32>, values: &Vec<f32>) -> Result<()> {
        debug_assert_eq!(to.len(), values.len());
        add_into(to, values);
        Ok(())
    }

    fn part(&self, x: &Frame, rows: Range<usize>, columns: Range<usize>) -> Result<Vec<f32>> {
        Ok(x.part(rows, columns).values)
    }

    fn gather(&self, values: Vec<f32>, shards: &dyn RowShards) -> Result<Vec<f32>> {
        if shards.is_whole() { Ok(values) } else { shards.gather(&values) }
    }

    fn pack(&self, x: &Frame, norm: Option<&Arc<Vec<f32>>>, near: Option<&dyn RowShards>) -> Result<Arc<PackedFrame>> {
        let neighbours = match near.filter(|shards| !shards.is_whole() && x.rows > 0) {
            Some(shards) => shards.neighbours([x.row(0), x.row(x.rows - 1)])?,
            None => [None, None],
        };
        let neighbours = [0, 1].map(|side| neighbours[side].as_deref());
        let activation = norm.map_or(Activation::None, |norm| Activation::NormSilu(norm));
        let shape = [x.width, x.channels];
        Ok(Arc::new(on_isa!(self.0, S => PackedFrame::pack::<S>(&x.values, shape, neighbours, activation))))
    }

    fn convolve(&self, taps: &Taps<Self>, out: &mut Frame) -> Result<()> {
        if out.rows == 0 {
            return Ok(()); // a band may have no rows of this frame
        }
        let phases: Vec<Phase> = taps.phases.iter().map(|&(weights, origin)| Phase { weights, origin }).collect();
        let inputs: Vec<_> = taps.inputs.iter().map(|input| input.map(|input| &**input)).collect();
        let convolution = Convolution { phases: &phases, inputs: &inputs, stride: taps.stride };
        let shape = [out.width, out.channels];
        on_isa!(self.0, S => convolution.add_to::<S>(&mut out.values, shape));
        Ok(())
    }

    fn multiply(&self, x: &Frame, matrix: &Matrix, bias: &Arc<Vec<f32>>) -> Result<Vec<f32>> {
        if x.rows == 0 {
            return Ok(vec![]);
        }
        let operand = self.operand(&matrix.values, [bias.len(), x.channels], &matrix.packed);
        let [values, _] = f32::forward(&operand, &x.values, x.pixels(), None, false, &Bias(bias));
        Ok(values)
    }

    fn normed(&self, x: &Frame, factors: &Arc<Vec<f32>>) -> Result<Vec<f32>> {
        let mut values = x.values.clone();
        values.par_chunks_exact_mut(x.channels).for_each(|pixel| {
            let norm = pixel.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            pixel.iter_mut().zip(&**factors).for_each(|(x, factor)| *x = *x / norm * factor);
        });
        Ok(values)
    }

    fn attend(&self, query: &Frame, key: &Vec<f32>, value: &Vec<f32>) -> Result<Vec<f32>> {
        let inner = query.channels;
        let keys = key.len() / inner;
        let (packed_keys, packed_values) = (Packed::default(), Packed::default());
        let key = self.operand(key, [keys, inner], &packed_keys);
        let value = self.operand(value, [keys, inner], &packed_values);
        let queries = (SCORES / keys.max(1)).max(1);
        let mut out = Vec::with_capacity(query.values.len());
        for block in query.values.chunks(queries * inner) {
            let n = block.len() / inner;
            let [mut scores, _] = f32::forward(&key, block, n, None, false, &Scaled(1.0 / (inner as f32).sqrt()));
            scores.par_chunks_exact_mut(keys).for_each(softmax);
            out.extend(f32::input_gradient(&value, &scores, n, None));
        }
        Ok(out)
    }

    fn mean(
        &self,
        groups: &AverageDown<Self>,
        frames: [Option<&Frame>; 2],
        skip: [usize; 2],
        [rows, width]: [usize; 2],
    ) -> Result<Vec<f32>> {
        let &AverageDown { space, time, out: channels, .. } = groups;
        let Some(like) = frames.into_iter().flatten().next() else { return Ok(vec![]) };
        let (x_width, x_channels) = (like.width, like.channels);
        let per_mean = groups.per_mean(x_channels);
        let mut values = vec![0f32; rows * width * channels];
        for (i, out) in values.chunks_exact_mut(channels).enumerate() {
            let (row, column) = (skip[0] + i / width * space, skip[1] + i % width * space);
            for (c, dt) in (0..x_channels).flat_map(|c| (0..time).map(move |dt| (c, dt))) {
                let Some(frame) = frames[dt] else { continue };
                for (dy, dx) in (0..space).flat_map(|dy| (0..space).map(move |dx| (dy, dx))) {
                    let value = frame.values[((row + dy) * x_width + column + dx) * x_channels + c];
                    out[(((c * time + dt) * space + dy) * space + dx) / per_mean] += value;
                }
            }
            out.iter_mut().for_each(|x| *x /= per_mean as f32);
        }
        Ok(values)
    }

    fn spread(&self, groups: &CopyUp, x: &Frame, time: usize) -> Result<Vec<f32>> {
        let (space, repeats) = (groups.space, groups.repeats(x.channels));
        let (rows, width) = (space * x.rows, space * x.width);
        let mut values = Vec::with_capacity(rows * width * groups.out);
        for (y, column) in (0..rows).flat_map(|y| (0..width).map(move |column| (y, column))) {
            let pixel = &x.values[(y / space * x.width + column / space) * x.channels..][..x.channels];
            let (b, c) = (y % space, column % space);
            let channel = |o: usize| (((o * groups.time + time) * space + b) * space + c) / repeats;
            values.extend((0..groups.out).map(|o| pixel[channel(o)]));
        }
        Ok(values)
    }

    fn bytes_of_values(values: &Vec<f32>) -> usize {
        4 * values.len()
    }

    fn bytes_of_packed(packed: &Arc<PackedFrame>) -> usize {
        packed.bytes()
    }

    fn bytes_of_weights(weights: &ConvWeights) -> usize {
        weights.bytes()
    }

    fn bytes_of_matrix(matrix: &Matrix) -> usize {
        4 * matrix.values.len()
    }
}

/// Adds a column's bias.
struct Bias<'a>(&'a [f32]);

impl Epilogue<f32> for Bias<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, column: usize) {
        out.iter_mut().zip(&self.0[column..]).for_each(|(x, b)| *x += b);
    }
}

/// Multiplies scores.
struct Scaled(f32);

impl Epilogue<f32> for Scaled {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, _: usize) {
        out.iter_mut().for_each(|x| *x *= self.0);
    }
}
