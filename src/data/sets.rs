//! Opens the folders of a run and deals their files to buckets: a [`Dataset`] of one clip size for each.
//!
//! Each file is probed once, whatever number of buckets it gives clips to. Files keep the order of folders and paths,
//! so every rank that opens the same folders sees the same clips under the same numbers.

use super::apart::Apart;
use super::buckets::Bucket;
use super::caught::caught;
use super::dataset::Dataset;
use super::ffmpeg::Reason;
use super::file_bucket::{Choice, choose};
use super::options::{ClipOptions, Crop, Label, SourceOptions};
use super::source::{Probed, SourceFile, check, look};
use super::walk::{Folder, Skipped};
use super::windows::Windows;
use crate::terminal::counted;
use crate::{Result, bail};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of clips.
#[derive(Clone, Debug)]
pub struct Source {
    /// The folder, or a single file.
    pub path: PathBuf,
    /// How its clips are cut.
    pub options: SourceOptions,
    /// What below it is no part of it.
    pub apart: Apart,
}

impl Source {
    /// The clips of one size below `path`.
    pub(super) fn of_size(options: &ClipOptions, path: &Path, apart: &Apart) -> Self {
        Self { path: path.to_owned(), options: SourceOptions::new(options.clone()), apart: apart.clone() }
    }
}

/// The clips of a run, by size.
#[derive(Debug)]
pub struct ClipSets {
    /// Those with clips come first, in the order in which the folders' options name them.
    buckets: Vec<Arc<Dataset>>,
    /// Buckets that files were lost for, and that no file fits.
    empty: Vec<Dataset>,
    /// Files of no bucket, and why, in the order of folders and paths.
    skipped: Vec<Skipped>,
}

impl From<Dataset> for ClipSets {
    fn from(dataset: Dataset) -> Self {
        Self { buckets: vec![Arc::new(dataset)], empty: vec![], skipped: vec![] }
    }
}

impl ClipSets {
    /// Opens the clips of `sources`. What is not used is logged as a warning with its reason.
    ///
    /// # Errors
    /// As [`survey`](Self::survey); a folder has no usable clip; no file fits a size given by hand.
    pub fn open(sources: &[Source]) -> Result<Self> {
        let sets = Self::survey(sources)?;
        sets.skipped().for_each(Skipped::log);
        for source in sources {
            sets.refuse_unused(source)?;
        }
        let captions: usize = sets.buckets.iter().map(|dataset| dataset.captions()).sum();
        let captions = match captions {
            0 => String::new(),
            captions => format!(" ({captions} with a caption, which training does not use yet)"),
        };
        let paths: Vec<String> = sources.iter().map(|source| source.path.display().to_string()).collect();
        let files: usize = sets.buckets.iter().map(|dataset| dataset.files().len()).sum();
        let buckets = match sets.buckets.len() {
            1 => String::new(),
            count => format!(" in {count} buckets"),
        };
        let clips = counted(sets.len(), "clip", "clips");
        tracing::info!("{}: {clips} of {}{captions}{buckets}", paths.join(", "), counted(files, "file", "files"));
        if let Some(mixed) = sets.mixed_rates() {
            tracing::warn!("{}: {mixed}", paths.join(", "));
        }
        Ok(sets)
    }

    /// As [`open`](Self::open), but may come out empty, and logs nothing: for reports.
    ///
    /// # Errors
    /// A value of the options is out of range; a path cannot be read; a metadata.jsonl is malformed.
    pub fn survey(sources: &[Source]) -> Result<Self> {
        Ok(Self::spread(sources, usize::MAX)?.0)
    }

