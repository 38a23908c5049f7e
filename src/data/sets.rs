//! Opens the folders of a run and deals their files to buckets: a [`Dataset`] of one clip size for each.
//!
//! Each file is probed once, whatever number of buckets it gives clips to. Files keep the order of folders and paths,
//! so every rank that opens the same folders sees the same clips under the same numbers.

use super::apart::Apart;
use super::buckets::Bucket;
use super::dataset::Dataset;
use super::deal::{Draft, Walked, sort_by_path};
use super::options::{ClipOptions, Label, SourceOptions};
use super::skipped::Skipped;
use crate::terminal::counted;
use crate::{Result, bail};
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
        sets.log_skipped();
        for source in sources {
            sets.refuse_unused(source)?;
        }
        let captions: usize = sets.buckets.iter().map(|dataset| dataset.captions().count()).sum();
        let captions = match captions {
            0 => String::new(),
            captions => format!(" ({captions} with a caption)"),
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

    /// Logs what is not used, with its reason.
    fn log_skipped(&self) {
        self.skipped.iter().for_each(Skipped::log);
        let one = self.datasets().count() == 1;
        for dataset in self.datasets() {
            let bucket = dataset.options().size().into();
            dataset.skipped().iter().for_each(|skip| if one { skip.log() } else { skip.log_of(bucket) });
        }
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
            sort_by_path(&mut draft.skipped);
        }
        // The files that no bucket has belong to the only one, if there is but one.
        if let [only] = &mut drafts[..] {
            only.skipped.append(&mut skipped);
            sort_by_path(&mut only.skipped);
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

    /// Refuses a folder without a clip, and a size by hand that no file of it fits; says which area none fits.
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
        let of_size = |dataset: &Dataset, bucket: &Bucket| Bucket::from(dataset.options().size()) == *bucket;
        let is_used = |bucket: &Bucket| self.buckets.iter().any(|dataset| of_size(dataset, bucket) && used(dataset));
        for group in source.options.groups.iter().filter(|_| !source.options.by_hand) {
            if let ([first, .., last], false) = (&group[..], group.iter().any(is_used)) {
                let path = source.path.display();
                tracing::warn!("{path}: no clip fits any size of an area of data.resolutions, {first} to {last}");
            }
        }
        for bucket in source.options.groups.iter().flatten().filter(|_| source.options.by_hand) {
            if is_used(bucket) {
                continue;
            }
            let lost = self
                .empty
                .iter()
                .find(|dataset| of_size(dataset, bucket))
                .and_then(|dataset| dataset.skipped().first());
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
