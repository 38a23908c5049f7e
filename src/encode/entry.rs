//! Reads and writes the entries of a cache's folder: each is a safetensors file of one tensor, its name the hash of all
//! that the tensor depends on.
//!
//! What is asked for is looked up by that name, so an entry of other inputs is never found: it is stale, not wrong.
//! Entries appear whole or not at all. On reading, the entry's own record of its key is checked.

use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::{Tensors, atomic_write, create_folders, to_hex, try_to_write, within_temporary};
use crate::{Error, Result, bail};

/// Where an entry's header has its [`Record`].
const RECORD: &str = "longreel";

/// The extension of an entry.
const ENTRY: &str = "safetensors";

/// What an entry says of itself in its header.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    key: String,
    /// What it was made of, for people: the clip, or the caption.
    clip: String,
    /// CRC-32C of the tensor's bytes.
    crc32c: u32,
}

impl Record {
    /// What a file says, if it is an entry.
    fn of(tensors: &Tensors) -> Option<Self> {
        tensors.metadata(RECORD).and_then(|text| serde_json::from_str(text).ok())
    }
}

/// An entry's tensor: its name, element type and shape, and its bytes.
pub(super) struct EntryTensor<'a> {
    pub name: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

/// The name of what depends on `parts`.
pub(super) fn key_of(parts: &impl Serialize) -> String {
    let text = serde_json::to_vec(parts).expect("plain values");
    to_hex(&Sha256::digest(&text)[..20])
}

/// The file of an entry.
pub(super) fn path_of(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.{ENTRY}"))
}

/// Opens an entry, which has a tensor `tensor`, and checks that it is what its name says.
pub(super) fn open(dir: &Path, key: &str) -> Result<(Tensors, Record)> {
    let path = path_of(dir, key);
    let tensors = Tensors::open(&path)?;
    match Record::of(&tensors).filter(|record| record.key == key) {
        Some(record) => Ok((tensors, record)),
        None => bail!(Data, "{}: is not what its name says; delete it, and it is encoded again", path.display()),
    }
}

/// The bytes of an opened entry's tensor, if they have the checksum that its record says.
pub(super) fn checked_bytes(tensors: &Tensors, record: &Record, tensor: &str) -> Result<Vec<u8>> {
    let bytes = tensors.bytes(tensor)?;
    match record.crc32c == crc32c::crc32c(&bytes) {
        true => Ok(bytes),
        false => bail!(Data, "{}: its values are damaged", tensors.path().display()),
    }
}

/// Writes an entry, which people know as `clip`.
///
/// # Errors
/// The folder cannot be written to, or the disk is full; no part of the entry is left then.
pub(super) fn write(dir: &Path, key: &str, clip: &str, tensor: EntryTensor) -> Result<()> {
    let EntryTensor { name, dtype, shape, bytes } = tensor;
    let record = Record { key: key.to_owned(), clip: clip.to_owned(), crc32c: crc32c::crc32c(bytes) };
    let record = serde_json::to_string(&record).expect("plain values");
    let metadata = Some(HashMap::from([(RECORD.to_owned(), record)]));
    let view = TensorView::new(dtype, shape, bytes).map_err(|e| Error::Shape(e.to_string()))?;
    let text = safetensors::serialize([(name, view)], metadata).map_err(|e| Error::Shape(e.to_string()))?;
    atomic_write(&path_of(dir, key), |out| out.write_all(&text))
}

/// Makes the folder of a cache that the config calls `key`, if it is not there, and tries whether entries can be
/// written to it, before work is done whose result would have no place.
///
/// # Errors
/// It cannot be made or written to, or is no folder.
pub(super) fn prepare(dir: &Path, key: &str) -> Result<()> {
    let shown = dir.display();
    if dir.exists() && !dir.is_dir() {
        bail!(Config, "{key}: {shown}: is not a folder; name another one")
    }
    let made = create_folders(dir).map_err(|e| match e {
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    });
    match made.and_then(|()| try_to_write(dir).map_err(|e| e.to_string())) {
        Ok(()) => Ok(()),
        Err(why) => bail!(Environment, "{key}: {shown}: cannot be written to ({why}); name another folder"),
    }
}

/// What a process that was killed while it wrote an entry has left: a file of a temporary name that nobody has written
/// to for an hour.
fn is_left_over(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|name| within_temporary(&name.to_string_lossy()).is_some());
    let changed = || std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?.elapsed().ok();
    named && changed().is_some_and(|ago| ago > Duration::from_secs(3600))
}

/// What a cache's folder holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Entries that are wanted and there.
    pub there: usize,
    /// What is wanted and not there, or damaged.
    pub missing: Vec<String>,
    /// Entries of what is wanted as it was before something that it depends on changed.
    pub stale: Vec<PathBuf>,
    /// Entries of nothing that is wanted, and what is left of some that were being written.
    pub unused: Vec<PathBuf>,
}

/// An entry that is wanted.
pub(super) struct Wanted<'a> {
    pub key: &'a str,
    /// What it is of, for people.
    pub clip: &'a str,
    /// Whether it is there and whole.
    pub there: bool,
}

impl Contents {
    /// Compares what is `wanted` with the entries of `dir` that hold a tensor `tensor`.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn of(dir: &Path, tensor: &str, wanted: &[Wanted]) -> Result<Self> {
        let mut contents = Self::default();
        for entry in wanted {
            match entry.there {
                true => contents.there += 1,
                false => contents.missing.push(entry.clip.to_owned()),
            }
        }
        if !dir.exists() {
            return Ok(contents);
        }
        let keys: HashSet<&str> = wanted.iter().map(|entry| entry.key).collect();
        let clips: HashSet<&str> = wanted.iter().map(|entry| entry.clip).collect();
        let mut others = vec![];
        for file in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = file.map_err(|e| Error::io(dir, e))?.path();
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == ENTRY) && !keys.contains(key.as_str()) {
                others.push(path);
            } else if is_left_over(&path) {
                contents.unused.push(path);
            }
        }
        others.sort();
        for path in others {
            let Ok(tensors) = Tensors::open(&path) else {
                contents.unused.push(path);
                continue;
            };
            match Record::of(&tensors) {
                Some(_) if !tensors.contains(tensor) => {} // another cache's, in the same folder
                Some(record) if clips.contains(record.clip.as_str()) => contents.stale.push(path),
                _ => contents.unused.push(path),
            }
        }
        contents.unused.sort();
        Ok(contents)
    }
}
