//! Runs `longreel forward` on a VAE, and has what `longreel encode` and `longreel decode` share.

use candle_core::Device;
use clap::Args;
use std::path::Path;

use super::forward::ForwardArgs;
use crate::config::{Compute, Hardware};
use crate::data::write::check_fps;
use crate::files::{Tensors, write_tensors};
use crate::parallel::{Launch, is_first};
use crate::simd::Isa;
use crate::train::device::device;
use crate::vae::{Arithmetic, Decoder, Encoder, Frame, VaeConfig, VaeWeights, tiles};
use crate::{Result, bail, encode, hub};

/// The VAE, and how it computes.
#[derive(Debug, Args)]
pub(super) struct VaeArgs {
    /// A diffusers VAE or pipeline folder, Wan's own folder or file, or `hf://owner/name[@revision][/path]`
    #[arg(long, value_name = "VAE_DIR", value_parser = super::place())]
    pub vae: String,
    /// Ranks, as threads of this process, which share each frame by rows; default: 1. Under mpirun or srun each process
    /// is a rank
    #[arg(long, value_name = "P", value_parser = super::at_least_1)]
    pub ranks: Option<usize>,
    /// On one rank: work on tiles of this side in pixels, for less memory, with the same result
    #[arg(long, value_name = "PIXELS", value_parser = super::at_least_1)]
    pub tile: Option<usize>,
    /// Arithmetic of convolutions and attention
    #[arg(long, default_value = "f32")]
    pub dtype: Compute,
    /// What computes; default: the CPU, or the GPU that a launcher gave this rank
    #[arg(long)]
    pub device: Option<Hardware>,
}

impl VaeArgs {
    /// How many ranks there are; tiles are for one.
    pub fn ranks(&self, launch: &Launch) -> Result<usize> {
        let ranks = launch.ranks(self.ranks, "--ranks")?;
        check_tile(self.tile, ranks)?;
        Ok(ranks)
    }

    /// The weights, none of which is read yet.
    pub fn open(&self, launch: &Launch) -> Result<VaeWeights> {
        VaeWeights::open(&launch.rank0_first(|| hub::resolve(&self.vae))?)
    }

    /// What the layers of this process's ranks run on.
    pub fn device(&self, ranks: usize, launch: &Launch) -> Result<Device> {
        device(self.device, "--device", ranks, launch)
    }

    pub fn arithmetic(&self) -> Arithmetic {
        arithmetic(self.dtype)
    }

    /// Tiles of a frame of `size` `[rows, width]` pixels.
    pub fn tiles(&self, config: &VaeConfig, size: [usize; 2]) -> usize {
        self.tile.map_or(1, |tile| tiles::count(config, size, tile))
    }
}

fn arithmetic(dtype: Compute) -> Arithmetic {
    Arithmetic { isa: Isa::best(), bf16: dtype == Compute::Bf16 }
}

fn check_tile(tile: Option<usize>, ranks: usize) -> Result<()> {
    if tile.is_some() && ranks > 1 {
        bail!(Config, "--tile is for one rank; {ranks} ranks share each frame by rows instead");
    }
    Ok(())
}

/// For clap: frames per second.
pub(super) fn fps(text: &str) -> std::result::Result<f64, String> {
    let fps = text.parse().map_err(|_| "must be a number")?;
    check_fps(fps).map(|()| fps).map_err(|e| e.to_string())
}

/// What is at work after `calls` frames of tiles, one tile for all frames after another, and the share that is done.
pub(super) fn frame_and_share(calls: usize, frames: usize, tiles: usize) -> (String, f64) {
    let (tile, frame) = (calls.saturating_sub(1) / frames, calls.saturating_sub(1) % frames + 1);
    let tile = if tiles > 1 { format!("tile {}/{tiles}  ", tile + 1) } else { String::new() };
    (format!("{tile}frame {frame}/{frames}"), calls as f64 / (frames * tiles) as f64)
}

