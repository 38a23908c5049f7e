//! Probes one file of a dataset: what it holds, how many clips it gives, or why none.

use super::clips::OwnClip;
use super::ffmpeg::Reason;
use super::image_reader::{self, Kind};
use super::options::ClipOptions;
use super::probe::VideoIndex;
use super::windows::{Windows, resample};
use crate::terminal::counted;
use crate::{Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that gives clips.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Frames that the file holds; 1 for an image.
    pub frames: usize,
    /// Height of a frame as shown, before resizing.
    pub height: usize,
    /// Width of a frame as shown.
    pub width: usize,
    /// Frames per second of the file; none for an image.
    pub rate: Option<f64>,
    /// How many clips are cut from it.
    pub clips: usize,
    /// What is said of it, by a text file beside it or a metadata.jsonl.
    pub caption: Option<Arc<str>>,
    /// Index in [`Dataset::classes`].
    pub class: Option<usize>,
    /// What whoever looks at the file would want to know, each a clause without a subject's name.
    pub notes: Vec<String>,
    /// The windows that are clips; none: all from the first on.
    pub(super) windows: Option<Vec<u32>>,
    pub(super) media: Media,
}

#[derive(Clone, Debug)]
pub(super) enum Media {
    Image,
    /// Frames of no file.
    Own(OwnClip),
    Video {
        index: Box<VideoIndex>,
        /// Which frames the configured rate takes; none: all.
        picks: Option<Vec<u32>>,
    },
}

/// Refuses values out of range.
pub(super) fn check(options: &ClipOptions) -> Result<()> {
    let counts =
        [("frames", options.frames), ("height", options.height), ("width", options.width), ("stride", options.stride)];
    for (key, value) in counts {
        if value == 0 || value > 1 << 24 {
            bail!(Config, "data.{key} = {value}: must be from 1 to {}", 1 << 24);
        }
    }
    if let Some(fps) = options.fps.filter(|fps| !(*fps > 0.0 && *fps <= 1000.0)) {
        bail!(Config, "data.fps = {fps}: must be above 0 and at most 1000");
    }
    Ok(())
}

/// What the file at `path` gives; caption and class are left to the caller.
pub(super) fn probe(options: &ClipOptions, path: &Path) -> Reason<SourceFile> {
    let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
    if std::fs::metadata(path).map_err(unreadable)?.len() == 0 {
        return Err("it is empty (0 bytes)".to_owned());
    }
    let too_small = |width, height| {
        let (w, h) = (options.width, options.height);
        format!("it is too small: {width}x{height} (width x height), a clip is {w}x{h}")
    };
    let kind = image_reader::sniff(path)?;
    let an_image = || match options.frames {
        0 | 1 => Ok(()),
        frames => Err(format!("it is an image, which is one frame; the config asks {frames}")),
    };
    if let Kind::Image(format) = kind {
        let (width, height) = image_reader::probe(path, format)?;
        an_image()?;
        if width < options.width || height < options.height {
            return Err(too_small(width, height));
        }
        return Ok(SourceFile {
            path: path.to_owned(),
            frames: 1,
            height,
            width,
            rate: None,
            clips: 1,
            caption: None,
            class: None,
            notes: Vec::new(),
            windows: None,
            media: Media::Image,
        });
    }
    if kind == Kind::Avif {
        an_image()?;
    }
    let index = VideoIndex::probe(path)?;
    let (times, count) = (index.times(), index.pts.len());
    let picks = match options.fps {
        None => None,
        Some(fps) => {
            let span = times[count - 1] - times[0];
            if span * fps > 1000.0 * (count + 10) as f64 {
                return Err(format!("its {count} frames claim to last {span:.0} seconds: its timestamps are broken"));
            }
            Some(resample(&times, index.tick, fps))
        }
    };
    let windowing = Windows { frames: options.frames, stride: options.stride };
    let usable = picks.as_ref().map_or(count, Vec::len);
    let missing = windowing.missing(usable);
    if missing > 0 {
        let rate = options.fps.map_or(String::new(), |fps| format!(" at {fps} frames per second"));
        let (missing, usable) = (counted(missing, "frame", "frames"), counted(usable, "frame", "frames"));
        return Err(format!("it is {missing} too short: {usable}{rate}, a clip spans {}", windowing.span()));
    }
    let (width, height) = index.sizes.of(0).shown();
    let one_size = index.sizes.runs().len() == 1;
    if one_size && (width < options.width || height < options.height) {
        return Err(too_small(width, height));
    }
    let mut file = SourceFile {
        path: path.to_owned(),
        frames: count,
        height,
        width,
        rate: index.rate.filter(|_| kind == Kind::Other),
        clips: windowing.count(usable),
        caption: None,
        class: None,
        notes: index.notes.clone(),
        windows: None,
        media: Media::Video { index: Box::new(index), picks },
    };
    file.heed_sizes(options)?;
    file.note_looks(options);
    Ok(file)
}

