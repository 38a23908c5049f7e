//! Safetensors: one file, or the shards that an index names, behind one set of named tensors.
//!
//! The header is checked as a whole on opening (offsets, shapes, file length), so that a truncated file is an error
//! with its name, and not a surprise later. Tensors are then read by offset one at a time (`pread`): nothing is held in
//! memory that was not asked for, and a file cut short meanwhile is an error too, where a memory map would be a bus
//! error.
//!
//! Format: 8 bytes of header length (little endian), a JSON header, the tensors' bytes.
//! <https://github.com/huggingface/safetensors#format>

use super::header::{Header, TensorPlace};
use super::{FileSum, Summed, check_names, elements, read_text};
use crate::{Error, Result, bail};
use safetensors::tensor::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that an index of shards may have: a line for each of some hundred thousand tensors.
const MAX_INDEX: u64 = 64 << 20;

/// Named tensors in one or several safetensors files, read when asked for.
#[derive(Debug)]
pub struct Tensors {
    /// What errors call the whole: the file, or the index.
    path: PathBuf,
    files: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    /// The checksum of the one file, where it is known.
    expected: Option<FileSum>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    metadata: HashMap<String, String>,
    /// Of the header, with the bytes that tell its length.
    header: Summed,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In bytes from the start of the file.
    start: u64,
    bytes: u64,
    /// CRC-32C of the tensor's bytes, with [`READ`] set once they have been read.
    sum: AtomicU64,
}

/// Marks a checksum that is there.
const READ: u64 = 1 << 32;

impl Tensors {
    /// Opens one safetensors file.
    ///
    /// # Errors
    /// The file is missing, truncated, or not safetensors.
    pub fn open(path: &Path) -> Result<Self> {
        let (shard, entries) = open_file(path)?;
        Ok(Self { path: path.to_owned(), files: vec![shard], entries, expected: None })
    }

    /// Opens the shards named by a `*.safetensors.index.json`, which lie beside it.
    ///
    /// # Errors
    /// Besides those of [`open`](Self::open): the index is not JSON or has no `weight_map`, names a shard that is not
    /// there, or a tensor that is not in its shard.
    pub fn open_sharded(index: &Path) -> Result<Self> {
        let shown = index.display();
        let text = read_text(index, MAX_INDEX).map_err(|e| Error::io(index, e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| Error::Data(format!("{shown}: not JSON: {e}")))?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            bail!(Data, "{shown}: has no `weight_map` from tensors to files; it is not a safetensors index");
        };
        let mut all = Self { path: index.to_owned(), files: Vec::new(), entries: BTreeMap::new(), expected: None };
        let mut shards: BTreeMap<&str, (usize, BTreeMap<String, Entry>)> = BTreeMap::new();
        for (tensor, shard) in map {
            let Some(shard) = shard.as_str().filter(|s| is_plain_name(s)) else {
                bail!(
                    Data,
                    "{shown}: the file of tensor `{tensor}` is {shard}; it must be the name of a file beside the index"
                );
            };
            if !shards.contains_key(shard) {
                let path = index.with_file_name(shard);
                if !path.is_file() {
                    bail!(Data, "{shown}: names the shard {shard}, which is not there: the folder is incomplete");
                }
                let (file, entries) = open_file(&path)?;
                shards.insert(shard, (all.files.len(), entries));
                all.files.push(file);
            }
            let (number, entries) = shards.get_mut(shard).expect("inserted above");
            let Some(mut entry) = entries.remove(tensor) else {
                bail!(Data, "{shown}: says tensor `{tensor}` is in {shard}, but it is not");
            };
            entry.file = *number;
            all.entries.insert(tensor.clone(), entry);
        }
        Ok(all)
    }

    /// The same tensors under other names; those that `name` has none for are left out.
    ///
    /// # Errors
    /// Two have the same name.
    pub fn renamed(mut self, name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (old, entry) in std::mem::take(&mut self.entries) {
            let Some(new) = name(&old) else { continue };
            if entries.insert(new, entry).is_some() {
                bail!(Data, "{}: has tensor `{old}` under another name too", self.path.display())
            }
        }
        Ok(Self { entries, ..self })
    }

    /// The file, or the index, that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors, as they were opened.
    pub fn files(&self) -> Vec<(&Path, &File)> {
        self.files.iter().map(|shard| (shard.path.as_path(), &shard.file)).collect()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What the file says of itself under `key`; nothing of several shards.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let [file] = self.files.as_slice() else { return None };
        file.metadata.get(key).map(String::as_str)
    }