/// Encodes `pixels` or decodes `latents` of the inputs.
pub(super) fn forward(args: &ForwardArgs, path: &Path, ranks: usize, launch: &Launch) -> Result<()> {
    if args.grads {
        bail!(Config, "--grads: a VAE is frozen, it has no gradients");
    }
    let device = device(args.device, "--device", ranks, launch)?;
    check_tile(args.tile, ranks)?;
    let weights = VaeWeights::open(path)?;
    let arithmetic = arithmetic(args.dtype);
    let file = Tensors::open(&args.inputs)?;
    let mut results = match (file.contains("pixels"), file.contains("latents")) {
        (true, false) => {
            let clip = Clip::read(&file, "pixels", 3)?;
            weights.config.check_size([clip.size[2], clip.size[3]]).map_err(|e| e.at(args.inputs.display()))?;
            let encoder = Encoder::load(&weights, arithmetic, &device)?;
            launch.run(ranks, |comm| {
                let [_, t, h, w] = clip.size;
                let moments = match args.tile {
                    Some(tile) => tiles::encode(&encoder, t, [h, w], tile, &mut |t, rows, columns| {
                        Ok(clip.frame(t).part(rows, columns))
                    })?,
                    None => {
                        let mut read = |t: usize, rows| Ok(Frame { cut: [false; 4], ..clip.frame(t).part(rows, 0..w) });
                        encode::encode(&encoder, &comm, t, [h, w], true, &mut read, &mut |_| ())?
                    }
                };
                let latents: Vec<Frame> = moments.iter().map(|frame| encoder.latents(frame)).collect();
                Ok(vec![stacked("moments", &moments), stacked("latents", &latents)])
            })?
        }
        (false, true) => {
            let clip = Clip::read(&file, "latents", weights.config.z_dim)?;
            let decoder = Decoder::load(&weights, arithmetic, &device)?;
            let latents: Vec<Frame> = (0..clip.size[1]).map(|t| clip.frame(t)).collect();
            launch.run(ranks, |comm| {
                let mut frames: Vec<Frame> = vec![];
                let scale = decoder.config().scale_space();
                let [_, _, h, w] = clip.size;
                match args.tile {
                    Some(tile) => tiles::decode(&decoder, &latents, tile, &mut |t, tile| {
                        if frames.len() == t {
                            let shape = [h * scale, w * scale, 3];
                            frames.push(Frame::new(shape, vec![0.0; shape.iter().product()]));
                        }
                        frames[t].put(&tile);
                        Ok(())
                    })?,
                    None => encode::decode(&decoder, &comm, &latents, &mut |frame| {
                        frames.push(frame);
                        Ok(())
                    })?,
                }
                Ok(vec![stacked("decoded", &frames)])
            })?
        }
        _ => bail!(
            Data,
            "{}: must have either `pixels` [1, 3, T, H, W] or `latents` [1, {}, T, h, w]",
            args.inputs.display(),
            weights.config.z_dim
        ),
    };
    if !is_first() {
        return Ok(()); // all have the same
    }
    write_tensors(&args.output, results.swap_remove(0))
}

/// A clip `[channels, frames, rows, width]`.
pub(super) struct Clip {
    pub size: [usize; 4],
    values: Vec<f32>,
}

impl Clip {
    /// Reads a tensor of `channels`, whose values must be finite; it may have a first dimension of 1.
    pub fn read(file: &Tensors, name: &str, channels: usize) -> Result<Self> {
        let shape = file.shape(name)?;
        let (&[1, c, t, h, w] | &[c, t, h, w]) = shape else { return Err(wrong(file, name, shape, channels)) };
        if c != channels || t * h * w == 0 {
            return Err(wrong(file, name, shape, channels));
        }
        let values = file.read_f32(name)?;
        if let Some(value) = values.iter().find(|x| !x.is_finite()) {
            bail!(Data, "{}: `{name}` has a value that is {value}", file.path().display());
        }
        Ok(Self { size: [c, t, h, w], values })
    }

    /// Frame `t`, whole.
    pub fn frame(&self, t: usize) -> Frame {
        let [c, frames, h, w] = self.size;
        let planes: Vec<f32> =
            (0..c).flat_map(|c| &self.values[(c * frames + t) * h * w..][..h * w]).copied().collect();
        Frame::from_planes([c, h, w], &planes)
    }
}

fn wrong(file: &Tensors, name: &str, shape: &[usize], channels: usize) -> crate::Error {
    let path = file.path().display();
    crate::Error::Shape(format!("{path}: `{name}` is {shape:?}; [1, {channels}, T, H, W] is wanted"))
}

/// Frames as one tensor `[1, channels, frames, rows, width]`.
pub(super) fn stacked(name: &str, frames: &[Frame]) -> (String, Vec<usize>, Vec<f32>) {
    let Frame { rows, width, channels, .. } = frames[0];
    let plane = rows * width;
    let mut values = vec![0.0; channels * frames.len() * plane];
    for (t, frame) in frames.iter().enumerate() {
        for c in 0..channels {
            frame.plane(c, &mut values[(c * frames.len() + t) * plane..][..plane]);
        }
    }
    (name.to_owned(), vec![1, channels, frames.len(), rows, width], values)
}
