//! Times one training step on a random latent: forward, backward, AdamW. Counterpart: benches/peers/wan_step.py.

use candle_core::{DType, Device, Tensor};
use clap::Args;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

use super::gpu::peak_on;
use super::latent::{Latent, ShapeArgs};
use super::{Report, device_of, flops, median};
use crate::Result;
use crate::cli::{at_least_1, threads_per_rank};
use crate::config::{Compute, Hardware};
use crate::engine::Engine;
use crate::engine::stash::{Stash, StashOptions};
use crate::model::{LoraSpec, Model, ModelConfig};
use crate::observe::process::page_faults;
use crate::parallel::{Communicator, Reduce, Sequence, run_threads};
use crate::simd::Isa;
use crate::state::StateOptions;
use crate::state::weights::TrainState;

/// One training step of a Wan transformer on a random latent: forward, backward, AdamW.
#[derive(Debug, Args)]
pub struct StepArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Blocks
    #[arg(long, default_value = "4", value_parser = at_least_1)]
    layers: usize,
    /// Steps measured; the median is reported
    #[arg(long, default_value = "3", value_parser = at_least_1)]
    steps: usize,
    /// Steps before them that are not
    #[arg(long, default_value = "1")]
    warmup: usize,
    /// Ranks, as threads of this process
    #[arg(long, value_name = "P", default_value = "1", value_parser = at_least_1)]
    ranks: usize,
    /// Threads of each rank; default: its share of the processors
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
    /// Train adapters of this rank over a frozen network, for all linear layers of all blocks; 0: train all weights
    #[arg(long, value_name = "RANK", default_value = "0")]
    lora: usize,
    /// What computes; default: the CPU
    #[arg(long)]
    device: Option<Hardware>,
}

/// What a rank measured of a step.
struct Step {
    /// Seconds of all of it, and of its parts.
    whole: f64,
    attention: f64,
    update: f64,
    /// Page faults of the process, all ranks together.
    faults: f64,
    loss: f64,
}

/// Measures it.
pub fn run(args: &StepArgs) -> Result<Report> {
    let config = args.shape.config(args.layers);
    let grid = config.grid(args.shape.size())?;
    let tokens: usize = grid.iter().product();
    let device = device_of(args.device, args.ranks)?;
    let threads = args.threads.unwrap_or_else(|| threads_per_rank(args.ranks));
    let ranks = run_threads(args.ranks, threads, |comm| measure(args, &config, grid, &device, comm))?;
    let steps = &ranks[0].1;
    let step = |part: fn(&Step) -> f64| median(steps.iter().map(part).collect());
    let mut facts = args.shape.facts(tokens, args.layers);
    facts.extend(facts![ranks = args.ranks, threads]);
    if args.lora > 0 {
        facts.extend(facts![lora = args.lora]);
    }
    facts.extend(facts![device = args.device.unwrap_or_default()]);
    Ok(Report::new("step", facts)
        .on(&device)
        .against(ranks.iter().map(|rank| rank.0).sum(), tokens)
        .pass("step", "step", step(|s| s.whole), flops::step(&config, tokens))
        .with("tokens_per_s", "", tokens as f64 / step(|s| s.whole))
        .with("attention_s", "in attention, s", step(|s| s.attention))
        .with("update_s", "in gradient sums and AdamW, s", step(|s| s.update))
        .with("faults", "page faults", step(|s| s.faults))
        .with("loss", "loss", steps[steps.len() - 1].loss))
}

/// FLOP/s that a rank reached while all measured theirs, and its steps.
fn measure(
    args: &StepArgs,
    network: &ModelConfig,
    grid: [usize; 3],
    device: &Device,
    comm: Arc<dyn Communicator>,
) -> Result<(f64, Vec<Step>)> {
    let bf16 = args.shape.dtype == Compute::Bf16;
    let options = StateOptions { ema: 0.0, shared: true, ..StateOptions::default() };
    let model = match args.lora {
        0 => Model::init(network, DType::F32, bf16, 0)?,
        rank => {
            let spec = LoraSpec::of_targets(network, &[], rank, rank as f64)?;
            let model = Model::adapted(network, DType::F32, bf16, &spec, 0)?;
            model.draw_base(0)?;
            model
        }
    };
    let model = model.to_device(device)?;
    let weights = TrainState::new(model, &options, comm.clone())?;
    let stash = Stash::open(&StashOptions::default(), comm.rank(), device)?;
    let sequence = Sequence::new(comm.clone(), network.num_attention_heads, 0)?;
    let engine = Engine::new(&weights.model, &sequence, grid, 1, 0)?.with_stash(Arc::new(Mutex::new(stash)));
    let latent = Latent::draw(args.shape.size(), network, engine.local_tokens())?;
    let conditioning = args.shape.conditioning()?;
    comm.barrier()?;
    let peak = peak_on(device, Isa::best(), args.shape.dtype)?;
    let mut steps = vec![];
    for step in 0..(args.warmup + args.steps) as u64 {
        comm.barrier()?;
        let (start, attention, faults) = (Instant::now(), engine.attention_time(), page_faults());
        weights.zero_gradients()?;
        let share = Tensor::new(&[engine.loss_and_gradients(&conditioning, &latent)?], &Device::Cpu)?;
        let backward = Instant::now();
        comm.all_reduce(&share, Reduce::Sum)?;
        weights.sum_gradients()?;
        weights.update(step, 1e-4, weights.gradient_norm(step)?)?;
        device.synchronize()?; // a GPU is only asked to work so far
        steps.push(Step {
            whole: start.elapsed().as_secs_f64(),
            attention: (engine.attention_time() - attention).as_secs_f64(),
            update: backward.elapsed().as_secs_f64(),
            faults: (page_faults() - faults) as f64,
            loss: share.to_vec1::<f64>()?[0],
        });
    }
    Ok((peak, steps.split_off(args.warmup)))
}
