//! The VAE's layers as one type, and how a frame streams through a list of them.

use super::backend::Backend;
use super::conv::{CausalConv, Double, Halve, Kernel, Pointwise, TimeConv};
use super::frame::Frame;
use super::resample::{AverageDown, CopyUp, DoubleTime, HalveTime};
use super::residual::ResidualBlock;
use super::shards::RowShards;
use super::spec::{LayerSpec, TensorSpec};
use crate::Result;

/// One layer, with the frames that it remembers of its clip.
#[derive(Clone)]
pub(super) enum Layer<B: Backend> {
    Pointwise(Pointwise<B>),
    /// A causal convolution, with norm and SiLU before it or not.
    Conv(CausalConv<B>),
    Residual(ResidualBlock<B>),
    HalveSpace(Halve<B>),
    HalveTime(HalveTime<B>),
    DoubleTime(DoubleTime<B>),
    DoubleSpace(Double<B>),
    /// Layers with a shortcut around them.
    Down(Vec<Layer<B>>, AverageDown<B>),
    Up(Vec<Layer<B>>, CopyUp),
}

/// Reads a tensor, of which the shape has been checked.
pub(super) type Read<'a> = dyn FnMut(&TensorSpec) -> Result<Vec<f32>> + 'a;

impl<B: Backend> Layer<B> {
    /// Builds a layer of its tensors.
    pub fn load(spec: &LayerSpec, on: &B, read: &mut Read) -> Result<Self> {
        let tensors = match spec {
            LayerSpec::Down(..) | LayerSpec::Up(..) => vec![],
            _ => spec.tensors(),
        };
        let mut tensors = tensors.iter();
        let mut next = || {
            let tensor = tensors.next().expect("a tensor for each of a layer's parts");
            Ok::<_, crate::Error>((read(tensor)?, tensor.shape.as_slice()))
        };
        let norm = |(gamma, _): (Vec<f32>, &[usize])| on.row(factors(gamma));
        let kernel = |(weights, shape): (Vec<f32>, &[usize]), bias: Vec<f32>| match *shape {
            [out, c, rows, columns] => Kernel::new(on, &weights, [out, c, 1, rows, columns], bias),
            [out, c, frames, rows, columns] => Kernel::new(on, &weights, [out, c, frames, rows, columns], bias),
            _ => unreachable!("a kernel has four or five dimensions"),
        };
        Ok(match spec {
            LayerSpec::Pointwise(..) => Self::Pointwise(Pointwise::new(on, next()?.0, next()?.0)?),
            LayerSpec::Conv(..) => Self::Conv(CausalConv::new(kernel(next()?, next()?.0)?, None)),
            LayerSpec::Head(..) => {
                let norm = norm(next()?)?;
                Self::Conv(CausalConv::new(kernel(next()?, next()?.0)?, Some(norm)))
            }
            LayerSpec::Residual(_, [c, out]) => {
                let norm1 = norm(next()?)?;
                let conv1 = CausalConv::new(kernel(next()?, next()?.0)?, Some(norm1));
                let norm2 = norm(next()?)?;
                let conv2 = CausalConv::new(kernel(next()?, next()?.0)?, Some(norm2));
                let shortcut = match c == out {
                    true => None,
                    false => Some(Pointwise::new(on, next()?.0, next()?.0)?),
                };
                Self::Residual(ResidualBlock { conv1, conv2, shortcut })
            }
            LayerSpec::HalveSpace(..) => Self::HalveSpace(Halve::new(kernel(next()?, next()?.0)?)),
            LayerSpec::DoubleSpace(_, [c, out]) => {
                let (weights, bias) = (next()?.0, next()?.0);
                Self::DoubleSpace(Double::new(on, &weights, [*out, *c], bias)?)
            }
            LayerSpec::HalveTime(..) => Self::HalveTime(HalveTime::new(TimeConv::new(kernel(next()?, next()?.0)?))),
            LayerSpec::DoubleTime(_, c) => {
                let (weights, bias) = (next()?.0, next()?.0);
                // The first half of the output's channels is the earlier frame.
                let conv = |half: usize| {
                    let weights = &weights[half * c * c * 3..][..c * c * 3];
                    let bias = bias[half * c..][..*c].to_vec();
                    Kernel::new(on, weights, [*c, *c, 3, 1, 1], bias).map(TimeConv::new)
                };
                Self::DoubleTime(DoubleTime::new([conv(0)?, conv(1)?]))
            }
            LayerSpec::Down(layers, scale, [_, out]) => {
                Self::Down(load(layers, on, read)?, AverageDown::new(on, *scale, *out))
            }
            LayerSpec::Up(layers, scale, [_, out]) => Self::Up(load(layers, on, read)?, CopyUp::new(*scale, *out)),
        })
    }

