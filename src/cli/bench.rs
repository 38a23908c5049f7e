//! `longreel bench`: how long the work takes here, as JSON that is read side by side with benches/peers/.

use candle_core::{DType, Device, Tensor};
use clap::{Args, Subcommand};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{Compute, Train};
use crate::engine::{Engine, Objective, Source};
use crate::model::{Model, ModelConfig, Patches, Prompt};
use crate::parallel::{Communicator, Reduce, Sequence, run_threads};
use crate::rng::{Key, Purpose};
use crate::train::progress::memory;
use crate::train::weights::Weights;
use crate::{Result, bail};

/// Measure this machine on the work of training; each prints one JSON line.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Step(StepArgs),
}

/// One training step of a Wan transformer on a random latent: forward, backward, AdamW.
///
/// The shapes are those of benches/peers/wan_step.py: a latent of 16 channels in patches of 1 x 2 x 2, a text of 16 tokens of 64
/// features, an MLP of four times the width.
#[derive(Debug, Args)]
struct StepArgs {
    /// Frames of the latent
    #[arg(long, default_value = "8", value_parser = super::at_least_1)]
    frames: usize,
    /// Height of the latent
    #[arg(long, default_value = "64", value_parser = super::at_least_1)]
    height: usize,
    /// Width of the latent
    #[arg(long, default_value = "64", value_parser = super::at_least_1)]
    width: usize,
    /// Blocks
    #[arg(long, default_value = "4", value_parser = super::at_least_1)]
    layers: usize,
    /// Attention heads
    #[arg(long, default_value = "6", value_parser = super::at_least_1)]
    heads: usize,
    /// Features of a head
    #[arg(long, default_value = "64", value_parser = super::at_least_1)]
    head_dim: usize,
    /// Steps measured, after one that is not; the median is reported
    #[arg(long, default_value = "3", value_parser = super::at_least_1)]
    steps: usize,
    /// Arithmetic of linear layers and attention
    #[arg(long, default_value = "bf16")]
    dtype: Compute,
    /// Ranks, as threads of this process
    #[arg(long, value_name = "P", default_value = "1", value_parser = super::at_least_1)]
    ranks: usize,
    /// Rows of a tile; 0: as in training
    #[arg(long, default_value = "0")]
    tile: usize,
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Step(args) => step(&args),
    }
}

fn step(args: &StepArgs) -> Result<()> {
    let width = args.heads * args.head_dim;
    let config = ModelConfig {
        num_attention_heads: args.heads,
        attention_head_dim: args.head_dim,
        text_dim: 64,
        ffn_dim: 4 * width,
        num_layers: args.layers,
        ..ModelConfig::default()
    };
    let grid = config.grid([args.frames, args.height, args.width])?;
    let threads = super::threads_per_rank(args.ranks);
    let results = run_threads(args.ranks, threads, |comm| measure(args, &config, grid, comm))?;
    let Some((mut seconds, loss)) = results.into_iter().next() else { bail!("no rank") };
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens: usize = grid.iter().product();
    let dtype = if args.dtype == Compute::Bf16 { "bf16" } else { "f32" };
    super::print(serde_json::json!({
        "what": "step", "ranks": args.ranks, "threads": args.ranks * threads, "dtype": dtype,
        "tokens": tokens, "layers": args.layers, "dim": width, "heads": args.heads,
        "step_s": median, "tokens_per_s": tokens as f64 / median,
        "peak_rss_gib": memory().peak as f64 / (1u64 << 30) as f64, "loss": loss,
    }))
}

/// Seconds of each step, and the last loss.
fn measure(
    args: &StepArgs,
    config: &ModelConfig,
    grid: [usize; 3],
    comm: Arc<dyn Communicator>,
) -> Result<(Vec<f64>, f64)> {
    let train = Train { ema: 0.0, ..Train::default() };
    let weights = Weights::new(Model::init(config, DType::F32, args.dtype == Compute::Bf16, 0)?, &train)?;
    let engine = Engine::new(&weights.model, &Sequence::new(comm.clone(), args.heads, 0)?, grid, 1, args.tile)?;
    let latent = Latent::draw([args.frames, args.height, args.width], config, engine.local_tokens());
    let mut text = vec![0.0; 16 * config.text_dim];
    Key { seed: 0, purpose: Purpose::Test, step: 0, sample: 1 }.stream(0).fill_normal(&mut text);
    let text = Tensor::from_vec(text, (1, 16, config.text_dim), &Device::Cpu)?;
    let prompt = Prompt { timesteps: vec![500.0], text: Some(text), labels: None };
    let (mut seconds, mut loss) = (vec![], 0.0);
    for step in 0..=args.steps as u64 {
        comm.barrier()?;
        let start = Instant::now();
        weights.model.zero_grads()?;
        let share = Tensor::new(&[engine.loss_and_gradients(&prompt, &latent)?], &Device::Cpu)?;
        comm.all_reduce(&share, Reduce::Sum)?;
        for unit in &weights.model.units {
            comm.all_reduce(&unit.grad, Reduce::Sum)?;
        }
        weights.update(step, 1e-4, weights.gradient_norm(step)?)?;
        seconds.push(start.elapsed().as_secs_f64());
        loss = share.to_vec1::<f64>()?[0];
    }
    Ok((seconds.split_off(1), loss))
}

/// A random latent as input, and itself as target: this rank's rows.
struct Latent {
    input: Vec<f32>,  // [local S, C pt ph pw]
    target: Vec<f32>, // [local S, pt ph pw C]
    row: usize,
    weight: f64,
}

impl Latent {
    fn draw(size: [usize; 3], config: &ModelConfig, tokens: Range<usize>) -> Self {
        let patches = Patches { channels: config.in_channels, size, patch: config.patch_size };
        let mut clip = vec![0.0; config.in_channels * size.iter().product::<usize>()];
        Key { seed: 0, purpose: Purpose::Test, step: 0, sample: 0 }.stream(0).fill_normal(&mut clip);
        let (input, row) = (patches.input_rows(&clip, tokens), patches.row());
        let mut target = vec![0.0; input.len()];
        crate::diffusion::channel_last(&input, row, config.in_channels, &mut target);
        Self { input, target, row, weight: 1.0 / clip.len() as f64 }
    }
}

impl Source for Latent {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let values = &self.input[rows.start * self.row..rows.end * self.row];
        Ok(Tensor::from_slice(values, (rows.len(), self.row), &Device::Cpu)?)
    }
}

impl Objective for Latent {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        let target = &self.target[rows.start * self.row..rows.end * self.row];
        let target = Tensor::from_slice(target, (rows.len(), self.row), &Device::Cpu)?;
        let error = (output - target)?;
        let sum = f64::from(error.sqr()?.sum_all()?.to_scalar::<f32>()?);
        Ok((sum * self.weight, (error * (2.0 * self.weight))?))
    }
}
