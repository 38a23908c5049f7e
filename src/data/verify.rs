//! Decodes whole files to find damage that their indexes do not show: `longreel scan --decode`.

use super::caught::caught;
use super::dataset::Dataset;
use super::ffmpeg::Reason;
use super::fit_image;
use super::image_reader::ImageReader;
use super::options::ClipOptions;
use super::probe::{VideoIndex, from_decoding};
use super::shuffle::Augment;
use super::skipped::Skipped;
use super::source::Media;
use crate::terminal::counted;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

impl Dataset {
    /// Decodes every used file from start to end, in parallel, and moves the damaged ones to
    /// [`skipped`](Self::skipped).
    pub fn decode_all(mut self) -> Self {
        let checks: Vec<Reason<()>> = self
            .files
            .par_iter_mut()
            .map(|file| {
                caught(|| {
                    let options = file.options.clone();
                    match &mut file.media {
                        Media::Image => verify_image(&options, &file.path)?,
                        Media::Own(_) => {}
                        Media::Video { index, .. } => Arc::make_mut(index).verify(&file.path)?,
                    }
                    file.note_looks(&options);
                    if file.windows.is_none() { file.heed_sizes(&options) } else { Ok(()) }
                })
            })
            .collect();
        let mut files = Vec::new();
        for (file, check) in self.files.into_iter().zip(checks) {
            match check {
                Ok(()) => files.push(file),
                Err(reason) => {
                    self.skipped.push(Skipped::new(file.path, reason));
                }
            }
        }
        let mut checked = Self::of_sources(self.options, files, self.skipped, self.classes);
        checked.number = self.number;
        checked
    }
}

impl VideoIndex {
    /// Decodes the whole file and compares; notes sizes that change on the way. An error says where it is damaged.
    pub fn verify(&mut self, path: &Path) -> Reason<()> {
        let found = from_decoding(path, &self.packets)?;
        if found.order.len() != self.pts.len() {
            return Err(format!(
                "{} can be decoded of {}",
                counted(found.order.len(), "frame", "frames"),
                self.pts.len()
            ));
        }
        let expected = |(n, number): (usize, &Option<usize>)| number.is_some_and(|i| self.frames[i] == n as u32);
        if !self.frames.is_empty() && !found.order.iter().enumerate().all(expected) {
            return Err("its timestamps contradict the order of its frames".to_owned());
        }
        let opaque = self.sizes.of(0).shape.opaque;
        self.sizes = found.sizes;
        (self.interlaced, self.hdr) = (found.looks.interlaced, found.looks.hdr);
        self.sizes.0.iter_mut().for_each(|run| run.1.shape.opaque = opaque);
        Ok(())
    }
}

/// Makes the clip that an image gives, as training does, and decodes the rest of it.
fn verify_image(options: &ClipOptions, path: &Path) -> Reason<()> {
    let [height, width] = [options.height, options.width];
    let mut image = ImageReader::open(path)?;
    fit_image::fit_image(&mut image, [height, width], &Augment::PLAIN, 0..height, &mut vec![0; height * width * 3])?;
    image.finish()
}
