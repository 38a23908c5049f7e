//! Opens a dataset: the usable files of a folder, cut into numbered clips.
//!
//! Which files are used, and in what order, depends on their paths and contents alone, so every rank that opens the
//! same folder sees the same clips under the same numbers. Files are probed in parallel, once a run.

use super::apart::Apart;
use super::caught::caught;
use super::ffmpeg::Reason;
use super::options::{ClipOptions, Label};
use super::shuffle::Shuffles;
use super::source::{Media, SourceFile, check, probe};
use super::walk::{Folder, Skipped};
use super::windows::Windows;
use crate::terminal::counted;
use crate::{Result, bail};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One clip: where it comes from and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Its number in the dataset.
    pub id: usize,
    /// Index in [`Dataset::files`].
    pub file: usize,
    /// The file itself.
    pub path: PathBuf,
    /// Which clip of the file it is.
    pub window: usize,
    /// Its first frame, counted in the file.
    pub first_frame: usize,
    /// What the file's caption says.
    pub caption: Option<Arc<str>>,
    /// Index in [`Dataset::classes`].
    pub class: Option<usize>,
    /// Frames per second of the clip itself; none for an image.
    pub rate: Option<f64>,
}

/// The clips of a folder.
#[derive(Debug)]
pub struct Dataset {
    pub(super) options: ClipOptions,
    pub(super) files: Vec<SourceFile>,
    /// Clips before each file.
    starts: Vec<usize>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) classes: Vec<String>,
    pub(super) shuffles: Shuffles,
}

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
        let dataset = Self::survey_without(options, path, apart)?;
        dataset.skipped.iter().for_each(Skipped::log);
        if dataset.is_empty() {
            let first = dataset.skipped.first().map_or_else(
                || "it holds no files".to_owned(),
                |s| {
                    let skipped = counted(dataset.skipped.len(), "file is", "files are");
                    format!("{skipped} skipped, the first is {}: {}", s.path.display(), s.reason)
                },
            );
            bail!(Data, "{}: no usable clips; {first}", path.display());
        }
        let captions = match dataset.captions() {
            0 => String::new(),
            captions => format!(" ({} with a caption, which training does not use yet)", captions),
        };
        tracing::info!(
            "{}: {} of {}{captions}",
            path.display(),
            counted(dataset.len(), "clip", "clips"),
            counted(dataset.files.len(), "file", "files")
        );
        if let Some(mixed) = dataset.mixed_rates() {
            tracing::warn!("{}: {mixed}", path.display());
        }
        Ok(dataset)
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
        check(options)?;
        let Folder { mut media, captions, mut skipped } = Folder::walk(path, apart)?;
        let found = media.len();
        if found > most {
            media = (0..most).map(|i| media[i * found / most].clone()).collect();
        }
        let class_of = |file: &Path| -> Option<String> {
            let mut parts = file.strip_prefix(path).ok()?.components();
            let folder = parts.next()?.as_os_str().to_string_lossy().into_owned();
            parts.next().map(|_| folder)
        };
        let labelled = options.label == Label::Folder;
        let names: BTreeSet<String> = media.iter().filter(|_| labelled).filter_map(|file| class_of(file)).collect();
        let classes: Vec<String> = names.into_iter().collect();
        let probed: Vec<Reason<SourceFile>> = media
            .par_iter()
            .map(|file| {
                let class = class_of(file).and_then(|name| classes.binary_search(&name).ok());
                if labelled && class.is_none() {
                    return Err("it lies in no class folder (label = \"folder\")".to_owned());
                }
                let caption = captions.of(file)?.map(Arc::from);
                Ok(SourceFile { caption, class, ..caught(|| probe(options, file))? })
            })
            .collect();
        let mut files = Vec::new();
        for (path, outcome) in media.into_iter().zip(probed) {
            match outcome {
                Ok(file) => files.push(file),
                Err(reason) => skipped.push(Skipped { path, reason }),
            }
        }
        skipped.sort_by(|a, b| a.path.as_os_str().as_encoded_bytes().cmp(b.path.as_os_str().as_encoded_bytes()));
        Ok((Self::of_sources(options.clone(), files, skipped, classes), found))
    }

    /// Numbers the clips of `files`, in their order.
    pub(super) fn of_sources(
        options: ClipOptions,
        files: Vec<SourceFile>,
        skipped: Vec<Skipped>,
        classes: Vec<String>,
    ) -> Self {
        let ends = files.iter().scan(0, |count, file| {
            *count += file.clips;
            Some(*count)
        });
        let starts = std::iter::once(0).chain(ends).collect();
        Self { options, files, starts, skipped, classes, shuffles: Shuffles::default() }
    }

    /// How many files have a caption that is not empty.
    pub fn captions(&self) -> usize {
        self.files.iter().filter(|file| file.caption.is_some()).count()
    }

    /// How the clips are cut.
    pub fn options(&self) -> &ClipOptions {
        &self.options
    }

    /// How many clips there are.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there is no clip; never so after [`open`](Self::open).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The files that give clips, in the order of their paths.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// What is not used, and why, in the order of paths.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Names of the classes: folders directly below the path that hold a video or image, used or not, sorted by bytes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Numbers the classes as `classes` does: for held-out clips, whose folders may be fewer than those trained on.
    ///
    /// # Errors
    /// A class of this dataset is not among them.
    pub fn number_classes_as(&mut self, classes: &[String]) -> Result<()> {
        let mut numbers = Vec::with_capacity(self.classes.len());
        for name in &self.classes {
            match classes.iter().position(|known| known == name) {
                Some(number) => numbers.push(number),
                None => bail!(
                    Data,
                    "class folder {name:?} of the held-out clips is not among the classes trained on: {classes:?}"
                ),
            }
        }
        for file in &mut self.files {
            file.class = file.class.map(|class| numbers[class]);
        }
        self.classes = classes.to_vec();
        Ok(())
    }

    /// Clip `id`, in 0..len.
    ///
    /// # Panics
    /// If there is no such clip.
    pub fn clip(&self, id: usize) -> Clip {
        assert!(id < self.len(), "clip {id} of {}", self.len());
        let file = self.starts.partition_point(|&start| start <= id) - 1;
        let source = &self.files[file];
        let window = id - self.starts[file];
        let window = source.windows.as_ref().map_or(window, |windows| windows[window] as usize);
        let (first_frame, rate) = match &source.media {
            Media::Image => (0, None),
            Media::Own(_) => (0, source.rate),
            Media::Video { picks, .. } => {
                let first = self.windowing().frame(window, 0);
                let first = picks.as_ref().map_or(first, |picks| picks[first] as usize);
                (first, self.options.fps.or(source.rate).map(|rate| rate / self.options.stride as f64))
            }
        };
        Clip {
            id,
            file,
            path: source.path.clone(),
            window,
            first_frame,
            caption: source.caption.clone(),
            class: source.class,
            rate,
        }
    }

    pub(super) fn windowing(&self) -> Windows {
        Windows { frames: self.options.frames, stride: self.options.stride }
    }
}
