//! Opens a folder as a dataset alone, of clips of one size, or surveys it for a report. A run opens several by
//! [`ClipSets`].

use super::apart::Apart;
use super::dataset::Dataset;
use super::options::ClipOptions;
use super::sets::{ClipSets, Source};
use crate::Result;
use std::path::Path;

impl Dataset {
    /// Opens the clips below `path`, a folder (or a single file), cut as `options` say. Held-out clips open the
    /// same way. Every file not used is logged as a warning with its reason.
    ///
    /// # Errors
    /// As [`survey`](Self::survey); or nothing is usable.
    pub fn open(options: &ClipOptions, path: &Path) -> Result<Self> {
        Self::open_without(options, path, &Apart::default())
    }

    /// As [`open`](Self::open), but for what is `apart`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_without(options: &ClipOptions, path: &Path, apart: &Apart) -> Result<Self> {
        Ok(ClipSets::open(&[Source::of_size(options, path, apart)])?.into_single())
    }

    /// As [`open`](Self::open), but may come out empty, and logs nothing: for reports.
    ///
    /// # Errors
    /// A value of `options` is out of range; `path` cannot be read; a metadata.jsonl is malformed.
    pub fn survey(options: &ClipOptions, path: &Path) -> Result<Self> {
        Self::survey_without(options, path, &Apart::default())
    }

    /// As [`survey`](Self::survey), but for what is `apart`.
    ///
    /// # Errors
    /// As [`survey`](Self::survey).
    pub fn survey_without(options: &ClipOptions, path: &Path, apart: &Apart) -> Result<Self> {
        let (dataset, _) = Self::spread(options, path, apart, usize::MAX)?;
        Ok(dataset)
    }

    /// The same of at most `most` files, spread evenly over the folder, and how many there are; nothing is logged.
    pub(super) fn spread(options: &ClipOptions, path: &Path, apart: &Apart, most: usize) -> Result<(Self, usize)> {
        let (sets, found) = ClipSets::spread(&[Source::of_size(options, path, apart)], most)?;
        Ok((sets.into_single(), found))
    }
}
