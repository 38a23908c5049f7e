//! What is in a dataset twice, or trained on though it is held out: files are compared by where they lie and by what
//! they hold.

use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::dataset::Dataset;
use crate::terminal;

/// So many cases are named, of more the number is.
const NAMED: usize = 5;

/// Bytes that are compared at a place of a file.
const BLOCK: u64 = 1 << 16;

/// Places at which larger files are compared. Files of one length that hold the same at so many places are the same
/// film or picture.
const PLACES: u64 = 64;

/// Files that two numbers of clips come from, or that are on both sides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// Files of the dataset that are the same, in groups, in the order of paths.
    pub twice: Vec<Vec<String>>,
    /// Held-out files that are trained on too, each with the first file of the dataset that it is.
    pub held_out: Vec<[String; 2]>,
    held_out_files: usize,
}

impl Overlaps {
    /// Compares the files of datasets with each other, and with those held out. A file of several datasets is one.
    /// Links to one file, and copies, are the
    /// same file. Only files of equal length are read: three blocks of each, and where these agree a few mebibytes at
    /// most. A file that cannot be read is like no other.
    pub fn find(trained: &[Arc<Dataset>], held_out: &[Arc<Dataset>]) -> Self {
        let (trained, held_out_files) = (files(trained), files(held_out));
        let files: Vec<&Path> = trained.iter().chain(&held_out_files).copied().collect();
        let (count, name) = (trained.len(), |file: &usize| terminal::name(files[*file]));
        let mut overlaps = Self { held_out_files: held_out_files.len(), ..Self::default() };
        for group in same(&files) {
            let (trained, held_out) = group.split_at(group.partition_point(|&file| file < count));
            if trained.len() > 1 {
                overlaps.twice.push(trained.iter().map(name).collect());
            }
            if let Some(first) = trained.first() {
                overlaps.held_out.extend(held_out.iter().map(|file| [name(file), name(first)]));
            }
        }
        overlaps
    }

    /// Says in the log what was found, a line for each kind.
    pub fn log(&self) {
        if !self.twice.is_empty() {
            let groups = self.twice.iter().map(|group| group.join(" = "));
            tracing::warn!("the data holds files more than once, and their clips count as often: {}", few(groups));
        }
        if !self.held_out.is_empty() {
            let (count, of) = (self.held_out.len(), self.held_out_files);
            let pairs = self.held_out.iter().map(|pair| pair.join(" = "));
            tracing::warn!(
                "{count} of {of} held-out files are trained on too, so the held-out loss is partly a training loss: {}",
                few(pairs)
            );
        }
    }
}

/// The files of all datasets, each once.
fn files(datasets: &[Arc<Dataset>]) -> Vec<&Path> {
    let mut seen = BTreeSet::new();
    let paths = datasets.iter().flat_map(|dataset| dataset.files()).map(|file| file.path.as_path());
    paths.filter(|path| seen.insert(*path)).collect()
}

/// The first few, and how many more there are.
fn few(mut cases: impl ExactSizeIterator<Item = String>) -> String {
    let more = cases.len().saturating_sub(NAMED);
    let named: Vec<String> = cases.by_ref().take(NAMED).collect();
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    named.join(", ") + &rest
}

/// Groups of files, by number and in order, that are the same.
fn same(files: &[&Path]) -> Vec<Vec<usize>> {
    let about: Vec<_> = files.par_iter().map(|path| std::fs::metadata(path).ok()).collect();
    let sized = (0..files.len()).filter_map(|file| Some((about[file].as_ref()?.len(), file))).collect();
    let mut groups = vec![];
    for candidates in grouped(sized).into_iter().filter(|group| group.len() > 1) {
        let inode = |&file: &usize| about[file].as_ref().map(|about| ((about.dev(), about.ino()), file));
        // Of the names of one file the first is read.
        let names = grouped(candidates.iter().filter_map(inode).collect());
        let firsts: Vec<usize> = names.iter().map(|names| names[0]).collect();
        let alike = alike(files, firsts, 3).into_iter().flat_map(|firsts| alike(files, firsts, PLACES));
        groups.extend(alike.filter_map(|firsts| {
            let mut group: Vec<usize> =
                names.iter().filter(|names| firsts.contains(&names[0])).flatten().copied().collect();
            group.sort_unstable();
            (group.len() > 1).then_some(group)
        }));
    }
    groups.sort();
    groups
}

/// Splits files of one length into groups that hold the same at so many places.
fn alike(files: &[&Path], among: Vec<usize>, places: u64) -> Vec<Vec<usize>> {
    if among.len() < 2 {
        return vec![among];
    }
    let sums: Vec<_> = among.par_iter().map(|&file| checksum(files[file], places).ok()).collect();
    // One that cannot be read has a key of its own.
    let keyed = among.into_iter().zip(sums).map(|(file, sum)| ((sum, sum.map_or(file, |_| 0)), file));
    grouped(keyed.collect())
}

/// A checksum of a file's blocks at so many even distances, the first and the last among them, or of the whole file if
/// it is smaller.
fn checksum(path: &Path, places: u64) -> io::Result<(u32, u32)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut block, mut sums) = (vec![0; BLOCK as usize], (0, 0));
    let whole = length <= places * BLOCK;
    let count = if whole { length.div_ceil(BLOCK) } else { places };
    for i in 0..count {
        let start = if whole { i * BLOCK } else { i * (length - BLOCK) / (places - 1) };
        let block = &mut block[..BLOCK.min(length - start) as usize];
        file.read_exact_at(block, start)?;
        // Two of 32 bits, the second of the first ones, so that files of many blocks do not meet by chance.
        sums.0 = crc32c::crc32c_append(sums.0, block);
        sums.1 = crc32c::crc32c_append(sums.1, &[crc32c::crc32c(block).to_le_bytes(), sums.0.to_le_bytes()].concat());
    }
    Ok(sums)
}

/// Items with equal keys together, each group in the order given, groups in the order of keys.
fn grouped<K: Ord>(items: Vec<(K, usize)>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    items.into_iter().for_each(|(key, item)| groups.entry(key).or_default().push(item));
    groups.into_values().collect()
}
