//! Runs `longreel decode`, which makes clips of latents.

use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;

use super::progress::Progress;
use super::vae::{Clip, VaeArgs, frame_and_share};
use crate::data::unit_to_u8;
use crate::data::write::{Kind, VideoWriter, check_empty_folder, check_fps, write_video};
use crate::files::Tensors;
use crate::parallel::{Communicator, Launch, is_first};
use crate::vae::{Decoder, Frame, VaeConfig, tiles};
use crate::{Result, bail, encode, terminal};

/// Decode a VAE's latents to a video, an animation or pictures.
///
/// The latents are [1, z, T', h, w] or [z, T', h, w], the means normalised, as `longreel encode` writes them. Videos
/// are written frame by frame.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// The latents
    #[arg(value_name = "LATENTS.safetensors", value_parser = super::path())]
    pub latents: PathBuf,
    /// Where to write: video (.mp4, .webm) or animation (.gif, .webp), a picture of all frames (.png), or a folder of
    /// numbered PNGs
    #[arg(short, long, value_name = "FILE.mp4|.webm|.gif|.webp|.png|DIR/", value_parser = super::path())]
    pub output: PathBuf,
    #[command(flatten)]
    pub vae: VaeArgs,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// The latents' name in their file; default: `latents`, or the only tensor
    #[arg(long)]
    pub name: Option<String>,
    /// Frames per second; default: as the latents' file says, else 16, or 24 for the 2.2 VAE
    #[arg(long, value_name = "F", value_parser = super::vae::fps)]
    pub fps: Option<f64>,
}

/// Runs the command.
pub fn run(args: &DecodeArgs, launch: &Launch) -> Result<()> {
    let ranks = args.vae.ranks(launch)?;
    let device = args.vae.device(ranks, launch)?;
    let kind = super::output_kind(&args.output)?;
    match kind {
        Kind::Folder => check_empty_folder(&args.output)?,
        _ => super::may_write(&args.output, args.force)?,
    }
    let file = Tensors::open(&args.latents)?;
    let weights = args.vae.open(launch)?;
    let config = &weights.config;
    let clip = args.read(&file, config)?;
    let fps = args.fps(&file, config)?;
    let decoder = Decoder::load(&weights, args.vae.arithmetic(), &device)?;
    let [_, t, h, w] = clip.size;
    let size = [h, w].map(|side| side * config.scale_space());
    let (frames, tiles) = (config.pixel_frames(t), args.vae.tiles(config, size));
    let latents: Vec<Frame> = (0..t).map(|t| clip.frame(t)).collect();
    drop(clip);
    let progress = is_first().then(Progress::new);

    launch.run(ranks, |comm| {
        if comm.rank() > 0 {
            return encode::decode(&decoder, &comm, &latents, &mut |_| Ok(())); // rank 0 writes
        }
        let report = |calls| {
            if let Some(progress) = &progress {
                let (what, share) = frame_and_share(calls, frames, tiles);
                progress.update(&what, share);
            }
        };
        let mut sink = Sink::create(args, kind, size, fps)?;
        match args.vae.tile {
            Some(tile) => sink.push(&decode_tiles(&decoder, &latents, [frames, size[0], size[1]], tile, &report)?)?,
            None => decode_frames(&decoder, &comm, &latents, &mut sink, &report)?,
        }
        sink.finish()
    })?;
    drop(progress);
    if is_first() { super::print(terminal::name(&args.output)) } else { Ok(()) }
}

