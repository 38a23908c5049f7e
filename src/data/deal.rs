//! Walks a folder, looks at each of its files and deals them to buckets.

use super::buckets::Bucket;
use super::caught::caught;
use super::ffmpeg::Reason;
use super::file_bucket::{Choice, choose};
use super::options::{ClipOptions, Crop, Label, SourceOptions};
use super::sets::Source;
use super::skipped::Skipped;
use super::source::{Probed, SourceFile, check, look};
use super::walk::Folder;
use super::windows::Windows;
use crate::Result;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A bucket in the making.
pub(super) struct Draft {
    pub options: ClipOptions,
    pub files: Vec<SourceFile>,
    pub skipped: Vec<Skipped>,
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
pub(super) struct Walked {
    files: Vec<WalkedFile>,
    skipped: Vec<Skipped>,
    /// Names of classes.
    pub classes: BTreeSet<String>,
    /// Files that there are, of which some may not have been looked at.
    pub found: usize,
}

impl Walked {
    /// Walks a folder and looks at `most` of its files at most, spread evenly over it.
    ///
    /// # Errors
    /// A value of the options is out of range; the folder cannot be read; a metadata.jsonl is malformed.
    pub fn new(Source { path, options, apart }: &Source, most: usize) -> Result<Self> {
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
    pub fn deal(self, source: &Source, classes: &[String], drafts: &mut Vec<Draft>) -> Vec<Skipped> {
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

/// Sorts by path, byte by byte.
pub(super) fn sort_by_path(skipped: &mut [Skipped]) {
    skipped.sort_by(|a, b| a.path.as_os_str().as_encoded_bytes().cmp(b.path.as_os_str().as_encoded_bytes()));
}
