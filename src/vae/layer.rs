//! The VAE's layers as one type, and how a frame streams through a list of them.

use super::conv::{Arithmetic, CausalConv, Double, Halve, Kernel, Pointwise, TimeConv};
use super::frame::Frame;
use super::resample::{AverageDown, CopyUp, DoubleTime, HalveTime};
use super::residual::ResidualBlock;
use super::shards::RowShards;
use super::spec::{LayerSpec, TensorSpec};
use crate::Result;

/// One layer, with the frames that it remembers of its clip.
#[derive(Clone)]
pub(super) enum Layer {
    Pointwise(Pointwise),
    /// A causal convolution, with norm and SiLU before it or not.
    Conv(CausalConv),
    Residual(ResidualBlock),
    HalveSpace(Halve),
    HalveTime(HalveTime),
    DoubleTime(DoubleTime),
    DoubleSpace(Double),
    /// Layers with a shortcut around them.
    Down(Vec<Layer>, AverageDown),
    Up(Vec<Layer>, CopyUp),
}

/// Reads a tensor, of which the shape has been checked.
pub(super) type Read<'a> = dyn FnMut(&TensorSpec) -> Result<Vec<f32>> + 'a;

impl Layer {
    /// Builds a layer of its tensors.
    pub fn load(spec: &LayerSpec, arithmetic: Arithmetic, read: &mut Read) -> Result<Self> {
        let tensors = match spec {
            LayerSpec::Down(..) | LayerSpec::Up(..) => vec![],
            _ => spec.tensors(),
        };
        let mut tensors = tensors.iter();
        let mut next = || {
            let tensor = tensors.next().expect("a tensor for each of a layer's parts");
            Ok::<_, crate::Error>((read(tensor)?, tensor.shape.as_slice()))
        };
        let norm = |(gamma, _): (Vec<f32>, &[usize])| factors(gamma);
        let kernel = |(weights, shape): (Vec<f32>, &[usize]), bias: Vec<f32>| match *shape {
            [out, c, rows, columns] => Kernel::new(arithmetic, &weights, [out, c, 1, rows, columns], bias),
            [out, c, frames, rows, columns] => Kernel::new(arithmetic, &weights, [out, c, frames, rows, columns], bias),
            _ => unreachable!("a kernel has four or five dimensions"),
        };
        Ok(match spec {
            LayerSpec::Pointwise(..) => Self::Pointwise(Pointwise::new(arithmetic, next()?.0, next()?.0)),
            LayerSpec::Conv(..) => Self::Conv(CausalConv::new(kernel(next()?, next()?.0), None)),
            LayerSpec::Head(..) => {
                let norm = norm(next()?);
                Self::Conv(CausalConv::new(kernel(next()?, next()?.0), Some(norm)))
            }
            LayerSpec::Residual(_, [c, out]) => {
                let norm1 = norm(next()?);
                let conv1 = CausalConv::new(kernel(next()?, next()?.0), Some(norm1));
                let norm2 = norm(next()?);
                let conv2 = CausalConv::new(kernel(next()?, next()?.0), Some(norm2));
                let shortcut = match c == out {
                    true => None,
                    false => Some(Pointwise::new(arithmetic, next()?.0, next()?.0)),
                };
                Self::Residual(ResidualBlock { conv1, conv2, shortcut })
            }
            LayerSpec::HalveSpace(..) => Self::HalveSpace(Halve::new(kernel(next()?, next()?.0))),
            LayerSpec::DoubleSpace(_, [c, out]) => {
                let (weights, bias) = (next()?.0, next()?.0);
                Self::DoubleSpace(Double::new(arithmetic, &weights, [*out, *c], bias))
            }
            LayerSpec::HalveTime(..) => Self::HalveTime(HalveTime::new(TimeConv::new(kernel(next()?, next()?.0)))),
            LayerSpec::DoubleTime(_, c) => {
                let (weights, bias) = (next()?.0, next()?.0);
                // The first half of the output's channels is the earlier frame.
                let conv = |half: usize| {
                    let weights = &weights[half * c * c * 3..][..c * c * 3];
                    let bias = bias[half * c..][..*c].to_vec();
                    TimeConv::new(Kernel::new(arithmetic, weights, [*c, *c, 3, 1, 1], bias))
                };
                Self::DoubleTime(DoubleTime::new([conv(0), conv(1)]))
            }
            LayerSpec::Down(layers, [time, space], [_, out]) => {
                Self::Down(load(layers, arithmetic, read)?, AverageDown::new(*time, *space, *out))
            }
            LayerSpec::Up(layers, [time, space], [_, out]) => {
                Self::Up(load(layers, arithmetic, read)?, CopyUp::new(*time, *space, *out))
            }
        })
    }

