//! Reports a dataset as JSON and as a contact sheet: which clips training uses, which files not and why.

use image::RgbImage;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buckets::Bucket;
use super::contact_sheet::{FrameScale, Strip, contact_sheet};
use super::dataset::{Clip, Dataset};
use super::sets::ClipSets;
use super::shuffle::Augment;
use crate::{Error, Result};

/// So many frames of a clip are shown on a contact sheet.
const FRAMES: usize = 4;

/// Files and skips of a dataset with their reasons, and totals; a clip is `tokens` tokens. Paths are those below
/// `root`.
pub fn report(dataset: &Dataset, root: &Path, tokens: Option<usize>) -> Value {
    let options = dataset.options();
    let files = dataset.files().iter().map(|file| {
        json!({
            "path": name_below(root, &file.path), "frames": file.frames, "height": file.height, "width": file.width,
            "fps": file.rate, "clips": file.clips, "repeats": file.repeats, "caption": file.caption.as_deref(),
            "class": file.class.map(|class| &dataset.classes()[class]), "notes": file.notes,
        })
    });
    let skipped = dataset.skipped().iter().map(|s| json!({"path": name_below(root, &s.path), "reason": s.reason}));
    json!({
        "frames": options.frames, "stride": options.stride, "height": options.height, "width": options.width,
        "fps": options.fps, "files": files.collect::<Vec<_>>(), "skipped": skipped.collect::<Vec<_>>(),
        "mixed_rates": dataset.mixed_rates(), "classes": dataset.classes(), "clips": dataset.len(),
        "tokens_per_clip": tokens,
        "tokens": tokens.map(|tokens| tokens * dataset.len()),
    })
}

/// As [`report`], of clips of several sizes; `tokens` says how many a clip of a bucket has.
pub fn report_buckets(sets: &ClipSets, root: &Path, tokens: impl Fn(&Dataset) -> Option<usize>) -> Value {
    if let [dataset] = sets.buckets()
        && sets.empty().is_empty()
    {
        return report(dataset, root, tokens(dataset));
    }
    let mut buckets: Vec<Value> = sets.datasets().map(|dataset| report(dataset, root, tokens(dataset))).collect();
    let alone = sets.of_no_bucket().iter();
    let mut lists =
        [vec![], alone.map(|s| json!({"path": name_below(root, &s.path), "reason": s.reason})).collect::<Vec<_>>()];
    // Files stand in one list, each with its bucket.
    for (bucket, dataset) in buckets.iter_mut().zip(sets.datasets()) {
        let name = Bucket::from(dataset.options().size()).to_string();
        for (list, key) in lists.iter_mut().zip(["files", "skipped"]) {
            let Some(Value::Array(files)) = bucket.as_object_mut().and_then(|bucket| bucket.remove(key)) else {
                continue;
            };
            list.extend(files.into_iter().map(|mut file| {
                file["bucket"] = name.clone().into();
                file
            }));
        }
    }
    let [files, skipped] = lists;
    let total: Option<usize> = sets.datasets().map(|dataset| Some(tokens(dataset)? * dataset.len())).sum();
    json!({
        "buckets": buckets, "files": files, "skipped": skipped, "mixed_rates": sets.mixed_rates(),
        "classes": sets.classes(), "clips": sets.len(), "tokens": total,
    })
}

/// A file's name for people: its path below the dataset's folder.
pub fn name_below(root: &Path, path: &Path) -> String {
    let name = path.strip_prefix(root).ok().filter(|name| !name.as_os_str().is_empty());
    name.unwrap_or(path).to_string_lossy().into_owned()
}

/// Draws the first clip of each file, or of `most` files at even distances where there are more, to the PNG `path`;
/// those that are not decoded within `time` are left out. Returns how many were drawn.
///
/// # Errors
/// A clip cannot be decoded; the sheet cannot be written; there is no clip.
pub fn draw_sheet(
    datasets: &[Arc<Dataset>],
    root: &Path,
    path: &Path,
    most: usize,
    time: Option<Duration>,
) -> Result<usize> {
    let files: Vec<(&Dataset, usize)> =
        datasets.iter().flat_map(|dataset| (0..dataset.files().len()).map(|file| (dataset.as_ref(), file))).collect();
    let (count, start) = (files.len(), Instant::now());
    let shown = count.min(most);
    let in_time = |i: &usize| *i == 0 || time.is_none_or(|time| start.elapsed() < time);
    let first_of = |i: usize| {
        let (dataset, file) = files[i * count / shown];
        strip(dataset, root, &dataset.clip(dataset.first_clip(file)))
    };
    let strips: Vec<Strip> = (0..shown).take_while(in_time).map(first_of).collect::<Result<_>>()?;
    contact_sheet(&strips, FrameScale::Row, path)?;
    Ok(strips.len())
}

fn strip(dataset: &Dataset, root: &Path, clip: &Clip) -> Result<Strip> {
    let options = dataset.options();
    let count = FRAMES.min(options.frames);
    let frames = (0..count).map(|i| {
        let n = i * (options.frames - 1) / (count - 1).max(1);
        let frames = dataset.frames(clip, &Augment::PLAIN, n..n + 1)?;
        let frame = RgbImage::from_raw(options.width as u32, options.height as u32, frames.data)
            .ok_or_else(|| Error::Data(format!("{}: a frame has another size", clip.path.display())))?;
        Ok(Strip::row_sized(frame)) // at once, as all strips are held until the sheet is drawn
    });
    let class = clip.class.map_or(String::new(), |class| format!("  [{}]", dataset.classes()[class]));
    let caption = format!("{}  {}", class.trim(), clip.caption.as_deref().unwrap_or_default());
    let frames = frames.collect::<Result<_>>()?;
    Ok(Strip { name: name_below(root, &clip.path), caption: caption.trim().to_owned(), frames })
}
