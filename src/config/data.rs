//! `[data]`: the section of a folder of clips, and `[[data]]`, several of them.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::{self, Formatter};
use std::ops::{Deref, DerefMut};

use super::choices::{Crop, Label};
use crate::data::{Bucket, ClipGrid, ClipOptions, Resolutions, SourceOptions};

/// `[data]`: which clips, and how they are cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder of videos and images, searched recursively; or `hf://owner/name[@revision][/path]`.
    pub path: String,
    /// Folder of held-out clips, never trained on; none: no held-out loss.
    #[serde(default)]
    pub heldout: Option<String>,
    /// Frames of a clip. 1 makes every frame, and every image, a clip.
    #[serde(default)]
    pub frames: usize,
    /// Height of a clip in pixels, after resizing and cropping.
    #[serde(default)]
    pub height: usize,
    /// Width of a clip in pixels.
    #[serde(default)]
    pub width: usize,
    /// Sizes of clips `[width, height, frames]`, in place of the one above; a file takes what is nearest to its shape.
    #[serde(default)]
    pub buckets: Vec<[usize; 3]>,
    /// Areas of clips, as sides of squares in pixels, in place of sizes; a file gives clips for each.
    #[serde(default)]
    pub resolutions: Vec<usize>,
    /// With `resolutions`, the frames that clips may have: 1 for images, and of the others the most that a video has.
    #[serde(default)]
    pub frame_counts: Vec<usize>,
    /// Aspect ratios (width over height) of each resolution.
    #[serde(default = "aspects")]
    pub aspects: usize,
    /// The least and the greatest of them; the others lie evenly between in their logarithm.
    #[serde(default = "aspect_range")]
    pub aspect_range: [f64; 2],
    /// How often an epoch takes each clip.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Take every n-th frame of the source.
    #[serde(default = "stride")]
    pub stride: usize,
    /// Frames per second to resample the source to, before `stride`; none: the source's own frames.
    #[serde(default)]
    pub fps: Option<f64>,
    /// Where the crop lies once the frame is resized to cover the clip.
    #[serde(default)]
    pub crop: Crop,
    /// Mirror half of the clips left to right.
    #[serde(default)]
    pub flip: bool,
    /// Where a clip's class comes from.
    #[serde(default)]
    pub label: Label,
    /// The class of all clips; in place of `label`.
    #[serde(default)]
    pub class: Option<String>,
    /// Put before each caption; a file without a caption has this alone.
    #[serde(default)]
    pub caption_prefix: String,
    /// Make progressive frames of interlaced ones.
    #[serde(default = "deinterlace")]
    pub deinterlace: bool,
    /// Bring high dynamic range (PQ, HLG) to the usual one.
    #[serde(default = "tonemap")]
    pub tonemap: bool,
    /// Clips decoded ahead of the step.
    #[serde(default = "prefetch")]
    pub prefetch: usize,
    /// Training on latents: how often each clip is encoded, for random crops and mirror images; epochs take them in
    /// turn.
    #[serde(default = "one")]
    pub variants: usize,
}

/// `[data]`, or `[[data]]` for each of several folders. As a [`Data`] it is the first of them.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSections {
    first: Data,
    others: Vec<Data>,
}

impl DataSections {
    /// All sections, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Data> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Data> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }

    /// Adds a section.
    pub fn push(&mut self, section: Data) {
        self.others.push(section);
    }

    /// Whether clips have classes.
    pub fn labelled(&self) -> bool {
        self.iter().any(|section| section.label == Label::Folder || section.class.is_some())
    }

    /// Whether all clips have the size that the only section says.
    pub fn has_one_size(&self) -> bool {
        self.others.is_empty() && self.first.buckets.is_empty() && self.first.resolutions.is_empty()
    }

    /// The first section alone, with clips of one size.
    #[must_use]
    pub fn of_size(&self, Bucket { frames, height, width }: Bucket) -> Self {
        let (buckets, resolutions, frame_counts) = Default::default();
        Data { frames, height, width, buckets, resolutions, frame_counts, ..self.first.clone() }.into()
    }
}

impl From<Data> for DataSections {
    fn from(first: Data) -> Self {
        Self { first, others: vec![] }
    }
}

impl Deref for DataSections {
    type Target = Data;

    fn deref(&self) -> &Data {
        &self.first
    }
}

impl DerefMut for DataSections {
    fn deref_mut(&mut self) -> &mut Data {
        &mut self.first
    }
}

impl Serialize for DataSections {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.others.is_empty() { self.first.serialize(serializer) } else { serializer.collect_seq(self.iter()) }
    }
}