    /// The same of at most `most` files of each folder, spread evenly over it, and how many there are in all.
    pub(super) fn spread(sources: &[Source], most: usize) -> Result<(Self, usize)> {
        let walked = sources.iter().map(|source| Walked::new(source, most)).collect::<Result<Vec<_>>>()?;
        let found = walked.iter().map(|walked| walked.found).sum();
        let names: BTreeSet<&String> = walked.iter().flat_map(|walked| &walked.classes).collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        let (mut drafts, mut skipped) = (Vec::<Draft>::new(), vec![]);
        for (source, walked) in sources.iter().zip(walked) {
            skipped.extend(walked.deal(source, &classes, &mut drafts));
        }
        for draft in &mut drafts {
            draft.skipped.sort_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
        }
        // The files that no bucket has belong to the only one, if there is but one.
        if let [only] = &mut drafts[..] {
            only.skipped.append(&mut skipped);
            only.skipped.sort_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
        }
        let one = drafts.len() == 1;
        let (mut buckets, mut empty) = (vec![], vec![]);
        for draft in drafts {
            let dataset = Dataset::of_sources(draft.options, draft.files, draft.skipped, classes.clone());
            if one || !dataset.is_empty() { buckets.push(dataset) } else { empty.push(dataset) }
        }
        buckets.iter_mut().zip(0..).for_each(|(dataset, number)| dataset.number = number);
        let buckets = buckets.into_iter().map(Arc::new).collect();
        Ok((Self { buckets, empty, skipped }, found))
    }

    /// The dataset of the only bucket.
    ///
    /// # Panics
    /// There are several buckets.
    pub(super) fn into_single(mut self) -> Dataset {
        assert_eq!(self.buckets.len(), 1, "buckets");
        Arc::into_inner(self.buckets.remove(0)).expect("nobody shares it yet")
    }

    /// Refuses a folder without a clip, and a size by hand that no file of it fits.
    fn refuse_unused(&self, source: &Source) -> Result<()> {
        let below = |path: &Path| path.starts_with(&source.path);
        let used = |dataset: &Arc<Dataset>| dataset.files().iter().any(|file| below(&file.path));
        if !self.buckets.iter().any(used) {
            let skipped: Vec<&Skipped> = self.skipped().filter(|skip| below(&skip.path)).collect();
            let first = skipped.first().map_or_else(
                || "it holds no files".to_owned(),
                |s| {
                    let count = counted(skipped.len(), "file is", "files are");
                    format!("{count} skipped, the first is {}: {}", s.path.display(), s.reason)
                },
            );
            bail!(Data, "{}: no usable clips; {first}", source.path.display());
        }
        for bucket in source.options.groups.iter().flatten().filter(|_| source.options.by_hand) {
            let of_size = |dataset: &Dataset| Bucket::from(dataset.options().size()) == *bucket;
            if self.buckets.iter().any(|dataset| of_size(dataset) && used(dataset)) {
                continue;
            }
            let lost = self.empty.iter().find(|dataset| of_size(dataset)).and_then(|dataset| dataset.skipped().first());
            let why = match lost {
                Some(skip) => format!("{}: {}", skip.path.display(), skip.reason),
                None => "every file is nearer to another one in shape".to_owned(),
            };
            bail!(Data, "{}: no clip fits the bucket {bucket} of data.buckets; {why}", source.path.display());
        }
        Ok(())
    }

    /// The datasets, each of one size.
    pub fn buckets(&self) -> &[Arc<Dataset>] {
        &self.buckets
    }

    /// Sizes that no file fits, though some were meant for them, as datasets without a clip.
    pub fn empty(&self) -> &[Dataset] {
        &self.empty
    }

    /// Files of no bucket, and why; where all clips have one size, its dataset has them.
    pub fn of_no_bucket(&self) -> &[Skipped] {
        &self.skipped
    }

    /// What is not used, or not in each of its resolutions, and why.
    pub fn skipped(&self) -> impl Iterator<Item = &Skipped> {
        let lost = self.datasets().flat_map(Dataset::skipped);
        self.skipped.iter().chain(lost)
    }

    /// The datasets, those without a clip last.
    pub fn datasets(&self) -> impl Iterator<Item = &Dataset> {
        self.buckets.iter().map(Arc::as_ref).chain(&self.empty)
    }

