//! Times a VAE with random weights, a clip at a time. Counterpart: benches/peers/vae.py.

use candle_core::Device;
use clap::{Args, ValueEnum};
use std::sync::Arc;

use super::{Report, normal, on_threads, peak_of, timed};
use crate::Result;
use crate::cli::at_least_1;
use crate::config::Compute;
use crate::encode;
use crate::parallel::{Communicator, Single};
use crate::simd::Isa;
use crate::vae::{Arithmetic, Decoder, Encoder, Frame, Stage, TensorSpec, VaeConfig, VaeCost};

/// A VAE of Wan's widths with random weights, encoding or decoding one clip.
#[derive(Debug, Args)]
pub struct VaeArgs {
    /// Pixels to latents, or latents to pixels
    #[arg(long, default_value = "encode")]
    half: Half,
    /// The VAE of Wan 2.1 and of 2.2's A14B, or that of TI2V-5B
    #[arg(long, default_value = "2.1")]
    kind: Kind,
    /// Frames of pixels, 4 k + 1
    #[arg(long, default_value = "17", value_parser = at_least_1)]
    frames: usize,
    /// Height in pixels
    #[arg(long, default_value = "256", value_parser = at_least_1)]
    height: usize,
    /// Width in pixels
    #[arg(long, default_value = "448", value_parser = at_least_1)]
    width: usize,
    /// Arithmetic of products
    #[arg(long, default_value = "f32")]
    dtype: Compute,
    /// Runs measured, after one that is not; the median is reported
    #[arg(long, default_value = "1", value_parser = at_least_1)]
    runs: usize,
    /// Only one residual block at each resolution, a frame at a time
    #[arg(long)]
    stages: bool,
    /// Threads; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Half {
    Encode,
    Decode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    #[value(name = "2.1")]
    Wan21,
    #[value(name = "2.2")]
    Wan22,
}

/// Measures it.
pub fn run(args: &VaeArgs) -> Result<Report> {
    on_threads(args.threads, |threads| measure(args, threads))
}

/// A tensor of normal random numbers, scaled so that values neither vanish nor grow from layer to layer.
fn random(tensor: &TensorSpec) -> Result<Vec<f32>> {
    let name = tensor.name.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
    let values = normal(&tensor.shape, name)?.flatten_all()?.to_vec1::<f32>()?;
    let fan_in: usize = tensor.shape[1..].iter().product();
    Ok(match tensor.name.ends_with("gamma") {
        true => values.iter().map(|x| 1.0 + 0.1 * x).collect(),
        false => values.iter().map(|x| x / (fan_in.max(1) as f32).sqrt()).collect(),
    })
}

/// Frames of random numbers.
fn clip(frames: usize, shape: [usize; 3]) -> Result<Vec<Frame>> {
    (0..frames).map(|t| Ok(Frame::new(shape, normal(&shape, t as u64)?.flatten_all()?.to_vec1()?))).collect()
}

fn measure(args: &VaeArgs, threads: usize) -> Result<Report> {
    let &VaeArgs { half, kind, frames, height, width, dtype, .. } = args;
    let config = match kind {
        Kind::Wan21 => VaeConfig::default(),
        Kind::Wan22 => VaeConfig::wan22(),
    };
    let side = config.scale_space();
    let latents = config.latent_frames(frames);
    let size = config.space().size([frames, height, width], [1; 3])?;
    let arithmetic = Arithmetic { isa: Isa::best(), bf16: dtype == Compute::Bf16 };
    let peak = peak_of(Isa::best(), dtype);
    let name = if matches!(kind, Kind::Wan21) { "2.1" } else { "2.2" };
    let facts = facts![half = if matches!(half, Half::Encode) { "encode" } else { "decode" }, kind = name];
    let facts = [facts, facts![frames, height, width, dtype, threads]].concat();
    let report = Report::new("vae", facts);
    if args.stages {
        let stages = match half {
            Half::Encode => Stage::of_encoder(&config, arithmetic, &mut random)?,
            Half::Decode => Stage::of_decoder(&config, arithmetic, &mut random)?,
        };
        return measure_stages(stages, args, report.against(peak, height * width));
    }
    let single: Arc<dyn Communicator> = Arc::new(Single);
    let (seconds, cost) = match half {
        Half::Encode => {
            let encoder = Encoder::build(&config, arithmetic, &Device::Cpu, &mut random)?;
            let clip = clip(frames, [height, width, 3])?;
            let seconds = timed(args.runs, || {
                let mut read = |t: usize, rows| Ok(clip[t].part(rows, 0..width));
                encode::encode(&encoder, &single, frames, [height, width], true, &mut read, &mut |_| ()).map(drop)
            })?;
            (seconds, VaeCost::of_encoder(&config))
        }
        Half::Decode => {
            let decoder = Decoder::build(&config, arithmetic, &Device::Cpu, &mut random)?;
            let clip = clip(latents, [size[1], size[2], config.z_dim])?;
            let seconds = timed(args.runs, || encode::decode(&decoder, &single, &clip, &mut |_| Ok(())))?;
            (seconds, VaeCost::of_decoder(&config))
        }
    };
    let pixels = frames * (size[1] * side) * (size[2] * side);
    Ok(report.against(peak, pixels).pass("clip", "fwd", seconds, pixels as f64 * cost.flops))
}

/// Times a frame that has two before it.
fn measure_stages(stages: Vec<Stage>, args: &VaeArgs, mut report: Report) -> Result<Report> {
    for mut stage in stages {
        let (rows, width, channels) = (args.height / stage.side, args.width / stage.side, stage.channels);
        let frame = &clip(1, [rows, width, channels])?[0];
        stage.push(frame.clone())?;
        stage.push(frame.clone())?;
        let seconds = timed(args.runs, || stage.push(frame.clone()).map(drop))?;
        let name = format!("{channels} x {rows} x {width}");
        let flop = stage.flops() * (rows * width) as f64;
        report = report.pass(&name, &format!("side_{}", stage.side), seconds, flop);
    }
    Ok(report)
}
