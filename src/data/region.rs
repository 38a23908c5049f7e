//! Decodes the part of a clip that a rank's tokens lie in: its frames, and of them its lines, resized, cropped and
//! mirrored.

use super::caught::caught;
use super::dataset::{Clip, Dataset};
use super::decode;
use super::deinterlace;
use super::ffmpeg::Reason;
use super::fit_image;
use super::frames::{FrameRegion, Frames};
use super::image_reader::ImageReader;
use super::scale::Scaler;
use super::shuffle::Augment;
use super::source::Media;
use crate::{Result, bail};
use ffmpeg_next::frame;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

impl Dataset {
    /// Decodes frames `range` of `clip`, 0..options.frames being the whole, resized, cropped and mirrored.
    ///
    /// # Errors
    /// As [`region`](Self::region).
    pub fn frames(&self, clip: &Clip, augment: &Augment, range: Range<usize>) -> Result<Frames> {
        self.region(clip, augment, &FrameRegion::whole(range, self.options.height))
    }

    /// Decodes `region` of `clip`, resized, cropped and mirrored.
    ///
    /// # Errors
    /// The file has changed or is damaged since it was probed; names the file and the reason. The part reaches past the
    /// clip.
    pub fn region(&self, clip: &Clip, augment: &Augment, region: &FrameRegion) -> Result<Frames> {
        self.region_until(clip, augment, region, None)
    }

    /// As [`region`](Self::region), but gives up once `stop` is set.
    pub(super) fn region_until(
        &self,
        clip: &Clip,
        augment: &Augment,
        region: &FrameRegion,
        stop: Option<&AtomicBool>,
    ) -> Result<Frames> {
        let FrameRegion { frames, lines } = region;
        let (count, height) = (self.options.frames, self.options.height);
        if frames.start > frames.end || frames.end > count || lines.start >= lines.end || lines.end > height {
            bail!(Shape, "frames {frames:?}, lines {lines:?}, of a clip of {count} frames of {height} lines");
        }
        let mut out = Frames::black(region, height, self.options.width);
        if let Err(reason) = caught(|| self.fill(clip, augment, region, stop, &mut out)) {
            if let Media::Own(_) = self.files[clip.file].media {
                bail!(Data, "{}: {reason}", clip.path.display());
            }
            bail!(
                Data,
                "{}, clip {} from frame {}: {reason}; it was fine when the dataset was opened, \
                 `longreel scan --decode` finds every damaged file",
                clip.path.display(),
                clip.window,
                clip.first_frame
            );
        }
        Ok(out)
    }

    fn fill(
        &self,
        clip: &Clip,
        augment: &Augment,
        region: &FrameRegion,
        stop: Option<&AtomicBool>,
        out: &mut Frames,
    ) -> Reason<()> {
        if region.frames.is_empty() {
            return Ok(());
        }
        let size = [self.options.height, self.options.width];
        let bytes = region.lines.len() * size[1] * 3;
        let file = &self.files[clip.file];
        let options = &file.options;
        let index = match &file.media {
            Media::Image => {
                let mut image = ImageReader::open(&clip.path)?;
                return fit_image::fit_image(&mut image, size, augment, region.lines.clone(), &mut out.data);
            }
            Media::Own(own) => return own.fill(size, augment, region, out),
            Media::Video { index, .. } => index,
        };
        // Resampling to a higher rate takes a frame more than once: it is decoded once and copied.
        let taken: Vec<u32> = region.frames.clone().map(|i| file.frame(clip.window, i)).collect();
        let mut wanted = taken.clone();
        wanted.dedup();
        let mut scaler = Scaler::new(options.tonemap);
        let mut fit = |i: usize, frame: &frame::Video| {
            let from = taken.partition_point(|&n| n < wanted[i]);
            let count = taken[from..].partition_point(|&n| n == wanted[i]);
            let (first, copies) = out.data[from * bytes..(from + count) * bytes].split_at_mut(bytes);
            let shape = index.sizes.of(wanted[i]).shape;
            let (width, height) = shape.shown(frame.width() as usize, frame.height() as usize);
            if height < size[0] || width < size[1] {
                let (n, [h, w]) = (wanted[i], size);
                return Err(format!("frame {n} is {width}x{height} (width x height), smaller than a clip, {w}x{h}"));
            }
            scaler.fit(frame, shape, size, augment, region.lines.clone(), first)?;
            copies.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(first));
            Ok(())
        };
        let mut interlaced = options.deinterlace && index.interlaced;
        if !interlaced {
            let decoded = decode::frames(&clip.path, index, &wanted, stop, |i, frame| {
                interlaced = options.deinterlace && frame.is_interlaced();
                if interlaced { Err(String::new()) } else { fit(i, frame) }
            });
            if !interlaced {
                return decoded;
            }
        }
        deinterlace::frames(&clip.path, index, &wanted, stop, fit)
    }
}
