//! Opens one file for `longreel encode`, encodes it and writes its latents.

use std::path::PathBuf;
use std::sync::Arc;

use super::encode::EncodeArgs;
use super::vae::stacked;
use crate::data::{Augment, ClipOptions, Dataset, SourceFile};
use crate::encode::clip_reader::ClipReader;
use crate::files::{create_folders, write_tensors_with};
use crate::parallel::Communicator;
use crate::terminal::counted;
use crate::vae::{Encoder, Frame, VaeConfig, tiles};
use crate::{Result, encode};

/// Bytes of pixels that all ranks of a process decode at once.
const DECODED: usize = 256 << 20;

/// A file to encode.
pub(super) struct SourceClip {
    pub path: PathBuf,
    pub output: PathBuf,
    /// Of this one clip.
    dataset: Dataset,
    pub frames: usize,
    /// Rows and width.
    pub size: [usize; 2],
    /// What is done to it, for the user.
    pub summary: String,
}

impl SourceClip {
    /// Chooses frames and size of a file whose frames are clips of their own, or says why it cannot be encoded.
    pub fn open(
        args: &EncodeArgs,
        config: &VaeConfig,
        file: &SourceFile,
        output: PathBuf,
    ) -> std::result::Result<Self, String> {
        let grid = 2 * config.scale_space(); // networks take latents in squares of 2
        let source = [file.height, file.width];
        let size = match (args.height, args.width) {
            (Some(height), Some(width)) => [height, width],
            _ => source.map(|side| side / grid * grid),
        };
        let (shown, [height, width]) = (format!("{}x{} (width x height)", source[1], source[0]), size);
        if height * width == 0 {
            return Err(format!("it is too small: {shown}; at least {grid}x{grid} is needed"));
        }
        if height > source[0] || width > source[1] {
            return Err(format!("it is too small: {shown}; --height and --width ask {width}x{height}"));
        }
        let available = file.clips; // frames, at the rate asked
        let asked = args.frames.unwrap_or(available);
        if asked > available {
            return Err(format!("it has {}; --frames asks {asked}", counted(available, "frame", "frames")));
        }
        let frames = config.pixel_frames(config.latent_frames(asked));
        let options = ClipOptions { fps: args.fps, ..ClipOptions::new([frames, height, width]) };
        let dataset = Dataset::survey(&options, &file.path).map_err(|e| e.to_string())?;
        if let Some(skipped) = dataset.skipped().first() {
            return Err(skipped.reason.clone());
        }
        if dataset.is_empty() || dataset.clip(0).window > 0 {
            return Err("its first frames are too small".to_owned());
        }
        let mut summary = format!("{} of {width}x{height}", counted(frames, "frame", "frames"));
        if size != source {
            summary += &format!(", resized and cropped from {}x{}", source[1], source[0]);
        }
        if frames < asked {
            let (rest, group) = (asked - frames, config.scale_time());
            summary += &format!("; the last {rest} of {asked} left out, as the VAE takes 1 and then {group} at a time");
        }
        Ok(Self { path: file.path.clone(), output, dataset, frames, size, summary })
    }

    /// The work, in pixels.
    pub fn work(&self) -> f64 {
        (self.frames * self.size[0] * self.size[1]) as f64
    }

    /// The clip's frames of moments, on the ranks of `comm`; `report` is given the number of frames that are done, each
    /// tile's by itself.
    pub fn moments(
        &self,
        encoder: &Encoder,
        comm: &Arc<dyn Communicator>,
        tile: Option<usize>,
        report: &dyn Fn(usize),
    ) -> Result<Vec<Frame>> {
        let mut reader = ClipReader::new(&self.dataset, 0, Augment::PLAIN, DECODED / comm.size());
        let (frames, size, mut calls) = (self.frames, self.size, 0);
        match tile {
            Some(tile) => tiles::encode(encoder, frames, size, tile, &mut |t, rows, columns| {
                calls += 1;
                report(calls);
                reader.read(t, rows, columns)
            }),
            None => {
                let again = reader.holds_all();
                let mut read = |t, rows| reader.read(t, rows, 0..size[1]);
                encode::encode(encoder, comm, frames, size, again, &mut read, &mut |done| report(done))
            }
        }
    }

    /// Writes the normalised means of `moments`, and what the clip was.
    pub fn write(&self, encoder: &Encoder, moments: Vec<Frame>) -> Result<()> {
        let latents: Vec<Frame> = moments.into_iter().map(|frame| encoder.latents(&frame)).collect();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut metadata = vec![
            ("source", name),
            ("frames", self.frames.to_string()),
            ("height", self.size[0].to_string()),
            ("width", self.size[1].to_string()),
            ("vae", encoder.config().release().to_owned()),
        ];
        metadata.extend(self.dataset.clip(0).rate.map(|fps| ("fps", fps.to_string())));
        if let Some(folder) = self.output.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            create_folders(folder)?;
        }
        write_tensors_with(&self.output, &metadata, [stacked("latents", &latents)])
    }
}