    /// The frames that the next frame brings forth.
    pub fn push(&mut self, x: Frame, shards: &dyn RowShards) -> Result<Vec<Frame>> {
        Ok(match self {
            Self::Pointwise(product) => vec![product.push(&x)],
            Self::Conv(conv) => vec![conv.push(&x, shards)?.trimmed([1; 4])],
            Self::Residual(block) => vec![block.push(x, shards)?],
            Self::HalveSpace(conv) => vec![conv.push(x, shards)?],
            Self::HalveTime(conv) => conv.push(x)?,
            Self::DoubleTime(conv) => conv.push(x)?,
            Self::DoubleSpace(conv) => vec![conv.push(x, shards)?],
            Self::Down(layers, shortcut) => {
                let short = shortcut.push(&x);
                with_shortcuts(all(layers, x, shards)?, short.into_iter().collect())
            }
            Self::Up(layers, shortcut) => {
                let short = shortcut.push(&x);
                with_shortcuts(all(layers, x, shards)?, short)
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

fn with_shortcuts(mut frames: Vec<Frame>, short: Vec<Frame>) -> Vec<Frame> {
    debug_assert_eq!(frames.len(), short.len());
    frames.iter_mut().zip(&short).for_each(|(frame, short)| match short.values.len() == frame.values.len() {
        true => frame.add(short),
        false => frame.add(&short.within(frame)),
    });
    frames
}

/// A norm's weights as factors of pixels of norm 1.
pub(super) fn factors(gamma: Vec<f32>) -> Vec<f32> {
    let scale = (gamma.len() as f32).sqrt();
    gamma.into_iter().map(|x| x * scale).collect()
}

/// Builds layers of their tensors.
pub(super) fn load(specs: &[LayerSpec], arithmetic: Arithmetic, read: &mut Read) -> Result<Vec<Layer>> {
    specs.iter().map(|spec| Layer::load(spec, arithmetic, read)).collect()
}

/// Streams a frame through the layers: each frame that a layer brings forth goes on to the end before the next, so that
/// no more than a few frames are held at any size. `emit` takes those of the last layer.
pub(super) fn stream(
    layers: &mut [Layer],
    x: Frame,
    shards: &dyn RowShards,
    emit: &mut dyn FnMut(Frame) -> Result<()>,
) -> Result<()> {
    let Some((first, rest)) = layers.split_first_mut() else { return emit(x) };
    for frame in first.push(x, shards)? {
        stream(rest, frame, shards, emit)?;
    }
    Ok(())
}

/// All frames that a frame brings forth.
fn all(layers: &mut [Layer], x: Frame, shards: &dyn RowShards) -> Result<Vec<Frame>> {
    let mut frames = Vec::with_capacity(2);
    stream(layers, x, shards, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok(frames)
}

/// Bytes of weights, and of remembered frames.
pub(super) fn bytes(layers: &[Layer]) -> [usize; 2] {
    layers.iter().map(Layer::bytes).fold([0; 2], add)
}

fn add(a: [usize; 2], b: [usize; 2]) -> [usize; 2] {
    [a[0] + b[0], a[1] + b[1]]
}