impl SourceFile {
    /// Notes what is done to interlaced frames and to high dynamic range.
    pub(super) fn note_looks(&mut self, options: &ClipOptions) {
        let Media::Video { index, .. } = &self.media else { return };
        let interlaced = match options.deinterlace {
            true => "it is interlaced, and deinterlaced",
            false => "it is interlaced, and left so (data.deinterlace = false): what moves has combs",
        };
        let hdr = match options.tonemap {
            true => "it has high dynamic range, and is tone-mapped",
            false => "it has high dynamic range, and is left so (data.tonemap = false): colours look washed out",
        };
        for (is, note) in [(index.interlaced, interlaced), (index.hdr, hdr)] {
            if is && !self.notes.iter().any(|known| known == note) {
                self.notes.push(note.to_owned());
            }
        }
    }

    /// Leaves out the clips that reach into frames smaller than a clip, where the size changes on the way, and notes
    /// that.
    ///
    /// # Errors
    /// No clip is left.
    pub(super) fn heed_sizes(&mut self, options: &ClipOptions) -> Reason<()> {
        let Media::Video { index, picks } = &self.media else { return Ok(()) };
        let runs = index.sizes.runs();
        if runs.len() < 2 {
            return Ok(());
        }
        let small = |n: u32| {
            let (width, height) = index.sizes.of(n).shown();
            width < options.width || height < options.height
        };
        let windowing = Windows { frames: options.frames, stride: options.stride };
        let count = windowing.count(picks.as_ref().map_or(index.pts.len(), Vec::len));
        let number = |position: usize| picks.as_ref().map_or(position as u32, |picks| picks[position]);
        let fits = |w: &u32| !(0..windowing.frames).any(|i| small(number(windowing.frame(*w as usize, i))));
        let windows: Vec<u32> = (0..count as u32).filter(fits).collect();
        let listed = runs.iter().take(4).map(|(from, size)| {
            let (width, height) = size.shown();
            format!("{width}x{height} from frame {from}")
        });
        let more = if runs.len() > 4 { ", and so on" } else { "" };
        let sizes =
            format!("its frames change their size (width x height): {}{more}", listed.collect::<Vec<_>>().join(", "));
        let left_out = count - windows.len();
        let (w, h) = (options.width, options.height);
        let reason = format!("{sizes}; {left_out} of its {count} clips reach into frames smaller than {w}x{h}");
        if windows.is_empty() {
            return Err(reason);
        }
        if left_out > 0 {
            tracing::warn!("{}: {reason}, and are not used", self.path.display());
            self.notes.push(format!("{reason}, and are not used"));
        } else if !self.notes.contains(&sizes) {
            self.notes.push(sizes);
        }
        (self.clips, self.windows) = (windows.len(), (left_out > 0).then_some(windows));
        Ok(())
    }
}
