//! Keeps decoded clips in memory, since small ones cost more time to decode again every epoch than memory to keep.

use super::frames::{FrameRegion, Frames};
use super::options::{ClipOptions, Crop};
use super::shuffle::{Augment, Request};
use crate::Result;
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes of pixels that a rank keeps at most: either all of its parts of all clips fit, or none is kept.
pub const MOST: u64 = 64 << 20;

/// The parts of clips that have been decoded so far, as pixels.
pub struct FrameCache {
    /// 2 where a clip's mirror image is kept beside it.
    variants: usize,
    /// Empty if nothing is kept.
    parts: Vec<Mutex<Option<Arc<Frames>>>>,
}

impl FrameCache {
    /// A cache for `clips` clips cut as `options` say, of each of which a rank needs `part`. It keeps nothing where
    /// [`bytes`](Self::bytes) is 0.
    pub fn new(options: &ClipOptions, clips: usize, part: &FrameRegion) -> Self {
        let kept = Self::bytes(options, clips, part.bytes(options.width) as u64) > 0;
        let count = if kept { Self::parts(options, clips) } else { 0 };
        Self { variants: variants(options), parts: (0..count).map(|_| Mutex::default()).collect() }
    }

    /// Parts that are decoded until all are kept: one of each clip, and of its mirror image where there are such.
    pub fn parts(options: &ClipOptions, clips: usize) -> usize {
        clips.saturating_mul(variants(options))
    }

    /// Bytes of pixels that a cache holds in the end, if a rank's part of a clip has `part` bytes. 0 if nothing is
    /// kept: the clips are too many or too large, or each epoch crops them elsewhere.
    pub fn bytes(options: &ClipOptions, clips: usize, part: u64) -> u64 {
        let all = (Self::parts(options, clips) as u64).saturating_mul(part);
        if options.crop == Crop::Center && all <= MOST { all } else { 0 }
    }

    /// What `request` names, from the cache or else by `decode`. Of threads that ask for the same clip at once one
    /// decodes it, and the others wait.
    ///
    /// # Errors
    /// Those of `decode`; nothing is kept then.
    pub fn get(&self, request: &Request, decode: impl FnOnce() -> Result<Frames>) -> Result<Arc<Frames>> {
        let Augment { crop, flip } = request.augment;
        let usual = crop == Augment::PLAIN.crop && usize::from(flip) < self.variants;
        let place = request.clip * self.variants + usize::from(flip);
        let Some(part) = self.parts.get(place).filter(|_| usual) else { return decode().map(Arc::new) };
        let mut part = part.lock();
        if let Some(frames) = &*part {
            return Ok(frames.clone());
        }
        let frames = Arc::new(decode()?);
        *part = Some(frames.clone());
        Ok(frames)
    }
}

/// A clip and, if it may be mirrored, its mirror image.
fn variants(options: &ClipOptions) -> usize {
    1 + usize::from(options.flip)
}
