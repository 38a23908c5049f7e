//! Times a linear layer, tile by tile as training runs it. Counterpart: benches/peers/linear.py.

use candle_core::{DType, Device, Tensor};
use clap::Args;
use serde_json::json;
use std::ops::Range;

use super::{Report, flops, normal, on_threads, peak_of, timed};
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
    /// Runs measured, after one that is not; the median is reported
    #[arg(long, default_value = "5", value_parser = at_least_1)]
    runs: usize,
    /// Threads; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
    /// Rows of a tile; 0: as in training
    #[arg(long, default_value = "0")]
    tile: usize,
}

/// Measures it.
pub fn run(args: &LinearArgs) -> Result<Report> {
    on_threads(args.threads, |threads| measure(args, threads))
}

/// The layer, with random weights.
fn layer(args: &LinearArgs) -> Result<Linear> {
    let weight = Param::leaf("weight", normal(&[args.out, args.inner], 0)?)?;
    let bias = Param::leaf("bias", Tensor::zeros(args.out, DType::F32, &Device::Cpu)?)?;
    Ok(Linear::new(weight, bias, args.dtype == Compute::Bf16))
}

fn measure(args: &LinearArgs, threads: usize) -> Result<Report> {
    let &LinearArgs { tokens, inner, out, dtype, .. } = args;
    let tile = tile_rows(args.tile, inner.max(out), Hardware::Cpu);
    let tiles = || (0..tokens).step_by(tile).map(|start| start..(start + tile).min(tokens));
    let (layer, x, dy) = (layer(args)?, normal(&[tokens, inner], 1)?, normal(&[tokens, out], 2)?);
    let rows = |x: &Tensor, rows: &Range<usize>| x.narrow(0, rows.start, rows.len());
    let peak = peak_of(Isa::best(), dtype);
    let forward = timed(args.runs, || {
        let _held = layer.pin_packed(); // packed once for all tiles, as in training
        tiles().try_for_each(|tile| {
            layer.forward(&Tape::off(), &rows(&x, &tile)?)?;
            Ok(())
        })
    })?;
    let both = timed(args.runs, || {
        let _held = layer.pin_packed();
        tiles().try_for_each(|tile| {
            let (tape, x) = (Tape::recording(), rows(&x, &tile)?);
            let y = layer.forward(&tape, &x)?;
            tape.backward(&[(&y, &rows(&dy, &tile)?)], &[&x])?;
            Ok(())
        })
    })?;
    let flop = flops::linear(tokens, inner, out);
    let facts = vec![
        ("tokens", json!(tokens)),
        ("in", json!(inner)),
        ("out", json!(out)),
        ("dtype", json!(dtype)),
        ("threads", json!(threads)),
        ("tile", json!(tile)),
    ];
    Ok(Report::new("linear", facts).against(peak, tokens).pass("forward", "fwd", forward, flop).pass(
        "forward+backward",
        "fwdbwd",
        both,
        flops::LINEAR_BOTH * flop,
    ))
}
