//! Times one transformer block within a model: both its halves and its attention, and nothing around it.
//!
//! The engine runs whole models only, so a model of two blocks is timed in turn with a model of one, and the difference
//! is the block's: patch embedding, conditioning, head and loss are in both and drop out.

use candle_core::DType;
use clap::Args;
use std::sync::Arc;

use super::latent::{Latent, ShapeArgs};
use super::{Report, Timing, flops, median_of, on_threads, peak_of, seconds};
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
    #[command(flatten)]
    timing: Timing,
}

/// Measures it.
pub fn run(args: &BlockArgs) -> Result<Report> {
    on_threads(args.timing.threads, |threads| measure(args, threads))
}

fn measure(args: &BlockArgs, threads: usize) -> Result<Report> {
    let config = args.shape.config(1);
    let grid = config.grid(args.shape.size())?;
    let tokens: usize = grid.iter().product();
    let bf16 = args.shape.dtype == Compute::Bf16;
    let init = |layers| Model::init(&args.shape.config(layers), DType::F32, bf16, 0);
    let models = [init(1)?, init(2)?];
    let alone = Sequence::new(Arc::new(Single), config.num_attention_heads, 0)?;
    let engine = |model| Engine::new(model, &alone, grid, 1, 0);
    let engines = [engine(&models[0])?, engine(&models[1])?];
    let latent = Latent::draw(args.shape.size(), &config, 0..tokens)?;
    let conditioning = args.shape.conditioning()?;
    let peak = peak_of(Isa::best(), args.shape.dtype);
    let difference = |f: &dyn Fn(&Engine) -> Result<()>| difference(args.timing.runs, &engines, f);
    let forward = difference(&|engine| engine.predict(&conditioning, &latent, |_, _| Ok(())))?;
    let both = difference(&|engine| engine.loss_and_gradients(&conditioning, &latent).map(drop))?;
    let (attention, linears) = flops::block(&config, tokens);
    let mut facts = args.shape.facts(tokens, 1);
    facts.extend(facts![threads]);
    let flop_both = flops::ATTENTION_BOTH * attention + flops::LINEAR_BOTH * linears;
    Ok(Report::new("block", facts).against(peak, tokens).passes([forward, attention + linears], [both, flop_both]))
}

/// The median of how much longer `f` takes on the second engine than on the first.
fn difference(runs: usize, [one, two]: &[Engine; 2], f: impl Fn(&Engine) -> Result<()>) -> Result<f64> {
    let round = || Ok(-seconds(|| f(one))? + seconds(|| f(two))?);
    match median_of(runs, round)? {
        median if median > 0.0 => Ok(median),
        _ => bail!(
            Config,
            "two blocks took no longer than one: too small a shape for this machine; use a larger one or more --runs"
        ),
    }
}
