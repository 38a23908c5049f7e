//! Times attention of one clip, forward and forward+backward, on any instruction set. Counterpart:
//! benches/peers/attention.py.

use candle_core::{Device, Tensor};
use clap::Args;

use super::gpu::peak_on;
use super::{Report, Timing, device_of, flops, normal, on_threads, timed};
use crate::attention::cpu::{backward_on, forward_on};
use crate::attention::{Qkv, SavedRows, flash, flash_backward};
use crate::cli::at_least_1;
use crate::config::{Compute, Hardware};
use crate::engine::precision::check_on_gpu;
use crate::ops::row_dot;
use crate::simd::Isa;
use crate::{Result, bail};

/// Attention of one clip. Forward+backward takes the gradients of q, k and v.
#[derive(Debug, Args)]
pub struct AttentionArgs {
    /// Tokens of the clip
    #[arg(long, default_value = "8192", value_parser = at_least_1)]
    tokens: usize,
    /// Heads
    #[arg(long, default_value = "6", value_parser = at_least_1)]
    heads: usize,
    /// Features of a head
    #[arg(long, default_value = "64", value_parser = at_least_1)]
    head_dim: usize,
    /// Dtype of q, k and v
    #[arg(long, default_value = "bf16")]
    dtype: Compute,
    #[command(flatten)]
    timing: Timing,
    /// Unit: pairs, tiles, portable, avx2, avx512, avx512-bf16 or amx; default: this CPU's best
    #[arg(long)]
    path: Option<String>,
    /// What computes; default: the CPU
    #[arg(long)]
    device: Option<Hardware>,
}

/// Measures it.
pub fn run(args: &AttentionArgs) -> Result<Report> {
    let isa = args.path.as_deref().map_or(Ok(Isa::best()), named)?;
    let device = device_of(args.device, 1)?;
    if device.is_cuda() && args.path.is_some() {
        bail!(Config, "--path is of CPUs: leave it out, or --device cuda")
    }
    if device.is_cuda() {
        check_on_gpu(args.dtype == Compute::Bf16, args.head_dim, args.tokens)?;
    }
    on_threads(args.timing.threads, |threads| measure(args, isa, &device, threads))
}

/// The path of this name, which this CPU must have.
fn named(name: &str) -> Result<Isa> {
    let available: Vec<&str> = Isa::ALL.into_iter().filter(|p| p.is_available()).map(Isa::name).collect();
    match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
        Some(isa) if isa.is_available() => Ok(isa),
        Some(_) => {
            bail!(Environment, "--path {name}: this CPU lacks its features; it can run {}", available.join(", "))
        }
        None => bail!(Config, "--path {name}: no such path; this CPU can run {}", available.join(", ")),
    }
}

fn measure(args: &AttentionArgs, isa: Isa, device: &Device, threads: usize) -> Result<Report> {
    let &AttentionArgs { tokens, heads, head_dim, dtype, .. } = args;
    let shape = [1, heads, tokens, head_dim];
    let draw = |sample| -> Result<Tensor> { Ok(normal(&shape, sample)?.to_device(device)?.to_dtype(dtype.dtype())?) };
    let (q, k, v, d_o) = (draw(0)?, draw(1)?, draw(2)?, draw(3)?);
    let scale = (head_dim as f64).powf(-0.5);
    let peak = peak_on(device, isa, dtype)?;
    let qkv = Qkv::new(&q, &k, &v);
    let attend = || if device.is_cpu() { forward_on(isa, qkv, scale) } else { flash(qkv, scale) };
    let done = || Ok(device.synchronize()?); // a GPU is only asked to work so far
    let forward = timed(args.timing.runs, || attend().and_then(|_| done()))?;
    let rows = |x: &Tensor| x.reshape((heads * tokens, head_dim));
    let both = timed(args.timing.runs, || {
        let (o, lse) = attend()?;
        let delta = row_dot(&rows(&d_o)?, &rows(&o)?, 1)?.reshape((1, heads, tokens))?;
        let saved = SavedRows::new(&d_o, &lse, &delta);
        match device.is_cpu() {
            true => backward_on(isa, qkv, saved, scale),
            false => flash_backward(qkv, saved, scale),
        }?;
        done()
    })?;
    let flop = flops::attention(tokens, heads, head_dim);
    let path = if device.is_cpu() { isa.name() } else { "cuda" };
    let facts = facts![tokens, heads, head_dim, dtype, threads, path];
    let report = Report::new("attention", facts).on(device).against(peak, tokens);
    Ok(report.passes([forward, flop], [both, flops::ATTENTION_BOTH * flop]))
}