    /// All that the file says of itself, sorted by key; nothing of several shards.
    pub fn all_metadata(&self) -> BTreeMap<String, String> {
        let [file] = self.files.as_slice() else { return BTreeMap::new() };
        file.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// The stored type of a tensor.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.entry(name)?.dtype)
    }

    /// Refuses a tensor whose type [`read_f32`](Self::read_f32) does not read.
    pub fn check_float(&self, name: &str) -> Result<()> {
        match self.dtype(name)? {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64 => Ok(()),
            other => Err(no_float(&self.path, name, other)),
        }
    }

    /// A tensor's bytes as they are.
    ///
    /// # Errors
    /// There is no such tensor, or the file cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; entry.bytes as usize];
        self.read_bytes(name, entry, &mut bytes, 0)?;
        Ok(bytes)
    }

    /// Elements `range` of an f16 tensor, counted in row-major order, as f32.
    ///
    /// # Errors
    /// There is no such tensor, it is of another type or too short, or the file cannot be read.
    pub fn read_f16(&self, name: &str, range: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        if entry.dtype != Dtype::F16 || 2 * range.end as u64 > entry.bytes {
            bail!(Data, "{}: tensor `{name}` is {} of {:?}", self.path.display(), entry.dtype, entry.shape);
        }
        let mut bytes = vec![0; 2 * range.len()];
        self.read_bytes(name, entry, &mut bytes, 2 * range.start as u64)?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect())
    }

    /// A tensor's elements in row-major order, as f32. Sources: f32, bf16, f16, f64 (rounded to nearest).
    ///
    /// # Errors
    /// There is no such tensor, it is of another type, or the file cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, false)
    }

    /// As [`read_f32`](Self::read_f32), but i32 and i64 too: for timesteps and labels, which are no weights.
    pub fn read_numbers(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name, true)
    }

    /// Fills `out` with a tensor's elements in row-major order from number `first` on; types as
    /// [`read_f32`](Self::read_f32). It counts as no reading of the tensor for its checksum.
    ///
    /// # Errors
    /// There is no such tensor, it is of another type or too short, or the file cannot be read.
    pub fn read_f32_at(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if out.len() > entry.shape.iter().product::<usize>().saturating_sub(first) {
            bail!(Data, "{}: tensor `{name}` is {:?}", self.path.display(), entry.shape);
        }
        let mut read = |bytes: &mut [u8], at: u64| self.read_bytes(name, entry, bytes, at);
        elements::read_f32(entry.dtype, false, out, first as u64, &mut read)
            .unwrap_or_else(|| Err(no_float(&self.files[entry.file].path, name, entry.dtype)))
    }

    fn read(&self, name: &str, integers: bool) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let path = &self.files[entry.file].path;
        let mut sum = Summed::default();
        let mut read = |bytes: &mut [u8], at: u64| {
            self.read_bytes(name, entry, bytes, at)?;
            sum.add(bytes);
            Ok(())
        };
        let mut out = vec![0f32; entry.shape.iter().product()];
        elements::read_f32(entry.dtype, integers, &mut out, 0, &mut read)
            .unwrap_or_else(|| Err(no_float(path, name, entry.dtype)))?;
        entry.sum.store(READ | u64::from(sum.crc32c()), Ordering::Relaxed);
        Ok(out)
    }

    /// Fills `bytes` from byte `at` of a tensor on.
    fn read_bytes(&self, name: &str, entry: &Entry, bytes: &mut [u8], at: u64) -> Result<()> {
        let Shard { path, file, .. } = &self.files[entry.file];
        file.read_exact_at(bytes, entry.start + at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::Data(format!("{}: cut short while it was read (tensor `{name}`)", path.display()))
            }
            _ => Error::io(path, e),
        })
    }

    /// The same tensors of one file whose checksum is known: [`check_sums`](Self::check_sums) compares with it.
    pub fn expecting(self, expected: Option<FileSum>) -> Self {
        Self { expected, ..self }
    }

    /// The tensors in the order of their bytes.
    fn in_order(&self) -> Vec<(&str, &Entry)> {
        let mut entries: Vec<_> = self.entries.iter().map(|(name, entry)| (name.as_str(), entry)).collect();
        entries.sort_by_key(|(_, entry)| (entry.file, entry.start, entry.bytes));
        entries
    }

    /// What was read so far: the CRC-32C of each file's header, then of each tensor in the order of their bytes; none
    /// where a tensor was not read.
    pub fn sums(&self) -> Vec<Option<u32>> {
        let headers = self.files.iter().map(|shard| Some(shard.header.crc32c()));
        let read = |entry: &Entry| {
            let sum = entry.sum.load(Ordering::Relaxed);
            (sum & READ != 0).then_some(sum as u32)
        };
        headers.chain(self.in_order().into_iter().map(|(_, entry)| read(entry))).collect()
    }

    /// The names of the tensors that have been read, in the order of the names, and the CRC-32C of each.
    pub fn tensor_sums(&self) -> impl Iterator<Item = (&str, u32)> {
        self.entries.iter().filter_map(|(name, entry)| {
            let sum = entry.sum.load(Ordering::Relaxed);
            (sum & READ != 0).then_some((name.as_str(), sum as u32))
        })
    }

    /// What [`sums`](Self::sums) number `i` is of, for an error: a file's header, or a tensor.
    pub fn summed(&self, i: usize) -> String {
        match i.checked_sub(self.files.len()) {
            None => format!("the header of {}", self.files[i].path.display()),
            Some(i) => format!("tensor `{}` of {}", self.in_order()[i].0, self.path.display()),
        }
    }

    /// Checks that what was read is what was saved: `sums`, of this process or of several together, make the file's
    /// checksum. Tensors that nobody has read are read now. Nothing is checked where no checksum is known.
    ///
    /// # Errors
    /// The file is another, or damaged; or it cannot be read.
    pub fn check_sums(&self, sums: &[Option<u32>]) -> Result<()> {
        let (Some(expected), [shard]) = (self.expected, self.files.as_slice()) else { return Ok(()) };
        let mut sum = shard.header.clone();
        for ((name, entry), part) in self.in_order().into_iter().zip(&sums[1..]) {
            match part {
                Some(part) => sum.append(*part, entry.bytes),
                None => self.in_pieces(name, entry, |piece| sum.add(piece))?,
            }
        }
        expected.check(sum.sum(), &shard.path)
    }

    /// As [`check_sums`](Self::check_sums), of what this process has read alone.
    pub fn check_read(&self) -> Result<()> {
        self.check_sums(&self.sums())
    }

    /// The SHA-256 of a tensor's bytes as they are stored.
    pub fn sha256(&self, name: &str) -> Result<[u8; 32]> {
        let mut sum = Sha256::new();
        self.in_pieces(name, self.entry(name)?, |piece| sum.update(piece))?;
        Ok(sum.finalize().into())
    }

    /// Hands a tensor's bytes to `take`, some at a time.
    fn in_pieces(&self, name: &str, entry: &Entry, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut bytes = vec![0; (1 << 20).min(entry.bytes as usize)];
        let mut at = 0;
        while at < entry.bytes {
            let piece = bytes.len().min((entry.bytes - at) as usize);
            self.read_bytes(name, entry, &mut bytes[..piece], at)?;
            take(&bytes[..piece]);
            at += piece as u64;
        }
        Ok(())
    }

    /// Checks that the tensors are exactly `expected`: names with shapes.
    ///
    /// # Errors
    /// One that counts the missing, the extra and the misshapen and names the first of each.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        check_names(&self.path, &self.shapes(), expected)
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let Some(entry) = self.entries.get(name) else {
            let path = self.path.display();
            bail!(Data, "{path}: has no tensor `{name}` among its {}", self.entries.len());
        };
        Ok(entry)
    }
}

