//! One file of a dataset: what it holds, how many clips it gives, or why none.

use super::av::Reason;
use super::cut::{Cut, resample};
use super::picture::{self, Kind};
use super::probe::VideoIndex;
use crate::config;
use crate::{Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that gives clips.
#[derive(Clone, Debug)]
pub struct SourceFile {
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
    pub caption: Option<Arc<str>>,
    /// Index in [`Dataset::classes`].
    pub class: Option<usize>,
    pub(super) media: Media,
}

#[derive(Clone, Debug)]
pub(super) enum Media {
    Image,
    Video {
        index: Box<VideoIndex>,
        /// Which frames the configured rate takes; none: all.
        picks: Option<Vec<u32>>,
    },
}

/// Refuses values out of range.
pub(super) fn check(config: &config::Data) -> Result<()> {
    let counts =
        [("frames", config.frames), ("height", config.height), ("width", config.width), ("stride", config.stride)];
    for (key, value) in counts {
        if value == 0 || value > 1 << 24 {
            bail!("data.{key} = {value}: must be from 1 to {}", 1 << 24);
        }
    }
    if let Some(fps) = config.fps.filter(|fps| !(*fps > 0.0 && *fps <= 1000.0)) {
        bail!("data.fps = {fps}: must be above 0 and at most 1000");
    }
    Ok(())
}

/// What the file at `path` gives; caption and class are left to the caller.
pub(super) fn probe(config: &config::Data, path: &Path) -> Reason<SourceFile> {
    let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
    if std::fs::metadata(path).map_err(unreadable)?.len() == 0 {
        return Err("it is empty (0 bytes)".to_owned());
    }
    let cut = Cut { frames: config.frames, stride: config.stride };
    let kind = picture::sniff(path)?;
    let an_image = || match config.frames {
        0 | 1 => Ok(()),
        frames => Err(format!("it is an image, which is one frame; the config asks {frames}")),
    };
    let (width, height, frames, rate, clips, media) = match kind {
        Kind::Image(format) => {
            let (width, height) = picture::probe(path, format)?;
            an_image()?;
            (width, height, 1, None, 1, Media::Image)
        }
        Kind::Avif | Kind::Other => {
            if kind == Kind::Avif {
                an_image()?;
            }
            let index = VideoIndex::probe(path)?;
            let (times, count) = (index.times(), index.pts.len());
            let picks = match config.fps {
                None => None,
                Some(fps) => {
                    let span = times[count - 1] - times[0];
                    if span * fps > 1000.0 * (count + 10) as f64 {
                        return Err(format!(
                            "its {count} frames claim to last {span:.0} seconds: its timestamps are broken"
                        ));
                    }
                    Some(resample(&times, index.tick, fps))
                }
            };
            let usable = picks.as_ref().map_or(count, Vec::len);
            let missing = cut.missing(usable);
            if missing > 0 {
                let rate = config.fps.map_or(String::new(), |fps| format!(" at {fps} frames per second"));
                return Err(format!(
                    "it is {missing} frames too short: {usable} frames{rate}, a clip spans {}",
                    cut.span()
                ));
            }
            let (width, height) = index.shown;
            let rate = index.rate.filter(|_| kind == Kind::Other);
            (width, height, count, rate, cut.count(usable), Media::Video { index: Box::new(index), picks })
        }
    };
    if width < config.width || height < config.height {
        return Err(format!(
            "it is too small: {width}x{height} (width x height), a clip is {}x{}",
            config.width, config.height
        ));
    }
    Ok(SourceFile { path: path.to_owned(), frames, height, width, rate, clips, caption: None, class: None, media })
}
