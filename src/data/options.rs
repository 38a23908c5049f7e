//! How clips are cut from files.

use serde::{Deserialize, Serialize};

use super::buckets::Bucket;

/// Where a crop lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// In the middle.
    #[default]
    Center,
    /// Elsewhere in each epoch.
    Random,
}

/// Where a clip's class comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Clips have no class.
    #[default]
    None,
    /// The folder directly below `path` is the class; classes are numbered in the order of their names.
    Folder,
}

/// How clips are cut from files: all but which files.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClipOptions {
    /// Frames of a clip. 1 makes every frame, and every image, a clip.
    pub frames: usize,
    /// Height of a clip in pixels, after resizing and cropping.
    pub height: usize,
    /// Width of a clip in pixels.
    pub width: usize,
    /// Take every n-th frame of the source.
    pub stride: usize,
    /// Frames per second to resample the source to, before `stride`; none: the source's own frames.
    pub fps: Option<f64>,
    /// Where the crop lies once the frame is resized to cover the clip.
    pub crop: Crop,
    /// Mirror half of the clips left to right.
    pub flip: bool,
    /// Where a clip's class comes from.
    pub label: Label,
    /// Make progressive frames of interlaced ones.
    pub deinterlace: bool,
    /// Bring high dynamic range (PQ, HLG) to the usual one.
    pub tonemap: bool,
}

impl ClipOptions {
    /// Clips of `frames` frames of `height` x `width` pixels, all else as usual: every frame, the crop in the middle,
    /// no mirror, no class.
    pub fn new([frames, height, width]: [usize; 3]) -> Self {
        Self {
            frames,
            height,
            width,
            stride: 1,
            fps: None,
            crop: Crop::Center,
            flip: false,
            label: Label::None,
            deinterlace: true,
            tonemap: true,
        }
    }

    /// Frames, height, width.
    pub fn size(&self) -> [usize; 3] {
        [self.frames, self.height, self.width]
    }

    /// The same without what is done to files: own clips are cut, sampled and cropped already.
    pub fn of_own_clips(&self) -> Self {
        Self { stride: 1, fps: None, crop: Crop::Center, ..self.clone() }
    }
}

/// How the clips of one folder are cut: to which sizes, and what else is known of them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// How they are cut; the size is that of the bucket.
    pub clips: ClipOptions,
    /// The sizes that clips may have. A file gives clips of at most one size of each group.
    pub groups: Vec<Vec<Bucket>>,
    /// Whether a size that no file fits is an error.
    pub by_hand: bool,
    /// How often an epoch takes each clip.
    pub repeats: usize,
    /// Put before each caption; a file without a caption has this alone.
    pub caption_prefix: String,
    /// The class of all clips, instead of their folders' names.
    pub class: Option<String>,
}

impl SourceOptions {
    /// Clips of the one size that `clips` says.
    pub fn new(clips: ClipOptions) -> Self {
        let groups = vec![vec![clips.size().into()]];
        Self { clips, groups, by_hand: false, repeats: 1, caption_prefix: String::new(), class: None }
    }
}
