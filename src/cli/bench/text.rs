//! Times a text encoder on texts of random tokens, its weights read from their file each time. Counterpart:
//! benches/peers/text.py, and benches/text_model.py, which makes a model of a real one's widths.

use clap::Args;
use std::path::PathBuf;

use super::{Report, on_threads, peak_of, timed};
use crate::Result;
use crate::cli::{at_least_1, path};
use crate::config::Compute;
use crate::simd::Isa;
use crate::text::TextModel;

/// A text encoder on texts of one length, its file read each time.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// The encoder: a folder or a file, as `longreel forward` takes it
    #[arg(long, value_name = "TEXT_DIR", value_parser = path())]
    model: PathBuf,
    /// Texts
    #[arg(long, default_value = "20", value_parser = at_least_1)]
    prompts: usize,
    /// Tokens of each
    #[arg(long, default_value = "60", value_parser = at_least_1)]
    tokens: usize,
    /// Arithmetic of linear layers
    #[arg(long, default_value = "f32")]
    dtype: Compute,
    /// Runs measured, after one that is not; the median is reported
    #[arg(long, default_value = "1", value_parser = at_least_1)]
    runs: usize,
    /// Threads; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
}

/// Measures it.
pub fn run(args: &TextArgs) -> Result<Report> {
    on_threads(args.threads, |threads| measure(args, threads))
}

fn measure(args: &TextArgs, threads: usize) -> Result<Report> {
    let &TextArgs { prompts, tokens, dtype, .. } = args;
    let model = TextModel::open(&args.model)?.with_bf16(dtype == Compute::Bf16);
    let config = model.config().clone();
    let id = |i: usize| (i.wrapping_mul(2_654_435_761) % config.vocab) as u32;
    let texts: Vec<Vec<u32>> = (0..prompts).map(|p| (0..tokens).map(|t| id(p * tokens + t)).collect()).collect();
    let peak = peak_of(Isa::best(), dtype);
    let mut times = [0.0; 3];
    let seconds = timed(args.runs, || {
        model.encode_ids(&texts, &mut |_, _| ())?;
        times = model.times();
        Ok(())
    })?;
    let facts = facts![layers = config.layers, dim = config.width, prompts, tokens, dtype, threads];
    let products = config.parameters() - config.vocab * config.width;
    let scores = 2 * config.layers * config.heads * config.head_dim * tokens;
    let flop = 2.0 * (prompts * tokens) as f64 * (products + scores) as f64;
    let [reading, packing, attention] = times;
    Ok(Report::new("text", facts)
        .against(peak, prompts * tokens)
        .pass("texts", "fwd", seconds, flop)
        .with("reading_s", "reading weights, s", reading / threads as f64)
        .with("packing_s", "packing them, s", packing / threads as f64)
        .with("attention_s", "attention, s", attention))
}