impl<'de> Deserialize<'de> for DataSections {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sections;

        impl<'de> Visitor<'de> for Sections {
            type Value = DataSections;

            fn expecting(&self, f: &mut Formatter) -> fmt::Result {
                f.write_str("struct Data")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataSections, A::Error> {
                Ok(Data::deserialize(MapAccessDeserializer::new(map))?.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sections: A) -> Result<DataSections, A::Error> {
                let first: Option<Data> = sections.next_element()?;
                let mut data: DataSections = first.ok_or_else(|| A::Error::missing_field("data"))?.into();
                while let Some(section) = sections.next_element()? {
                    data.push(section);
                }
                Ok(data)
            }
        }

        deserializer.deserialize_any(Sections)
    }
}

impl Data {
    /// Clips of (frames, height, width) of the folder `path`, all else as usual.
    pub fn new(path: String, [frames, height, width]: [usize; 3]) -> Self {
        Self {
            path,
            heldout: None,
            frames,
            height,
            width,
            buckets: vec![],
            resolutions: vec![],
            frame_counts: vec![],
            aspects: aspects(),
            aspect_range: aspect_range(),
            repeats: one(),
            stride: stride(),
            fps: None,
            crop: Crop::default(),
            flip: false,
            label: Label::default(),
            class: None,
            caption_prefix: String::new(),
            deinterlace: deinterlace(),
            tonemap: tonemap(),
            prefetch: prefetch(),
            variants: one(),
        }
    }

    /// How clips are cut.
    pub fn clips(&self) -> ClipOptions {
        let &Self { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap, .. } = self;
        ClipOptions { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap }
    }

    /// The same section for clips that are cut as `clips` say.
    #[must_use]
    pub fn cut_as(self, clips: &ClipOptions) -> Self {
        let &ClipOptions { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap } = clips;
        Self { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap, ..self }
    }

    /// The sizes that its clips may have, in groups of which a file takes one of each; none names a network's `grid`,
    /// sizes by area are cut to it.
    pub fn groups(&self, grid: &ClipGrid) -> Vec<Vec<Bucket>> {
        if !self.resolutions.is_empty() {
            let Self { aspects, aspect_range, .. } = *self;
            let (sides, frame_counts) = (self.resolutions.clone(), self.frame_counts.clone());
            return Resolutions { sides, aspects, aspect_range, frame_counts }.groups(grid);
        }
        if self.buckets.is_empty() {
            return vec![vec![self.clips().size().into()]];
        }
        vec![self.buckets.iter().map(|&[width, height, frames]| Bucket { frames, height, width }).collect()]
    }

    /// The key of sizes that are not on `grid`, and what is wrong with them; none where all are.
    pub fn off_grid(&self, grid: &ClipGrid) -> Option<(&'static str, String)> {
        for bucket in self.groups(grid).iter().flatten() {
            if let Some(why) = grid.refuse(*bucket) {
                let key = match (self.resolutions.is_empty(), self.buckets.is_empty()) {
                    (false, _) => "data.frame_counts",
                    (true, false) => "data.buckets",
                    (true, true) => "data.frames, height and width",
                };
                return Some((key, why));
            }
        }
        let step = grid.floor(Bucket { frames: 1, height: 1, width: 1 });
        let [low, high] = self.aspect_range;
        let least = (step.height as f64 / low.min(1.0).sqrt()).max(step.width as f64 * high.max(1.0).sqrt());
        let small = self.resolutions.iter().find(|&&side| (side as f64) < least);
        small.map(|side| {
            let why = format!(
                "{side} is too small: for aspect ratios of {low} to {high} on the network's grid it must be at least {}",
                least.ceil()
            );
            ("data.resolutions", why)
        })
    }

    /// How its clips are cut for a network of `grid`.
    pub fn source(&self, grid: &ClipGrid) -> SourceOptions {
        let mut options = SourceOptions::new(self.clips());
        options.groups = self.groups(grid);
        options.by_hand = !self.buckets.is_empty();
        options.repeats = self.repeats;
        options.caption_prefix.clone_from(&self.caption_prefix);
        options.class.clone_from(&self.class);
        options
    }
}

/// What clips are where the section does not say.
fn usual() -> ClipOptions {
    ClipOptions::new([0; 3])
}

fn stride() -> usize {
    usual().stride
}

fn deinterlace() -> bool {
    usual().deinterlace
}

fn tonemap() -> bool {
    usual().tonemap
}

fn prefetch() -> usize {
    4
}

fn aspects() -> usize {
    7
}

fn aspect_range() -> [f64; 2] {
    [0.5, 2.0]
}

fn one() -> usize {
    1
}
