//! Times one transformer block within a model: both its halves and its attention, and nothing around it.
//!
//! The engine runs whole models only, so a model of two blocks is timed in turn with a model of one, and the difference
//! is the block's: patch embedding, conditioning, head and loss are in both and drop out.

use candle_core::DType;
use clap::Args;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

use super::latent::{Latent, ShapeArgs};
use super::{Report, flops, median, on_threads, peak_of};
use crate::cli::at_least_1;
use crate::config::Compute;
use crate::engine::Engine;
use crate::model::Model;
use crate::parallel::{Sequence, Single};
use crate::simd::Isa;
use crate::{Result, bail};

/// One block of the step's model: the time of two blocks less that of one. Backward recomputes tiles, as in training.
#[derive(Debug, Args)]
pub struct BlockArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Runs measured, after one that is not; the median is reported
    #[arg(long, default_value = "5", value_parser = at_least_1)]
    runs: usize,
    /// Threads; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
}

/// Measures it.
pub fn run(args: &BlockArgs) -> Result<Report> {
    on_threads(args.threads, |threads| measure(args, threads))
}

fn measure(args: &BlockArgs, threads: usize) -> Result<Report> {
    let config = args.shape.config(1);
    let grid = config.grid(args.shape.size())?;
    let tokens: usize = grid.iter().product();
    let bf16 = args.shape.dtype == Compute::Bf16;
    let init = |layers| Model::init(&args.shape.config(layers), DType::F32, bf16, 0);
    let models = [init(1)?, init(2)?];
    let alone = Sequence::new(Arc::new(Single), config.num_attention_heads, 0)?;
    let engine = |model| Engine::new(model, &alone, grid, 1, args.shape.tile);
    let engines = [engine(&models[0])?, engine(&models[1])?];
    let latent = Latent::draw(args.shape.size(), &config, 0..tokens);
    let conditioning = args.shape.conditioning()?;
    let peak = peak_of(Isa::best(), args.shape.dtype);
    let forward = difference(args.runs, &engines, |engine| engine.predict(&conditioning, &latent, |_, _| Ok(())))?;
    let both = difference(args.runs, &engines, |engine| engine.loss_and_gradients(&conditioning, &latent).map(drop))?;
    let (attention, linears) = flops::block(&config, tokens);
    let mut facts = args.shape.facts(tokens, 1);
    facts.push(("threads", json!(threads)));
    Ok(Report::new("block", facts).against(peak, tokens).pass("forward", "fwd", forward, attention + linears).pass(
        "forward+backward",
        "fwdbwd",
        both,
        flops::ATTENTION_BOTH * attention + flops::LINEAR_BOTH * linears,
    ))
}

/// The median of how much longer the second engine takes than the first, over `runs` rounds after one that does not
/// count.
fn difference(runs: usize, engines: &[Engine; 2], mut f: impl FnMut(&Engine) -> Result<()>) -> Result<f64> {
    let mut seconds = vec![];
    for _ in 0..=runs {
        let mut time = |engine| -> Result<f64> {
            let start = Instant::now();
            f(engine)?;
            Ok(start.elapsed().as_secs_f64())
        };
        let one = time(&engines[0])?;
        seconds.push(time(&engines[1])? - one);
    }
    match median(seconds.split_off(1)) {
        median if median > 0.0 => Ok(median),
        _ => bail!(
            Config,
            "two blocks took no longer than one: too small a shape for this machine; use a larger one or more --runs"
        ),
    }
}
