//! What a clip's pixels depend on besides its file's contents, for caches of what is made of them.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::dataset::{Clip, Dataset};
use super::shuffle::Augment;
use super::source::Media;
use crate::Result;
use crate::files::to_hex;

/// The version of how frames are decoded, scaled and cropped; it changes when the same file gives other pixels.
const SCALER: u32 = 1;

/// How a clip's pixels are made of its file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// The file's frames that are taken, in order.
    pub frames: Vec<u32>,
    /// When each of them is shown, in seconds; empty for an image.
    pub times: Vec<f64>,
    /// Height and width of a clip in pixels.
    pub size: [usize; 2],
    /// Where the crop lies, (down, across), each in [0, 1].
    pub crop: [f64; 2],
    /// Mirrored left to right.
    pub flip: bool,
    /// Whether interlaced frames are made progressive.
    pub deinterlace: bool,
    /// Whether high dynamic range is brought to the usual one.
    pub tonemap: bool,
    /// The version of all this.
    pub scaler: u32,
}

impl Dataset {
    /// A hash of the pixels of a clip that is no file's; none if it is one's.
    ///
    /// # Errors
    /// Its frames cannot be had.
    pub fn own_hash(&self, clip: &Clip) -> Result<Option<String>> {
        if !matches!(self.files[clip.file].media, Media::Own(_)) {
            return Ok(None);
        }
        let frames = self.frames(clip, &Augment::PLAIN, 0..self.options().frames)?;
        Ok(Some(to_hex(Sha256::digest(&frames.data))))
    }

    /// How `clip` is made of its file.
    pub fn recipe(&self, clip: &Clip, augment: &Augment) -> Recipe {
        let file = &self.files[clip.file];
        let options = &file.options;
        let (frames, times) = match &file.media {
            Media::Image => (vec![0], vec![]),
            Media::Own(_) => ((0..options.frames as u32).collect(), vec![]),
            Media::Video { index, .. } => {
                let times = index.times();
                let taken: Vec<u32> = (0..options.frames).map(|i| file.frame(clip.window, i)).collect();
                let shown = taken.iter().map(|&n| times[n as usize]).collect();
                (taken, shown)
            }
        };
        Recipe {
            frames,
            times,
            size: [options.height, options.width],
            crop: augment.crop,
            flip: augment.flip,
            deinterlace: options.deinterlace,
            tonemap: options.tonemap,
            scaler: SCALER,
        }
    }
}
