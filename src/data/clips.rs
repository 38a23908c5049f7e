//! Takes clips from a program instead of files: frames that it makes or reads itself.

use super::dataset::Dataset;
use super::ffmpeg::Reason;
use super::frames::{FrameRegion, Frames};
use super::options::{ClipOptions, Label};
use super::shuffle::Augment;
use super::source::{Media, SourceFile, check};
use crate::{Result, bail};
use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;

/// Somebody's own clips. All have the size that the config's `data.frames`, `height` and `width` say.
///
/// ```
/// use longreel::data::Clips;
/// use std::ops::Range;
///
/// /// Grey clips, each of its own brightness.
/// struct Grey;
///
/// impl Clips for Grey {
///     fn count(&self) -> usize {
///         200
///     }
///
///     fn frames(&self, clip: usize, frames: Range<usize>) -> Result<Vec<u8>, String> {
///         Ok(vec![clip as u8; frames.len() * 32 * 48 * 3])
///     }
/// }
/// ```
pub trait Clips: Send + Sync {
    /// How many clips there are, at least one.
    fn count(&self) -> usize;

    /// Pixels of `frames` of clip `clip`, [frames, height, width, 3] in RGB. Ranks ask for the frames that they need,
    /// from several threads at once, and every time for the same bytes.
    ///
    /// # Errors
    /// The clip cannot be had: the run ends with this message.
    fn frames(&self, clip: usize, frames: Range<usize>) -> std::result::Result<Vec<u8>, String>;

    /// Names of the classes; none if the clips have no classes.
    fn classes(&self) -> Vec<String> {
        vec![]
    }

    /// Index in [`classes`](Self::classes) of a clip's class.
    fn class(&self, clip: usize) -> Option<usize> {
        let _ = clip;
        None
    }

    /// What is said of a clip, for networks with text, as it is: without `data.caption_prefix`.
    fn caption(&self, clip: usize) -> Option<String> {
        let _ = clip;
        None
    }

    /// Frames per second; none of images.
    fn rate(&self) -> Option<f64> {
        None
    }
}

/// One of somebody's clips, as a source of a [`Dataset`].
#[derive(Clone)]
pub(super) struct OwnClip {
    clips: Arc<dyn Clips>,
    number: usize,
}

// After a panic of somebody's code nothing of ours is half changed, and the run ends.
impl UnwindSafe for OwnClip {}
impl RefUnwindSafe for OwnClip {}

impl Debug for OwnClip {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnClip").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Dataset {
    /// The dataset of somebody's own `clips`, each of which is the one clip of a source called "clip 0", "clip 1" and
    /// so on.
    ///
    /// # Errors
    /// A value of `options` is out of range; there is no clip; a clip's class has no name.
    pub fn of_clips(options: &ClipOptions, clips: &Arc<dyn Clips>) -> Result<Self> {
        check(options)?;
        let options = options.of_own_clips();
        let (count, classes) = (clips.count(), clips.classes());
        if count == 0 {
            bail!(Data, "Clips::count() is 0: there is nothing to train on");
        }
        if let Some(name) = (1..classes.len()).find(|&i| classes[..i].contains(&classes[i])).map(|i| &classes[i]) {
            bail!(Data, "two classes are called {name:?}");
        }
        let shared = Arc::new(options.clone());
        let source = |number: usize| {
            let class = clips.class(number);
            if let Some(class) = class.filter(|&class| class >= classes.len()) {
                bail!(Data, "clip {number} is of class {class}, but there are {} names of classes", classes.len());
            }
            if class.is_none() && options.label == Label::Folder {
                bail!(Data, "clip {number} has no class, though data.label is \"folder\"");
            }
            Ok(SourceFile {
                path: PathBuf::from(format!("clip {number}")),
                frames: options.frames,
                height: options.height,
                width: options.width,
                rate: clips.rate(),
                clips: 1,
                caption: clips.caption(number).filter(|text| !text.is_empty()).map(Arc::from),
                class,
                notes: vec![],
                repeats: 1,
                options: shared.clone(),
                windows: None,
                media: Media::Own(OwnClip { clips: clips.clone(), number }),
            })
        };
        let files = (0..count).map(source).collect::<Result<Vec<_>>>()?;
        Ok(Self::of_sources(options, files, vec![], classes))
    }
}

impl OwnClip {
    /// Fills `out` with `region` of the clip of `size` (height, width), mirrored if `augment` says so.
    ///
    /// # Errors
    /// Its frames cannot be had, or have another size.
    pub fn fill(&self, size: [usize; 2], augment: &Augment, region: &FrameRegion, out: &mut Frames) -> Reason<()> {
        let pixels = self.clips.frames(self.number, region.frames.clone())?;
        let ([height, width], count) = (size, region.frames.len());
        if pixels.len() != count * height * width * 3 {
            return Err(format!(
                "it gave {} bytes for {count} frames; {height}x{width} (height x width) in RGB takes {}",
                pixels.len(),
                count * height * width * 3
            ));
        }
        let lines = region.lines.start * width * 3..region.lines.end * width * 3;
        for (to, from) in out.data.chunks_exact_mut(lines.len()).zip(pixels.chunks_exact(height * width * 3)) {
            to.copy_from_slice(&from[lines.clone()]);
        }
        if augment.flip {
            out.data.chunks_exact_mut(width * 3).for_each(|line| line.as_chunks_mut::<3>().0.reverse());
        }
        Ok(())
    }
}
