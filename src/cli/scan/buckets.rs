//! Prints clips of several sizes: what each bucket has, costs and loses.

use std::fmt::Write as _;
use std::path::Path;

use crate::data::{Bucket, ClipSets, Dataset, Skipped, name_below};
use crate::model::ModelConfig;
use crate::plan::flops;
use crate::terminal::{self, counted};

/// A table of the buckets, what is lost to each and why, and totals. Names of files are those below `root`; `tokens`
/// says how many a clip of a bucket has.
pub(super) fn table(
    sets: &ClipSets,
    root: &Path,
    network: Option<&ModelConfig>,
    tokens: impl Fn(&Dataset) -> Option<usize>,
) -> String {
    let mut out = format!(
        "{:22}  {:>7}  {:>7}  {:>8}  {:>8}  {:>9}  {:>4}\n",
        "width x height x frames", "files", "clips", "an epoch", "tokens", "step time", "lost"
    );
    // In the long run an epoch's clips take as long as their operations.
    let cost = |dataset: &Dataset| {
        let clip = match (network, tokens(dataset)) {
            (Some(network), Some(tokens)) => flops::step(network, tokens),
            (None, Some(tokens)) => tokens as f64,
            _ => 1.0,
        };
        clip * dataset.clips_of_an_epoch() as f64
    };
    let all: f64 = sets.datasets().map(cost).sum();
    for dataset in sets.datasets() {
        let bucket = Bucket::from(dataset.options().size()).to_string();
        let tokens = tokens(dataset).map_or("-".to_owned(), |tokens| tokens.to_string());
        let share = format!("{:.1} %", 100.0 * cost(dataset) / all.max(f64::MIN_POSITIVE));
        let _ = writeln!(
            out,
            "{bucket:23}  {:>7}  {:>7}  {:>8}  {tokens:>8}  {share:>9}  {:>4}",
            dataset.files().len(),
            dataset.len(),
            dataset.clips_of_an_epoch(),
            dataset.skipped().len()
        );
    }
    let name = |path: &Path| terminal::name(name_below(root, path));
    let mut list = |title: &str, skipped: &[Skipped]| {
        if !skipped.is_empty() {
            let _ = writeln!(out, "\n{title}");
        }
        for skip in skipped {
            let _ = writeln!(out, "{}: {}", name(&skip.path), terminal::name(&skip.reason));
        }
    };
    for dataset in sets.datasets() {
        list(&format!("lost to {}", Bucket::from(dataset.options().size())), dataset.skipped());
    }
    list("not used", sets.of_no_bucket());
    let noted = sets.buckets().iter().flat_map(|dataset| dataset.files());
    let mut notes: Vec<String> =
        noted.flat_map(|file| file.notes.iter().map(|note| format!("{}: {note}", name(&file.path)))).collect();
    notes.dedup();
    if !notes.is_empty() {
        let _ = writeln!(out, "\nof the files used\n{}", notes.join("\n"));
    }
    if let Some(mixed) = sets.mixed_rates() {
        let _ = writeln!(out, "\n{mixed}");
    }
    let lost: usize = sets.datasets().map(|dataset| dataset.skipped().len()).sum();
    let epoch: u64 = sets.clips_of_an_epoch().iter().sum();
    let _ = write!(
        out,
        "\n{} in {}, {epoch} an epoch; {} lost to a bucket, {} not used",
        counted(sets.len(), "clip", "clips"),
        counted(sets.buckets().len(), "bucket", "buckets"),
        counted(lost, "file", "files"),
        sets.of_no_bucket().len()
    );
    if let Some(extent) = sets.extent() {
        let (width, height) = extent.size;
        let frames =
            extent.frames.map_or(String::new(), |frames| format!(" of {}", counted(frames, "frame", "frames")));
        let _ =
            write!(out, "\n{width}x{height} (width x height){frames} is the largest clip that would keep every file");
    }
    out
}
