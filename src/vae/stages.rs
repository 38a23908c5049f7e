//! The residual blocks of each resolution by themselves, to measure how near they come to the machine's peak.

use super::cpu::Cpu;
use super::frame::Frame;
use super::layer::{Layer, Read};
use super::residual::ResidualBlock;
use super::shards::Whole;
use super::spec::{HalfSpec, LayerSpec, decoder, encoder};
use super::{Arithmetic, VaeConfig};
use crate::Result;

/// The first residual block of one resolution that keeps its channels.
pub struct Stage {
    /// Its channels.
    pub channels: usize,
    /// The clip's pixels along a side of one of its own.
    pub side: usize,
    block: ResidualBlock<Cpu>,
}

impl Stage {
    /// Those of the encoder, from the pixels on.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn of_encoder(config: &VaeConfig, arithmetic: Arithmetic, read: &mut Read) -> Result<Vec<Self>> {
        Self::walk(&encoder(config), config.patch(), arithmetic, read)
    }

    /// Those of the decoder, from the latents on.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn of_decoder(config: &VaeConfig, arithmetic: Arithmetic, read: &mut Read) -> Result<Vec<Self>> {
        Self::walk(&decoder(config), config.scale_space(), arithmetic, read)
    }

    fn walk(spec: &HalfSpec, mut side: usize, arithmetic: Arithmetic, read: &mut Read) -> Result<Vec<Self>> {
        let on = Cpu(arithmetic);
        let mut stages: Vec<Self> = vec![];
        for layer in flat(spec.before.iter().chain(&spec.after)) {
            match layer {
                LayerSpec::HalveSpace(..) => side *= 2,
                LayerSpec::DoubleSpace(..) => side /= 2,
                LayerSpec::Residual(_, [c, out]) if c == out && stages.iter().all(|stage| stage.side != side) => {
                    if let Layer::Residual(block) = Layer::load(layer, &on, read)? {
                        stages.push(Self { channels: *c, side, block });
                    }
                }
                _ => {}
            }
        }
        Ok(stages)
    }

    /// The block's output for its clip's next frame `[rows, width, channels]`.
    ///
    /// # Errors
    /// None on a CPU.
    pub fn push(&mut self, x: Frame) -> Result<Frame> {
        self.block.push(x, &Whole)
    }

    /// Floating-point operations for each of the block's pixels, of a frame that has two before it.
    pub fn flops(&self) -> f64 {
        (2 * 27 * 2 * self.channels * self.channels) as f64
    }
}

/// The layers, and those that have a shortcut around them.
fn flat<'a>(layers: impl Iterator<Item = &'a LayerSpec>) -> Vec<&'a LayerSpec> {
    let inner = |layer: &'a LayerSpec| match layer {
        LayerSpec::Down(layers, ..) | LayerSpec::Up(layers, ..) => layers.iter().collect(),
        other => vec![other],
    };
    layers.flat_map(inner).collect()
}
