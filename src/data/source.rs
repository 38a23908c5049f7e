//! Probes one file of a dataset: what it holds, how many clips it gives, or why none.

use super::clips::OwnClip;
use super::extent::Extent;
use super::ffmpeg::Reason;
use super::file_bucket::FileShape;
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
    /// How often an epoch takes each of its clips.
    pub repeats: usize,
    /// How its clips are cut.
    pub(super) options: Arc<ClipOptions>,
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
        index: Arc<VideoIndex>,
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

/// A file that has been looked at, but not cut into clips.
pub(super) struct Probed {
    file: SourceFile,
    /// Frames at the rate that is asked for; none of an image.
    frames: Option<usize>,
}

/// What the file at `path` holds; caption and class are left to the caller.
pub(super) fn look(options: &ClipOptions, path: &Path) -> Reason<Probed> {
    let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
    if std::fs::metadata(path).map_err(unreadable)?.len() == 0 {
        return Err("it is empty (0 bytes)".to_owned());
    }
    let kind = image_reader::sniff(path)?;
    let mut file = SourceFile {
        path: path.to_owned(),
        frames: 1,
        height: 0,
        width: 0,
        rate: None,
        clips: 1,
        caption: None,
        class: None,
        notes: Vec::new(),
        repeats: 1,
        options: Arc::new(options.clone()),
        windows: None,
        media: Media::Image,
    };
    if let Kind::Image(format) = kind {
        (file.width, file.height) = image_reader::probe(path, format)?;
        return Ok(Probed { file, frames: None });
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
    let usable = picks.as_ref().map_or(count, Vec::len);
    (file.width, file.height) = index.sizes.of(0).shown();
    (file.frames, file.notes) = (count, index.notes.clone());
    file.rate = index.rate.filter(|_| kind == Kind::Other);
    file.media = Media::Video { index: Arc::new(index), picks };
    Ok(Probed { file, frames: (kind != Kind::Avif).then_some(usable) })
}

impl Probed {
    /// The largest clip that it gives if every `options.stride`-th frame counts.
    pub fn extent(&self, options: &ClipOptions) -> Extent {
        let frames = self.frames.map(|frames| frames.saturating_sub(1) / options.stride + 1);
        Extent { size: (self.file.width, self.file.height), frames }
    }

    /// What decides about its bucket.
    pub fn shape(&self) -> FileShape {
        let one_size = match &self.file.media {
            Media::Video { index, .. } => index.sizes.runs().len() == 1,
            _ => true,
        };
        FileShape { width: self.file.width, height: self.file.height, frames: self.frames, one_size }
    }

    /// The file's clips of the size that `options` say, or why it has none.
    pub fn cut(&self, options: &Arc<ClipOptions>) -> Reason<SourceFile> {
        let windowing = Windows::of(options);
        match self.frames {
            None if options.frames > 1 => {
                return Err(format!("it is an image, which is one frame; the config asks {}", options.frames));
            }
            Some(usable) if windowing.missing(usable) > 0 => {
                let rate = options.fps.map_or(String::new(), |fps| format!(" at {fps} frames per second"));
                let missing = counted(windowing.missing(usable), "frame", "frames");
                let usable = counted(usable, "frame", "frames");
                return Err(format!("it is {missing} too short: {usable}{rate}, a clip spans {}", windowing.span()));
            }
            _ => {}
        }
        let FileShape { width, height, one_size, .. } = self.shape();
        let (w, h) = (options.width, options.height);
        if one_size && (width < w || height < h) {
            return Err(format!("it is too small: {width}x{height} (width x height), a clip is {w}x{h}"));
        }
        let mut file = SourceFile { options: options.clone(), ..self.file.clone() };
        if let Media::Video { index, picks } = &file.media {
            file.clips = windowing.count(picks.as_ref().map_or(index.pts.len(), Vec::len));
            file.heed_sizes(options)?;
            file.note_looks(options);
        }
        Ok(file)
    }
}

impl SourceFile {
    /// The number of frame `i` of its clip `window`.
    pub(super) fn frame(&self, window: usize, i: usize) -> u32 {
        let n = Windows::of(&self.options).frame(window, i);
        match &self.media {
            Media::Video { picks: Some(picks), .. } => picks[n],
            _ => n as u32,
        }
    }

    /// The largest clip that it gives.
    pub(super) fn extent(&self) -> Extent {
        let frames = match &self.media {
            Media::Video { index, picks } => Some(picks.as_ref().map_or(index.pts.len(), Vec::len)),
            _ => None,
        };
        let frames = frames.map(|frames| (frames - 1) / self.options.stride + 1);
        Extent { size: (self.width, self.height), frames }
    }

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
        let windowing = Windows::of(options);
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
