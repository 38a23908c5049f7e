//! Runs `longreel bench` to time the work of training on this machine, alone or side by side with benches/peers/.
//!
//! Each kind of work has a file with its flags and what it counts; [`report`] prints it. Seconds are medians after one
//! run that does not count. Operations are counted from the shapes ([`crate::plan::flops`]), whatever the code really
//! did, and their share is of the peak that the same threads reached just before ([`mod@crate::simd::peak`]).

mod attention;
mod block;
mod latent;
mod linear;
mod peak;
mod report;
mod step;
mod text;
mod vae;

use candle_core::{DType, Device, Tensor};
use clap::{Args, Subcommand};
use rayon::prelude::*;
use std::time::Instant;

use super::machine::{on_threads, peak_of};
use crate::Result;
use crate::config::{Compute, Hardware};
use crate::parallel::Launch;
use crate::plan::flops;
use crate::rng::{Key, Purpose};
use crate::simd::Isa;
use crate::train::device::device;
use report::Report;

/// Measure this machine on the work of training.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Print one line of JSON, with the keys of benches/peers, instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Attention(attention::AttentionArgs),
    Linear(linear::LinearArgs),
    Block(block::BlockArgs),
    Step(step::StepArgs),
    Vae(vae::VaeArgs),
    Text(text::TextArgs),
    Peak(peak::PeakArgs),
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<()> {
    let report = match args.what {
        What::Attention(args) => attention::run(&args),
        What::Linear(args) => linear::run(&args),
        What::Block(args) => block::run(&args),
        What::Step(args) => step::run(&args),
        What::Vae(args) => vae::run(&args),
        What::Text(args) => text::run(&args),
        What::Peak(args) => peak::run(&args),
    }?;
    super::print(if args.json { report.json() } else { report.table() })
}

/// What `--device` names.
fn device_of(wanted: Option<Hardware>, ranks: usize) -> Result<Device> {
    device(wanted, "--device", ranks, &Launch::threads())
}

/// FLOP/s that `device` reaches in `dtype`: these threads on `isa`, or a GPU in large products by
/// cuBLAS.
fn peak_on(device: &Device, isa: Isa, dtype: Compute) -> Result<f64> {
    if device.is_cpu() {
        return Ok(peak_of(isa, dtype));
    }
    const N: usize = 8192;
    const RUNS: usize = 8;
    let kind = if dtype == Compute::Bf16 { DType::BF16 } else { DType::F32 };
    let x = Tensor::rand(-1f32, 1f32, (N, N), device)?.to_dtype(kind)?;
    x.matmul(&x)?;
    device.synchronize()?;
    let start = Instant::now();
    for _ in 0..RUNS {
        x.matmul(&x)?;
    }
    device.synchronize()?;
    Ok((RUNS * 2 * N.pow(3)) as f64 / start.elapsed().as_secs_f64())
}

/// The median of seconds.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The median seconds of `runs` runs of `f`, after one that does not count.
fn timed(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut seconds = vec![];
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}

/// Values of a tensor that one stream of random numbers makes. All threads draw such pieces: one alone would take
/// minutes for q, k, v of a long clip.
const DRAWN: usize = 1 << 20;

/// A tensor of normal random numbers in f32, the same for the same `sample`, on any number of threads.
fn normal(shape: &[usize], sample: u64) -> Result<Tensor> {
    let key = Key { seed: 0, purpose: Purpose::Test, step: 0, sample };
    let mut values = vec![0.0; shape.iter().product()];
    let draw = |(piece, values): (usize, &mut [f32])| key.stream(piece as u64).fill_normal(values);
    values.par_chunks_mut(DRAWN).enumerate().for_each(draw);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tensor_is_the_same_for_any_number_of_threads() {
        let draw = |threads| {
            on_threads(Some(threads), |_| Ok(normal(&[2, DRAWN + 3], 5)?.flatten_all()?.to_vec1::<f32>()?)).unwrap()
        };
        let values = draw(1);
        assert!(values == draw(3), "other threads, other numbers");
        assert!(values[..1000] != values[DRAWN..DRAWN + 1000], "the pieces repeat");
        let mean_square = |part: &[f32]| part.iter().map(|x| f64::from(x * x)).sum::<f64>() / part.len() as f64;
        for part in [&values[..DRAWN], &values[DRAWN..2 * DRAWN], &values[2 * DRAWN..]] {
            let bound = 4.0 * (2.0 / part.len() as f64).sqrt();
            assert!((mean_square(part) - 1.0).abs() < bound, "{} of {} numbers", mean_square(part), part.len());
        }
    }
}
