//! Makes what `block` and `step` run on: a Wan transformer of the shapes of benches/peers/wan_step.py and a random
//! latent.

use candle_core::{Device, Tensor};
use clap::Args;
use serde_json::Value;
use std::ops::Range;

use super::normal;
use crate::Result;
use crate::cli::at_least_1;
use crate::config::Compute;
use crate::engine::{Objective, Source};
use crate::model::{Conditioning, ModelConfig, Patches, TextTokens};

/// The shapes: a latent of 16 channels in patches of 1 x 2 x 2, and a text.
#[derive(Debug, Args)]
pub struct ShapeArgs {
    /// Frames of the latent
    #[arg(long, default_value = "8", value_parser = at_least_1)]
    frames: usize,
    /// Height of the latent
    #[arg(long, default_value = "64", value_parser = at_least_1)]
    height: usize,
    /// Width of the latent
    #[arg(long, default_value = "64", value_parser = at_least_1)]
    width: usize,
    /// Attention heads
    #[arg(long, default_value = "6", value_parser = at_least_1)]
    heads: usize,
    /// Features of a head
    #[arg(long, default_value = "64", value_parser = at_least_1)]
    head_dim: usize,
    /// Hidden width of the MLP; default: four times the width
    #[arg(long, value_parser = at_least_1)]
    ffn_dim: Option<usize>,
    /// Tokens of the text
    #[arg(long, default_value = "16", value_parser = at_least_1)]
    text: usize,
    /// Features of a token of the text
    #[arg(long, default_value = "64", value_parser = at_least_1)]
    text_dim: usize,
    /// Arithmetic of linear layers and attention
    #[arg(long, default_value = "bf16")]
    pub dtype: Compute,
}

impl ShapeArgs {
    pub fn config(&self, layers: usize) -> ModelConfig {
        ModelConfig {
            num_attention_heads: self.heads,
            attention_head_dim: self.head_dim,
            text_dim: self.text_dim,
            ffn_dim: self.ffn_dim.unwrap_or(4 * self.heads * self.head_dim),
            num_layers: layers,
            ..ModelConfig::default()
        }
    }

    /// Frames, height, width.
    pub fn size(&self) -> [usize; 3] {
        [self.frames, self.height, self.width]
    }

    /// A random text, in the middle of the noise.
    pub fn conditioning(&self) -> Result<Conditioning> {
        let text = TextTokens::padded_to(normal(&[self.text, self.text_dim], 1)?, self.text);
        Ok(Conditioning { timesteps: vec![500.0], text: Some(vec![text]), labels: None })
    }

    /// What a report says of the shape.
    pub fn facts(&self, tokens: usize, layers: usize) -> Vec<(&'static str, Value)> {
        let &Self { heads, head_dim, dtype, .. } = self;
        facts![tokens, layers, dim = heads * head_dim, heads, head_dim, dtype]
    }
}

/// A random latent as input, and itself as target: this rank's rows.
pub struct Latent {
    input: Vec<f32>,  // [local S, C pt ph pw]
    target: Vec<f32>, // [local S, pt ph pw C]
    row: usize,
    weight: f64,
}

impl Latent {
    pub fn draw(size: [usize; 3], config: &ModelConfig, tokens: Range<usize>) -> Result<Self> {
        let patches = Patches { channels: config.in_channels, size, patch: config.patch_size };
        let clip = normal(&[config.in_channels * size.iter().product::<usize>()], 0)?.to_vec1::<f32>()?;
        let (input, row) = (patches.input_rows(&clip, tokens), patches.row());
        let mut target = vec![0.0; input.len()];
        crate::diffusion::channel_last(&input, row, config.in_channels, &mut target);
        Ok(Self { input, target, row, weight: 1.0 / clip.len() as f64 })
    }

    fn tensor(&self, values: &[f32], rows: Range<usize>, device: &Device) -> Result<Tensor> {
        let values = &values[rows.start * self.row..rows.end * self.row];
        Ok(Tensor::from_slice(values, (rows.len(), self.row), device)?)
    }
}

impl Source for Latent {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        self.tensor(&self.input, rows, &Device::Cpu)
    }
}

impl Objective for Latent {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let error = (output - self.tensor(&self.target, rows, output.device())?)?;
        let sum = f64::from(error.sqr()?.sum_all()?.to_scalar::<f32>()?);
        Ok((sum * self.weight, (error * (2.0 * self.weight))?))
    }
}
