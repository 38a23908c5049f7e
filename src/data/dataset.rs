//! Opens a dataset: the usable files of a folder, cut into numbered clips.
//!
//! Which files are used, and in what order, depends on their paths and contents alone, so every rank that opens the
//! same folder sees the same clips under the same numbers. Files are probed in parallel, once a run.

use super::options::ClipOptions;
use super::shuffle::Shuffles;
use super::skipped::Skipped;
use super::source::{Media, SourceFile};
use std::path::PathBuf;
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
    /// The same with repeats: what an epoch has before each file.
    epoch_starts: Vec<usize>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) classes: Vec<String>,
    /// Its number among a run's buckets, so that each is shuffled in a way of its own.
    pub(super) number: u64,
    pub(super) shuffles: Shuffles,
}

impl Dataset {
    /// Numbers the clips of `files`, in their order.
    pub(super) fn of_sources(
        options: ClipOptions,
        files: Vec<SourceFile>,
        skipped: Vec<Skipped>,
        classes: Vec<String>,
    ) -> Self {
        let sums = |clips: &dyn Fn(&SourceFile) -> usize| {
            let ends = files.iter().scan(0, |count, file| {
                *count += clips(file);
                Some(*count)
            });
            std::iter::once(0).chain(ends).collect()
        };
        let starts = sums(&|file| file.clips);
        let epoch_starts = sums(&|file| file.clips * file.repeats);
        Self { options, files, starts, epoch_starts, skipped, classes, number: 0, shuffles: Shuffles::default() }
    }

    /// The number of the first clip of file `file`.
    pub(super) fn first_clip(&self, file: usize) -> usize {
        self.starts[file]
    }

    /// The captions of files that have one which is not empty, file by file.
    pub fn captions(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.caption.as_deref())
    }

    /// How the clips are cut. Where folders are cut differently, this is what is so of any of them.
    pub fn options(&self) -> &ClipOptions {
        &self.options
    }

    /// How `clip` is cut: as its folder's are.
    pub fn options_of(&self, clip: &Clip) -> &ClipOptions {
        &self.files[clip.file].options
    }

    /// How many clips there are.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// How many clips an epoch takes: those that are repeated count as often.
    pub fn clips_of_an_epoch(&self) -> usize {
        self.epoch_starts.last().copied().unwrap_or(0)
    }

    /// Clip number `place` of an epoch that is not shuffled, and which of its repeats that is.
    pub(super) fn repeated(&self, place: usize) -> (usize, usize) {
        let file = self.epoch_starts.partition_point(|&start| start <= place) - 1;
        let (within, clips) = (place - self.epoch_starts[file], self.files[file].clips);
        (self.starts[file] + within % clips, within / clips)
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

    /// The index of the file that clip `id` is cut from.
    pub(super) fn file_of(&self, id: usize) -> usize {
        self.starts.partition_point(|&start| start <= id) - 1
    }

    /// Clip `id`, in 0..len.
    ///
    /// # Panics
    /// If there is no such clip.
    pub fn clip(&self, id: usize) -> Clip {
        assert!(id < self.len(), "clip {id} of {}", self.len());
        let file = self.file_of(id);
        let source = &self.files[file];
        let window = id - self.starts[file];
        let window = source.windows.as_ref().map_or(window, |windows| windows[window] as usize);
        let (first_frame, rate) = match &source.media {
            Media::Image => (0, None),
            Media::Own(_) => (0, source.rate),
            Media::Video { .. } => {
                let rate = source.options.fps.or(source.rate);
                (source.frame(window, 0) as usize, rate.map(|rate| rate / source.options.stride as f64))
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
}