    /// How many clips there are.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|dataset| dataset.len()).sum()
    }

    /// Whether there is no clip; never so after [`open`](Self::open).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many clips each bucket has in an epoch: those that are repeated count as often.
    pub fn clips_of_an_epoch(&self) -> Vec<u64> {
        self.buckets.iter().map(|dataset| dataset.clips_of_an_epoch() as u64).collect()
    }

    /// Whether clips have classes.
    pub fn labelled(&self) -> bool {
        self.buckets.iter().any(|dataset| dataset.options().label == Label::Folder)
    }

    /// Names of the classes of all folders.
    pub fn classes(&self) -> &[String] {
        self.buckets.first().map_or(&[], |dataset| dataset.classes())
    }

    /// Numbers the classes as `classes` does, as [`Dataset::number_classes_as`].
    ///
    /// # Errors
    /// A class is not among them; the clips are being read already.
    pub fn number_classes_as(&mut self, classes: &[String]) -> Result<()> {
        self.buckets.iter_mut().try_for_each(|dataset| match Arc::get_mut(dataset) {
            Some(dataset) => dataset.number_classes_as(classes),
            None => bail!(Data, "classes cannot be numbered anew while their clips are read"),
        })
    }

    /// Decodes every used file from start to end, as [`Dataset::decode_all`].
    #[must_use]
    pub fn decode_all(self) -> Self {
        let decoded = |dataset: Arc<Dataset>| match Arc::try_unwrap(dataset) {
            Ok(dataset) => Arc::new(dataset.decode_all()),
            Err(shared) => shared, // whoever reads it finds the damage
        };
        Self { buckets: self.buckets.into_iter().map(decoded).collect(), ..self }
    }

    /// Buckets of fewer clips an epoch than a step takes, in words: a step goes through such clips more than once.
    pub fn below_a_batch(&self, batch: u64) -> Vec<String> {
        let small = self.buckets.iter().filter(|dataset| (dataset.clips_of_an_epoch() as u64) < batch);
        small
            .map(|dataset| {
                let clips = counted(dataset.clips_of_an_epoch(), "clip", "clips");
                let bucket = Bucket::from(dataset.options().size());
                format!(
                    "the bucket {bucket} has {clips} an epoch and a step takes {batch}: they are repeated within a step, \
                     which comes the more seldom, so that no clip counts more than others"
                )
            })
            .collect()
    }
}

/// A bucket in the making.
struct Draft {
    options: ClipOptions,
    files: Vec<SourceFile>,
    skipped: Vec<Skipped>,
}

/// The draft of `bucket`, a new one if need be. Options of several folders are united: what any of them has.
fn draft<'a>(drafts: &'a mut Vec<Draft>, bucket: Bucket, source: &SourceOptions) -> &'a mut Draft {
    let (options, named) = (&source.clips, source.class.is_some());
    let known = drafts.iter().position(|draft| Bucket::from(draft.options.size()) == bucket);
    let number = known.unwrap_or(drafts.len());
    if known.is_none() {
        drafts.push(Draft { options: sized(options, bucket), files: vec![], skipped: vec![] });
    }
    let draft = &mut drafts[number];
    draft.options.flip |= options.flip;
    if options.crop == Crop::Random {
        draft.options.crop = Crop::Random;
    }
    if options.label == Label::Folder || named {
        draft.options.label = Label::Folder;
    }
    draft
}

fn sized(options: &ClipOptions, Bucket { frames, height, width }: Bucket) -> ClipOptions {
    ClipOptions { frames, height, width, ..options.clone() }
}

/// A file that may give clips.
struct WalkedFile {
    path: PathBuf,
    probed: Reason<Probed>,
    class: Option<String>,
    caption: Option<Arc<str>>,
}

/// The files of a folder, each looked at.
struct Walked {
    files: Vec<WalkedFile>,
    skipped: Vec<Skipped>,
    /// Names of classes.
    classes: BTreeSet<String>,
    /// Files that there are, of which some may not have been looked at.
    found: usize,
}