    /// The frames that the next frame brings forth.
    pub fn push(&mut self, on: &B, x: Frame<B::Values>, shards: &dyn RowShards) -> Result<Vec<Frame<B::Values>>> {
        Ok(match self {
            Self::Pointwise(product) => vec![product.push(&x)?],
            Self::Conv(conv) => vec![conv.push(&x, shards)?.trimmed(on, [1; 4])?],
            Self::Residual(block) => vec![block.push(x, shards)?],
            Self::HalveSpace(conv) => vec![conv.push(x, shards)?],
            Self::HalveTime(conv) => conv.push(x)?,
            Self::DoubleTime(conv) => conv.push(x)?,
            Self::DoubleSpace(conv) => vec![conv.push(x, shards)?],
            Self::Down(layers, shortcut) => {
                let short = shortcut.push(&x)?;
                with_shortcuts(on, all(layers, on, x, shards)?, short.into_iter().collect())?
            }
            Self::Up(layers, shortcut) => {
                let short = shortcut.push(on, &x)?;
                with_shortcuts(on, all(layers, on, x, shards)?, short)?
            }
        })
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        match self {
            Self::Pointwise(product) => [product.bytes(), 0],
            Self::Conv(conv) => conv.bytes(),
            Self::Residual(block) => block.bytes(),
            Self::HalveSpace(conv) => [conv.bytes(), 0],
            Self::HalveTime(conv) => conv.bytes(),
            Self::DoubleTime(conv) => conv.bytes(),
            Self::DoubleSpace(conv) => [conv.bytes(), 0],
            Self::Down(layers, shortcut) => add(bytes(layers), [0, shortcut.bytes()]),
            Self::Up(layers, _) => bytes(layers),
        }
    }
}

fn with_shortcuts<B: Backend>(
    on: &B,
    mut frames: Vec<Frame<B::Values>>,
    short: Vec<Frame<B::Values>>,
) -> Result<Vec<Frame<B::Values>>> {
    debug_assert_eq!(frames.len(), short.len());
    for (frame, short) in frames.iter_mut().zip(&short) {
        match (short.rows, short.width) == (frame.rows, frame.width) {
            true => on.add(&mut frame.values, &short.values)?,
            false => {
                let short = short.within(on, frame)?;
                on.add(&mut frame.values, &short.values)?
            }
        }
    }
    Ok(frames)
}

/// A norm's weights as factors of pixels of norm 1.
pub(super) fn factors(gamma: Vec<f32>) -> Vec<f32> {
    let scale = (gamma.len() as f32).sqrt();
    gamma.into_iter().map(|x| x * scale).collect()
}

/// Builds layers of their tensors.
pub(super) fn load<B: Backend>(specs: &[LayerSpec], on: &B, read: &mut Read) -> Result<Vec<Layer<B>>> {
    specs.iter().map(|spec| Layer::load(spec, on, read)).collect()
}

/// Streams a frame through the layers: each frame that a layer brings forth goes on to the end before the next, so that
/// no more than a few frames are held at any size. `emit` takes those of the last layer.
pub(super) fn stream<B: Backend>(
    layers: &mut [Layer<B>],
    on: &B,
    x: Frame<B::Values>,
    shards: &dyn RowShards,
    emit: &mut dyn FnMut(Frame<B::Values>) -> Result<()>,
) -> Result<()> {
    let Some((first, rest)) = layers.split_first_mut() else { return emit(x) };
    for frame in first.push(on, x, shards)? {
        stream(rest, on, frame, shards, emit)?;
    }
    Ok(())
}

/// All frames that a frame brings forth.
fn all<B: Backend>(
    layers: &mut [Layer<B>],
    on: &B,
    x: Frame<B::Values>,
    shards: &dyn RowShards,
) -> Result<Vec<Frame<B::Values>>> {
    let mut frames = Vec::with_capacity(2);
    stream(layers, on, x, shards, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok(frames)
}

/// Bytes of weights, and of remembered frames.
pub(super) fn bytes<B: Backend>(layers: &[Layer<B>]) -> [usize; 2] {
    layers.iter().map(Layer::bytes).fold([0; 2], add)
}

fn add(a: [usize; 2], b: [usize; 2]) -> [usize; 2] {
    [a[0] + b[0], a[1] + b[1]]
}
