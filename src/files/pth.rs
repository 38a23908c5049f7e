//! Reads files that `torch.save` wrote of a state dict: a zip archive of a pickle, which names the tensors, and of
//! their storages, which are not compressed, so that any part of a tensor is read where it lies.
//!
//! What the archive claims is checked on opening, before anything is allocated for it: every tensor lies in its storage
//! and every storage in the file.

use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive};

use super::elements;
use super::pickle::{Described, state_dict};
use crate::{Error, Result, bail};

/// Bytes that a pickle may have; that of a thousand tensors has some hundred thousand.
const MAX_PICKLE: u64 = 4 << 20;

/// Entries that an archive may have: one a storage.
const MAX_ENTRIES: usize = 1 << 17;

/// Named tensors of a PyTorch file, read when asked for.
#[derive(Debug)]
pub struct PthTensors {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// The first element's byte in the file.
    start: u64,
}

/// Where a stored entry's bytes lie in the file.
struct Span {
    start: u64,
    bytes: u64,
}

impl PthTensors {
    /// Opens a file that `torch.save` wrote of a state dict.
    ///
    /// # Errors
    /// The file is missing, damaged or compressed, is no archive of a state dict, or has tensors of a type that is not
    /// known.
    pub fn open(path: &Path) -> Result<Self> {
        if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
            bail!(Data, "{}: is not a file", path.display());
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let refused = |why: String| Error::Data(format!("{}: cannot be read as a PyTorch file: {why}", path.display()));
        let entries = entries(&file).map_err(refused)?;
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, open.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// The stored type of a tensor.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.entry(name)?.dtype)
    }

    /// Fills `out` with a tensor's elements in row-major order from number `first` on, as
    /// [`Tensors::read_f32_at`](super::Tensors::read_f32_at).
    ///
    /// # Errors
    /// There is no such tensor, it is no float or too short, or the file cannot be read.
    pub fn read_f32_at(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let count: usize = entry.shape.iter().product();
        if out.len() > count.saturating_sub(first) {
            bail!(Data, "{}: tensor `{name}` is {:?}", self.path.display(), entry.shape);
        }
        if entry.is_contiguous() {
            return self.read_run(name, entry, out, first as u64);
        }
        // Row by row in another order: each run of elements that are neighbours in the file, and each to its place.
        let mut places: Vec<(usize, usize)> = (0..out.len()).map(|i| (entry.place(first + i), i)).collect();
        places.sort_unstable();
        for run in places.chunk_by(|(one, _), (next, _)| next - one <= 1) {
            let (start, end) = (run[0].0, run[run.len() - 1].0);
            let mut values = vec![0f32; end - start + 1];
            self.read_run(name, entry, &mut values, start as u64)?;
            run.iter().for_each(|&(place, i)| out[i] = values[place - start]);
        }
        Ok(())
    }

    /// Fills `out` with elements as they lie in the file, from number `first` after the tensor's first on.
    fn read_run(&self, name: &str, entry: &Entry, out: &mut [f32], first: u64) -> Result<()> {
        let mut read = |bytes: &mut [u8], at: u64| {
            self.file.read_exact_at(bytes, entry.start + at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::Data(format!("{}: cut short while it was read (tensor `{name}`)", self.path.display()))
                }
                _ => Error::io(&self.path, e),
            })
        };
        elements::read_f32(entry.dtype, false, out, first, &mut read).unwrap_or_else(|| {
            let (path, dtype) = (self.path.display(), entry.dtype);
            bail!(Data, "{path}: tensor `{name}` is {dtype}; f32, bf16, f16 or f64 is needed")
        })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let Some(entry) = self.entries.get(name) else {
            bail!(Data, "{}: has no tensor `{name}` among its {}", self.path.display(), self.entries.len());
        };
        Ok(entry)
    }
}

impl Entry {
    fn is_contiguous(&self) -> bool {
        let mut next = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == next;
            next *= size;
            fits
        })
    }

    /// Where element `i` in row-major order lies, counted from the first.
    fn place(&self, mut i: usize) -> usize {
        let mut place = 0;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            place += i % size * stride;
            i /= size;
        }
        place
    }
}