impl Walked {
    fn new(Source { path, options, apart }: &Source, most: usize) -> Result<Self> {
        for bucket in options.groups.iter().flatten() {
            check(&sized(&options.clips, *bucket))?;
        }
        let Folder { mut media, captions, skipped } = Folder::walk(path, apart)?;
        let found = media.len();
        if found > most {
            media = (0..most).map(|i| media[i * found / most].clone()).collect();
        }
        let labelled = options.clips.label == Label::Folder;
        let class_of = |file: &Path| -> Option<String> {
            if !labelled {
                return options.class.clone();
            }
            let mut parts = file.strip_prefix(path).ok()?.components();
            let folder = parts.next()?.as_os_str().to_string_lossy().into_owned();
            parts.next().map(|_| folder)
        };
        let classes = media.iter().filter_map(|file| class_of(file)).collect();
        let files = media
            .into_par_iter()
            .map(|file| {
                let class = class_of(&file);
                let mut caption = None;
                let probed = match class {
                    None if labelled => Err("it lies in no class folder (label = \"folder\")".to_owned()),
                    _ => captions.of(&file).and_then(|text| {
                        let text = format!("{}{}", options.caption_prefix, text.unwrap_or_default());
                        caption = (!text.is_empty()).then(|| Arc::from(text));
                        caught(|| look(&options.clips, &file))
                    }),
                };
                WalkedFile { path: file, probed, class, caption }
            })
            .collect();
        Ok(Self { files, skipped, classes, found })
    }

    /// Deals the files to the drafts of their buckets; returns those of no bucket, with their reasons.
    fn deal(self, source: &Source, classes: &[String], drafts: &mut Vec<Draft>) -> Vec<Skipped> {
        let options = &source.options;
        let mut skipped = self.skipped;
        let alone = options.groups.iter().map(Vec::len).sum::<usize>() == 1;
        // Buckets stand in the order in which they are named, not in which files fit them.
        let mut order: Vec<Draft> = vec![];
        let shared: Vec<Arc<ClipOptions>> =
            options.groups.iter().flatten().map(|&bucket| Arc::new(sized(&options.clips, bucket))).collect();
        let span = |frames| Windows { frames, stride: options.clips.stride }.span();
        for WalkedFile { path, probed, class, caption } in self.files {
            let probed = match probed {
                Ok(probed) => probed,
                Err(reason) => {
                    skipped.push(Skipped::new(path, reason));
                    continue;
                }
            };
            for group in &options.groups {
                let bucket = match choose(group, probed.shape(), span) {
                    Choice::Fits(bucket) | Choice::Lost(bucket) => bucket,
                    Choice::NoImages if alone => group[0],
                    Choice::NoImages => {
                        let why = "it is an image, which is one frame, and no bucket has one frame";
                        skipped.push(Skipped::new(&path, why));
                        continue;
                    }
                };
                let cut = shared
                    .iter()
                    .find(|options| Bucket::from(options.size()) == bucket)
                    .map_or_else(|| Err("it fits no bucket".to_owned()), |options| probed.cut(options));
                let draft = draft(&mut order, bucket, options);
                match cut {
                    Ok(file) => draft.files.push(SourceFile {
                        caption: caption.clone(),
                        class: class.as_ref().and_then(|name| classes.binary_search(name).ok()),
                        repeats: options.repeats,
                        ..file
                    }),
                    Err(reason) => draft.skipped.push(Skipped::new(&path, reason)),
                }
            }
        }
        // A single size is a bucket even where nothing fits it.
        for &bucket in options.groups.iter().flatten() {
            let made = order.iter().position(|draft| Bucket::from(draft.options.size()) == bucket);
            if made.is_none() && !alone {
                continue;
            }
            let target = draft(drafts, bucket, options);
            if let Some(i) = made {
                let mut part = order.swap_remove(i);
                target.files.append(&mut part.files);
                target.skipped.append(&mut part.skipped);
            }
        }
        skipped
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}
