//! Times a linear layer, tile by tile as training runs it. Counterpart: benches/peers/linear.py.

use candle_core::{DType, Device, Tensor};
use clap::Args;
use std::ops::Range;

use super::{Report, Timing, flops, normal, on_threads, peak_of, timed};
use crate::Result;
use crate::cli::at_least_1;
use crate::config::{Compute, Hardware};
use crate::engine::tile_rows;
use crate::ops::{Linear, Param, Tape};
use crate::simd::Isa;

/// A linear layer with bias, a tile of rows at a time. Forward+backward takes the gradients of input, weight and bias.
#[derive(Debug, Args)]
pub struct LinearArgs {
    /// Rows of the input
    #[arg(long, default_value = "8192", value_parser = at_least_1)]
    tokens: usize,
    /// Features in
    #[arg(long = "in", default_value = "384", value_parser = at_least_1)]
    inner: usize,
    /// Features out
    #[arg(long, default_value = "1536", value_parser = at_least_1)]
    out: usize,
    /// Arithmetic; values and gradients are f32 either way
    #[arg(long, default_value = "bf16")]
    dtype: Compute,
    #[command(flatten)]
    timing: Timing,
    /// Rows of a tile; 0: as in training
    #[arg(long, default_value = "0")]
    tile: usize,
}

/// Measures it.
pub fn run(args: &LinearArgs) -> Result<Report> {
    on_threads(args.timing.threads, |threads| measure(args, threads))
}

fn measure(args: &LinearArgs, threads: usize) -> Result<Report> {
    let &LinearArgs { tokens, inner, out, dtype, .. } = args;
    let tile = tile_rows(args.tile, inner.max(out), Hardware::Cpu);
    let tiles = || (0..tokens).step_by(tile).map(|start| start..(start + tile).min(tokens));
    let weight = Param::leaf("weight", normal(&[out, inner], 0)?)?;
    let bias = Param::leaf("bias", Tensor::zeros(out, DType::F32, &Device::Cpu)?)?;
    let layer = Linear::new(weight, bias, dtype == Compute::Bf16);
    let (x, dy) = (normal(&[tokens, inner], 1)?, normal(&[tokens, out], 2)?);
    let rows = |x: &Tensor, rows: &Range<usize>| x.narrow(0, rows.start, rows.len());
    let peak = peak_of(Isa::best(), dtype);
    let forward = timed(args.timing.runs, || {
        let _held = layer.pin_packed(); // packed once for all tiles, as in training
        Ok(tiles().try_for_each(|tile| layer.forward(&Tape::off(), &rows(&x, &tile)?).map(drop))?)
    })?;
    let both = timed(args.timing.runs, || {
        let _held = layer.pin_packed();
        Ok(tiles().try_for_each(|tile| {
            let (tape, x) = (Tape::recording(), rows(&x, &tile)?);
            let y = layer.forward(&tape, &x)?;
            tape.backward(&[(&y, &rows(&dy, &tile)?)], &[&x]).map(drop)
        })?)
    })?;
    let flop = flops::linear(tokens, inner, out);
    let facts = facts![tokens, in = inner, out, dtype, threads, tile];
    let report = Report::new("linear", facts).against(peak, tokens);
    Ok(report.passes([forward, flop], [both, flops::LINEAR_BOTH * flop]))
}