/// Elements from the first to the last of a tensor in its storage; none: more than can be counted.
fn span(shape: &[usize], strides: &[usize]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .zip(strides)
        .try_fold(1u64, |span, (&size, &stride)| span.checked_add((size as u64 - 1).checked_mul(stride as u64)?))
}

/// All tensors of the archive.
fn entries(file: &File) -> std::result::Result<BTreeMap<String, Entry>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut archive = ZipArchive::new(io::BufReader::new(file)).map_err(|e| e.to_string())?;
    if archive.len() > MAX_ENTRIES {
        return Err(format!("it has {} entries; at most {MAX_ENTRIES} are read", archive.len()));
    }
    let mut spans = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| e.to_string())?;
        let name = entry.name().map_err(|e| e.to_string())?.into_owned();
        if entry.compression() != CompressionMethod::STORE
            || entry.encrypted()
            || entry.size() != entry.compressed_size()
        {
            return Err(format!("its entry {name} is compressed; unpack it and zip it without compression (zip -0)"));
        }
        let span = Span { start: entry.data_start().unwrap_or(length), bytes: entry.size() };
        if span.start.checked_add(span.bytes).is_none_or(|end| end > length) {
            return Err(format!("it was cut short: entry {name} ends beyond the file's {length} bytes"));
        }
        spans.insert(name, span);
    }
    let mut pickles = spans.iter().filter_map(|(name, span)| Some((name.strip_suffix("data.pkl")?, span)));
    let (Some((folder, pickle)), None) = (pickles.next(), pickles.next()) else {
        return Err("it is not one archive with a data.pkl".into());
    };
    if pickle.bytes > MAX_PICKLE {
        return Err(format!("its data.pkl has {} bytes; at most {MAX_PICKLE} are read", pickle.bytes));
    }
    let read = |span: &Span| {
        let mut bytes = vec![0; span.bytes as usize];
        file.read_exact_at(&mut bytes, span.start).map_err(|e| e.to_string())?;
        Ok::<_, String>(bytes)
    };
    if let Some(order) = spans.get(&format!("{folder}byteorder")).filter(|span| span.bytes < 100)
        && read(order)? != b"little"
    {
        return Err("its numbers are not little-endian".into());
    }
    let mut entries = BTreeMap::new();
    for tensor in state_dict(&read(pickle)?)? {
        let storage = spans.get(&format!("{folder}{}", tensor.storage));
        let name = tensor.name.clone();
        let entry = entry(tensor, storage).map_err(|why| format!("tensor `{name}` {why}"))?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("it has tensor `{name}` twice"));
        }
    }
    match entries.is_empty() {
        true => Err("it holds no dict of tensors".into()),
        false => Ok(entries),
    }
}

/// A tensor in its storage.
fn entry(tensor: Described, storage: Option<&Span>) -> std::result::Result<Entry, String> {
    let Some(dtype) = tensor.dtype else { return Err(format!("is of {}, which is not known", tensor.class)) };
    let Some(storage) = storage else { return Err(format!("lies in {}, which is not there", tensor.storage)) };
    let size = dtype.bitsize() as u64 / 8;
    let sizes = |list: &[u64]| list.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>();
    let beyond = || format!("does not lie in its storage of {} bytes", storage.bytes);
    let (shape, strides) = sizes(&tensor.shape).zip(sizes(&tensor.strides)).ok_or_else(beyond)?;
    if shape.len() != strides.len() {
        return Err("has other dimensions than strides".into());
    }
    let held = storage.bytes / size;
    let count = shape.iter().try_fold(1u64, |count, &n| count.checked_mul(n as u64));
    // A stride of 0 repeats elements: it could claim any number of them.
    if count.is_none_or(|count| count > held)
        || span(&shape, &strides).and_then(|span| span.checked_add(tensor.offset)).is_none_or(|end| end > held)
    {
        return Err(beyond());
    }
    Ok(Entry { dtype, shape, strides, start: storage.start + size * tensor.offset })
}
