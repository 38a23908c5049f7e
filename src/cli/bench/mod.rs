//! Runs `longreel bench` to time the work of training on this machine, alone or side by side with benches/peers/.
//!
//! Each kind of work has a file with its flags and what it counts; [`report`] prints it. Seconds are medians after one
//! run that does not count. Operations are counted from the shapes ([`crate::plan::flops`]), whatever the code really
//! did, and their share is of the peak that the same threads reached just before ([`mod@crate::simd::peak`]).

/// What a report says of a setting: `facts![tokens, in = inner]`.
macro_rules! facts {
    (@ $name:tt) => { (stringify!($name), serde_json::json!($name)) };
    (@ $name:tt $value:expr) => { (stringify!($name), serde_json::json!($value)) };
    ($($name:tt $(= $value:expr)?),*) => { vec![$(facts!(@ $name $($value)?)),*] };
}

mod attention;
mod block;
mod gpu;
mod latent;
mod linear;
mod peak;
mod report;
mod step;
mod text;
mod vae;

use candle_core::{Device, Tensor};
use clap::{Args, Subcommand};
use rayon::prelude::*;
use std::time::Instant;

use super::at_least_1;
use super::machine::{on_threads, peak_of};
use crate::Result;
use crate::config::Hardware;
use crate::parallel::Launch;
use crate::plan::flops;
use crate::rng::{Key, Purpose};
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

/// How work is timed that takes moments.
#[derive(Debug, Args)]
struct Timing {
    /// Runs measured, after one that is not; the median is reported
    #[arg(long, default_value = "5", value_parser = at_least_1)]
    runs: usize,
    /// Threads; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
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

/// The median of seconds.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The median of what `runs` rounds return, after one that does not count.
fn median_of(runs: usize, mut round: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut rounds = (0..=runs).map(|_| round()).collect::<Result<Vec<_>>>()?;
    Ok(median(rounds.split_off(1)))
}

/// The seconds that `work` takes.
fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The median seconds of `runs` runs of `work`, after one that does not count.
fn timed(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    median_of(runs, || seconds(&mut work))
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
