//! How well a run has memorised its clips: samples one clip and compares it with every clip of the run's data.
//!
//!     longreel train configs/overfit.toml
//!     cargo run --release --example psnr runs/overfit
//!
//! Prints the PSNR in dB, 20 log10(255) - 10 log10(mean squared error), against the nearest clip.

use candle_core::DType;
use longreel::config::RunConfig;
use longreel::data::{Augment, Dataset};
use longreel::diffusion::Objective;
use longreel::model::{Model, ModelConfig};
use longreel::parallel::{Sequence, run_threads};
use longreel::sample::{ClipSampler, ClipSpec, Request};
use longreel::state::checkpoint::Checkpoint;
use longreel::{Error, Result};

fn main() -> Result<()> {
    let run = std::env::args().nth(1).ok_or_else(|| Error::Config("usage: psnr RUN".into()))?;
    let checkpoint = Checkpoint::open(run.as_ref())?;
    let config = RunConfig::of_checkpoint(&checkpoint)?;
    let folder = checkpoint.ema()?;
    let network = ModelConfig::from_json(folder.config())?;
    let request = Request::from_config(&config)?;
    let objective = Objective::new(&config.diffusion)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let clip = run_threads(1, threads, |comm| {
        let sequence = Sequence::new(comm, network.num_attention_heads, 0)?;
        let model = Model::load(&network, DType::F32, false, |name| folder.read_f32(name))?;
        let sampler = ClipSampler {
            model: &model,
            objective: &objective,
            sequence: &sequence,
            request: &request,
            tile: config.train.tile,
            decoder: None,
            prompts: None,
        };
        sampler.sample(ClipSpec { index: 0, label: None, prompt: 0 })?.collect(&sequence.all)
    })?
    .remove(0)
    .ok_or_else(|| Error::Data("rank 0 has no clip".into()))?;

    let dataset = Dataset::open(&config.data.clips(), config.data.path.as_ref())?;
    let mut best = f64::NEG_INFINITY;
    for number in 0..dataset.len() {
        let truth = dataset.frames(&dataset.clip(number), &Augment::PLAIN, 0..config.data.frames)?;
        let squares = truth.data.iter().zip(&clip.data).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        let mse = squares.sum::<f64>() / truth.data.len() as f64;
        best = best.max(20.0 * 255f64.log10() - 10.0 * mse.log10());
    }
    println!("PSNR {best:.2} dB at step {}", checkpoint.state().step);
    Ok(())
}
