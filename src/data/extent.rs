//! The largest clips that the files of a run allow.

use super::caught::caught;
use super::dataset::Dataset;
use super::options::ClipOptions;
use super::sets::ClipSets;
use super::skipped::Skipped;
use super::source::{SourceFile, look};
use rayon::prelude::*;

/// The largest size of clips for which no file is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Width and height for which no file is too small.
    pub size: (usize, usize),
    /// Frames for which no video is too short; none where there is no video.
    pub frames: Option<usize>,
}

impl Dataset {
    /// The largest width and height of clips for which no file is too small, those counted that are too small now; none
    /// where there is no file. Files that are left out for another reason do not count.
    pub fn largest_size(&self) -> Option<(usize, usize)> {
        Some(extent(self.files(), self.skipped(), self.options())?.size)
    }
}

impl ClipSets {
    /// The largest clips that would keep all files of the run, those counted that are lost now; none where there is no
    /// file.
    pub fn extent(&self) -> Option<Extent> {
        let extents =
            self.datasets().filter_map(|dataset| extent(dataset.files(), dataset.skipped(), dataset.options()));
        extents.reduce(Extent::within)
    }
}

impl Extent {
    fn within(self, other: Self) -> Self {
        Self {
            size: (self.size.0.min(other.size.0), self.size.1.min(other.size.1)),
            frames: match (self.frames, other.frames) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

fn extent(files: &[SourceFile], skipped: &[Skipped], options: &ClipOptions) -> Option<Extent> {
    let left_out =
        skipped.par_iter().filter_map(|skip| Some(caught(|| look(options, &skip.path)).ok()?.extent(options)));
    let left_out: Vec<Extent> = left_out.collect();
    files.iter().map(SourceFile::extent).chain(left_out).reduce(Extent::within)
}