impl DecodeArgs {
    /// The latents, if they can be of this VAE.
    fn read(&self, file: &Tensors, config: &VaeConfig) -> Result<Clip> {
        let shown = self.latents.display();
        let names: Vec<&str> = file.names().collect();
        let name = match (self.name.as_deref(), &names[..]) {
            (Some(name), _) => name,
            (None, [name]) => name,
            (None, names) if names.contains(&"latents") => "latents",
            (None, _) => {
                let (count, listed) = (names.len(), names[..names.len().min(8)].join(", "));
                bail!(Data, "{shown}: has {count} tensors, none of them called latents; name one by --name: {listed}")
            }
        };
        let release = config.release();
        if let Some(other) = file.metadata("vae").filter(|other| *other != release) {
            bail!(Data, "{shown}: is of the VAE of {other}, and --vae is that of {release}")
        }
        if let &[_, c, _, _, _] | &[c, _, _, _] = file.shape(name)?
            && c != config.z_dim
        {
            let z = config.z_dim;
            bail!(Shape, "{shown}: `{name}` has {c} channels, and latents of this VAE have {z}: it is of another VAE")
        }
        Clip::read(file, name, config.z_dim)
    }

    /// Frames per second: as asked, or as the file says, or as the VAE's networks make them.
    fn fps(&self, file: &Tensors, config: &VaeConfig) -> Result<f64> {
        let Some(said) = file.metadata("fps").filter(|_| self.fps.is_none()) else {
            return Ok(self.fps.unwrap_or_else(|| config.fps()));
        };
        match said.parse().ok().filter(|&fps| check_fps(fps).is_ok()) {
            Some(fps) => Ok(fps),
            None => {
                bail!(Data, "{}: says fps = {said}, which is no frame rate; say it by --fps", self.latents.display())
            }
        }
    }
}

/// Decodes on the ranks of `comm`, whole frames one after another.
fn decode_frames(
    decoder: &Decoder,
    comm: &Arc<dyn Communicator>,
    latents: &[Frame],
    sink: &mut Sink,
    report: &dyn Fn(usize),
) -> Result<()> {
    let mut done = 0;
    encode::decode(decoder, comm, latents, &mut |frame| {
        sink.push(&frame.values.iter().map(|&value| unit_to_u8(value)).collect::<Vec<u8>>())?;
        done += 1;
        report(done);
        Ok(())
    })
}

/// Decodes tile by tile, each for all frames; so all frames are kept, as u8 `[frames, rows, width, 3]`.
fn decode_tiles(
    decoder: &Decoder,
    latents: &[Frame],
    [frames, rows, width]: [usize; 3],
    tile: usize,
    report: &dyn Fn(usize),
) -> Result<Vec<u8>> {
    let mut pixels = vec![0; frames * rows * width * 3];
    let mut calls = 0;
    tiles::decode(decoder, latents, tile, &mut |t, tile| {
        let [y, x] = tile.origin;
        for (i, row) in tile.values.chunks_exact(tile.width * 3).enumerate() {
            let start = ((t * rows + y + i) * width + x) * 3;
            pixels[start..][..row.len()].iter_mut().zip(row).for_each(|(pixel, value)| *pixel = unit_to_u8(*value));
        }
        calls += 1;
        report(calls);
        Ok(())
    })?;
    Ok(pixels)
}

/// Where frames go as they come: to an encoder of video, or into memory for the other kinds of file.
struct Sink<'a> {
    args: &'a DecodeArgs,
    writer: Option<VideoWriter>,
    pixels: Vec<u8>,
    size: [usize; 2],
    fps: f64,
}

impl<'a> Sink<'a> {
    fn create(args: &'a DecodeArgs, kind: Kind, size: [usize; 2], fps: f64) -> Result<Self> {
        let [height, width] = size;
        let writer = match kind {
            Kind::Video(container) => Some(VideoWriter::create(&args.output, container, height, width, fps)?),
            _ => None,
        };
        Ok(Self { args, writer, pixels: vec![], size, fps })
    }

    /// Takes frames [n, height, width, 3].
    fn push(&mut self, frames: &[u8]) -> Result<()> {
        match &mut self.writer {
            Some(writer) => writer.push(frames),
            None => {
                self.pixels.extend_from_slice(frames);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<()> {
        let [height, width] = self.size;
        match self.writer {
            Some(writer) => writer.finish(),
            None => write_video(&self.args.output, &self.pixels, height, width, self.fps),
        }
    }
}