/// Opens a safetensors file and reads its header; entries are of file 0.
fn open_file(path: &Path) -> Result<(Shard, BTreeMap<String, Entry>)> {
    let shown = path.display();
    if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        bail!(Data, "{shown}: is not a file"); // a FIFO would wait for ever
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let Header { tensors, metadata, sum } =
        Header::read(&file, length).map_err(|why| Error::Data(format!("{shown}: {why}")))?;
    let entry = |TensorPlace { name, dtype, shape, start, bytes }| {
        (name, Entry { file: 0, dtype, shape, start, bytes, sum: AtomicU64::new(0) })
    };
    let entries = tensors.into_iter().map(entry).collect();
    Ok((Shard { path: path.to_owned(), file, metadata, header: sum }, entries))
}

/// What is wrong with a tensor of weights that is of type `dtype`.
fn no_float(path: &Path, name: &str, dtype: Dtype) -> Error {
    let of_8_bits = dtype.to_string().starts_with("F8");
    let advice = if of_8_bits { "; floats of 8 bits are not read: take the same model in bf16 or f16" } else { "" };
    let path = path.display();
    Error::Data(format!("{path}: tensor `{name}` is {dtype}; f32, bf16, f16 or f64 is needed{advice}"))
}

/// Whether `name` is a file name without any path to it.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
}
