//! Runs `longreel encode`, which makes latents of videos and images.

use clap::Args;
use std::path::{Path, PathBuf};

use super::progress::Progress;
use super::source_clip::SourceClip;
use super::vae::{VaeArgs, frame_and_share};
use crate::data::{ClipOptions, Dataset};
use crate::parallel::{Launch, is_first};
use crate::terminal::counted;
use crate::vae::{Encoder, VaeConfig};
use crate::{Error, Result, bail, terminal};

/// Encode a video or an image, or each of a folder, to a VAE's latents.
///
/// A file's result is `latents` [1, z, T', h, w] in f32: the means, normalised, as a network sees them. Metadata tell
/// the source, its frames, size and rate, and the VAE. Frames are decoded as they are needed.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// A video, an image, or a folder of them
    #[arg(value_name = "FILE|DIR", value_parser = super::path())]
    pub input: PathBuf,
    /// The latents; of a folder's files a folder, with `NAME.safetensors` for each file
    #[arg(short, long, value_name = "OUT.safetensors|DIR", value_parser = super::path())]
    pub output: PathBuf,
    #[command(flatten)]
    pub vae: VaeArgs,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
    /// Frames, from the first on; default: all. The VAE takes one and then whole groups, of 4; the rest is left out
    #[arg(long, value_name = "N", value_parser = super::at_least_1)]
    pub frames: Option<usize>,
    /// Height to resize and crop to, in pixels; default: the file's, down to a multiple of 16, or 32 for the 2.2 VAE
    #[arg(long, value_name = "N", requires = "width", value_parser = super::at_least_1)]
    pub height: Option<usize>,
    /// Width to resize and crop to, in pixels; default: as the height's
    #[arg(long, value_name = "N", requires = "height", value_parser = super::at_least_1)]
    pub width: Option<usize>,
    /// Frames per second to resample to; default: the file's own frames
    #[arg(long, value_name = "F", value_parser = super::vae::fps)]
    pub fps: Option<f64>,
}

/// Runs the command.
pub fn run(args: &EncodeArgs, launch: &Launch) -> Result<()> {
    let ranks = args.vae.ranks(launch)?;
    let device = args.vae.device(ranks, launch)?;
    let folder = std::fs::metadata(&args.input).map_err(|e| Error::io(&args.input, e))?.is_dir();
    args.check_output(folder)?;
    let weights = args.vae.open(launch)?;
    let clips = args.clips(&weights.config, folder)?;
    let encoder = Encoder::load(&weights, args.vae.arithmetic(), &device)?;
    let progress = is_first().then(Progress::new);
    let total: f64 = clips.iter().map(SourceClip::work).sum();

    launch.run(ranks, |comm| {
        let mut done = 0.0;
        for (i, clip) in clips.iter().enumerate() {
            let which = if folder { format!("file {}/{}  ", i + 1, clips.len()) } else { String::new() };
            let tiles = args.vae.tiles(encoder.config(), clip.size);
            let report = |calls: usize| {
                if let Some(progress) = progress.as_ref().filter(|_| comm.rank() == 0) {
                    let (frame, share) = frame_and_share(calls, clip.frames, tiles);
                    progress.update(&format!("{which}{frame}"), (done + share * clip.work()) / total);
                }
            };
            let moments = clip.moments(&encoder, &comm, args.vae.tile, &report)?;
            if comm.rank() == 0 {
                clip.write(&encoder, moments)?;
            }
            done += clip.work();
        }
        Ok(())
    })?;
    drop(progress);
    if is_first() {
        clips.iter().try_for_each(|clip| super::print(terminal::name(&clip.output)))?;
    }
    Ok(())
}

impl EncodeArgs {
    /// Refuses an output that cannot be, before anything is opened.
    fn check_output(&self, folder: bool) -> Result<()> {
        let shown = self.output.display();
        if folder {
            if self.output.exists() && !self.output.is_dir() {
                bail!(Config, "{shown}: is no folder; the latents of a folder's files need one")
            }
            return super::check_parent(&self.output);
        }
        if self.output.extension().is_none_or(|extension| extension != "safetensors") {
            bail!(Config, "{shown}: latents are written to a file whose name ends with .safetensors")
        }
        super::check_parent(&self.output)?;
        super::may_write(&self.output, self.force)
    }

    /// What is to be encoded. Of a folder, files that cannot be are said and left out.
    fn clips(&self, config: &VaeConfig, folder: bool) -> Result<Vec<SourceClip>> {
        self.check_size(config)?;
        let options = ClipOptions { fps: self.fps, ..ClipOptions::new([1, 1, 1]) };
        let found = Dataset::survey(&options, &self.input)?; // every frame is a clip of its own
        let mut clips = vec![];
        let mut unfit: Vec<(&Path, String)> =
            found.skipped().iter().map(|skipped| (skipped.path.as_path(), skipped.reason.clone())).collect();
        for file in found.files() {
            let output = if folder { self.output_of(&file.path) } else { self.output.clone() };
            match SourceClip::open(self, config, file, output) {
                Ok(clip) => clips.push(clip),
                Err(reason) => unfit.push((&file.path, reason)),
            }
        }
        if clips.is_empty() {
            match unfit.first() {
                Some((path, reason)) if !folder => bail!(Data, "{}: cannot be encoded: {reason}", path.display()),
                Some((path, reason)) => bail!(
                    Data,
                    "{}: holds no file that can be encoded; {} left out, the first is {}: {reason}",
                    self.input.display(),
                    counted(unfit.len(), "is", "are"),
                    path.display()
                ),
                None => bail!(Data, "{}: holds no video or image", self.input.display()),
            }
        }
        for (path, reason) in unfit {
            tracing::warn!("{} is not encoded: {reason}", terminal::name(path));
        }
        for clip in &clips {
            super::may_write(&clip.output, self.force)?;
            tracing::info!("{}: {}", terminal::name(&clip.path), clip.summary);
        }
        Ok(clips)
    }

    /// Refuses a size that the VAE cannot take whole.
    fn check_size(&self, config: &VaeConfig) -> Result<()> {
        let (Some(height), Some(width)) = (self.height, self.width) else { return Ok(()) };
        let scale = config.scale_space();
        if height % scale + width % scale > 0 {
            let [height_on, width_on] = [height, width].map(|side| config.nearest(side));
            bail!(
                Config,
                "--height {height} --width {width}: this VAE needs multiples of {scale}; the nearest are --height \
                 {height_on} --width {width_on}"
            )
        }
        Ok(())
    }

    /// The output of a file of the folder: its path there, with another extension after its own.
    fn output_of(&self, path: &Path) -> PathBuf {
        let mut name = self.output.join(path.strip_prefix(&self.input).unwrap_or(path)).into_os_string();
        name.push(".safetensors");
        name.into()
    }
}
