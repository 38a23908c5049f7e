//! A folder of encoded clips, each under a name that is the hash of all that its latents depend on.
//!
//! What is asked for is looked up by that name, so an entry of another file, crop, size or VAE is never found: it is
//! stale, not wrong. Entries appear whole or not at all; runs with clips in common may share a folder. On reading, the
//! entry's own record of its key, its shape and its length are checked.

use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::latents::Latents;
use super::sources::Sources;
use crate::data::{Augment, ClipOptions, Dataset, Recipe};
use crate::files::{Tensors, atomic_write, create_folders, to_hex};
use crate::vae::{Frame, VaeConfig};
use crate::{Error, Result, bail};

/// The version of this file's rules: what an entry holds, and what its key is made of.
const RULE: u32 = 1;

/// Where an entry's header has its [`Record`].
const RECORD: &str = "longreel";

/// The extension of an entry.
const ENTRY: &str = "safetensors";

/// The VAE that makes latents, as far as they depend on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VaeKey {
    /// The SHA-256 of the encoder's weights and of the latents' mean and deviation.
    pub sha256: String,
    /// Whether products were of bf16.
    pub bf16: bool,
}

/// All that an entry depends on.
#[derive(Serialize)]
struct Parts<'a> {
    rule: u32,
    source: &'a str,
    recipe: &'a Recipe,
    vae: &'a VaeKey,
}

/// What an entry says of itself in its header.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    key: String,
    /// The clip that it was made of, for people: the file, the clip in it, the variant.
    clip: String,
    /// CRC-32C of the latents' bytes.
    crc32c: u32,
}

impl Record {
    /// What a file says, if it is an entry.
    fn of(tensors: &Tensors) -> Option<Self> {
        tensors.metadata(RECORD).and_then(|text| serde_json::from_str(text).ok())
    }
}

/// An encoded clip that a run wants.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its clip in the dataset.
    pub clip: usize,
    /// How it is cropped and mirrored.
    pub augment: Augment,
    /// The hash of all that it depends on: its name.
    pub key: String,
    /// What it is of, for people.
    pub name: String,
}

/// The encoded clips of a dataset: which there must be, and where.
pub struct LatentCache {
    dir: PathBuf,
    /// Channels, frames, height, width of each.
    shape: [usize; 4],
    /// How often each clip is encoded, cropped and mirrored differently.
    variants: usize,
    /// Clip after clip, variant after variant.
    entries: Vec<Entry>,
    sources: Sources,
}

/// What a cache's folder holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Entries that are wanted and there.
    pub there: usize,
    /// Clips that are wanted and not there, or damaged.
    pub missing: Vec<String>,
    /// Entries of wanted clips as they were before something that they depend on changed.
    pub stale: Vec<PathBuf>,
    /// Entries of nothing that is wanted.
    pub unused: Vec<PathBuf>,
}

impl LatentCache {
    /// The encoded clips of `dataset` in the folder `dir`, each in so many `variants`; none: once, as it is, the crop
    /// in the middle and not mirrored. Reads the source files once, to hash them; writes nothing.
    ///
    /// # Errors
    /// A source cannot be read, the clips' size is none of the VAE's.
    pub fn open(
        dir: &Path,
        dataset: &Dataset,
        vae: &VaeKey,
        config: &VaeConfig,
        variants: Option<usize>,
    ) -> Result<Self> {
        let (plain, variants) = (variants.is_none(), variants.unwrap_or(1));
        let [frames, height, width] = dataset.options().size();
        let [t, h, w] = config.space().size([frames, height, width], [1; 3])?;
        let sources = Sources::open(dir);
        let mut entries = Vec::with_capacity(dataset.len() * variants);
        for id in 0..dataset.len() {
            let clip = dataset.clip(id);
            let source = match dataset.own_hash(&clip)? {
                Some(hash) => hash,
                None => sources.hash(&clip.path)?,
            };
            for variant in 0..variants {
                let augment = match plain {
                    true => Augment::PLAIN,
                    false => drawn(dataset.options_of(&clip), &source, clip.window, variant),
                };
                let recipe = dataset.recipe(&clip, &augment);
                let parts = Parts { rule: RULE, source: &source, recipe: &recipe, vae };
                let text = serde_json::to_vec(&parts).expect("plain values");
                let key = to_hex(&Sha256::digest(&text)[..20]);
                let name = format!("{}, clip {}, variant {variant}", clip.path.display(), clip.window);
                entries.push(Entry { clip: id, augment, key, name });
            }
        }
        let cache = Self { dir: dir.to_owned(), shape: [config.z_dim, t, h, w], variants, entries, sources };
        if dir.is_dir() {
            cache.remember();
        }
        Ok(cache)
    }

    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is no folder.
    pub fn prepare(&self) -> Result<()> {
        create_folders(&self.dir)?;
        self.remember();
        Ok(())
    }

    /// Keeps the hashes of the source files for other runs, which can do without.
    fn remember(&self) {
        if let Err(e) = self.sources.save() {
            tracing::debug!("hashes of source files are not remembered: {e}");
        }
    }

    /// A number that is the same for the same entries in the same order.
    pub fn fingerprint(&self) -> u64 {
        let sum = self.entries.iter().fold(0, |sum, entry| crc32c::crc32c_append(sum, entry.key.as_bytes()));
        u64::from(sum)
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of an entry's latents.
    pub fn entry_bytes(&self) -> u64 {
        2 * self.shape.iter().product::<usize>() as u64
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry of a clip in an epoch: the variants in turn.
    pub fn number(&self, clip: usize, epoch: u64) -> usize {
        clip * self.variants + (epoch % self.variants as u64) as usize
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.{ENTRY}"))
    }

    /// Numbers of the entries that are not there, or not whole; to `verify`, their values are read and compared with
    /// their checksums.
    pub fn missing(&self, verify: bool) -> Vec<usize> {
        let is_there = |i| if verify { self.verify(i).is_ok() } else { self.opened(i).is_ok() };
        (0..self.entries.len()).filter(|&i| !is_there(i)).collect()
    }

    /// Opens an entry and checks what it says of itself.
    fn opened(&self, i: usize) -> Result<(Tensors, Record)> {
        let entry = &self.entries[i];
        let path = self.path(&entry.key);
        let tensors = Tensors::open(&path)?;
        let Some(record) = Record::of(&tensors).filter(|record| record.key == entry.key) else {
            bail!(Data, "{}: is not what its name says; delete it, and it is encoded again", path.display());
        };
        let shape = tensors.shape("latents")?;
        if shape != self.shape || tensors.dtype("latents")? != Dtype::F16 {
            bail!(
                Data,
                "{}: is of {shape:?}, not {:?}; delete it, and it is encoded again",
                path.display(),
                self.shape
            );
        }
        Ok((tensors, record))
    }

    /// Reads an entry whole and compares its checksum.
    fn verify(&self, i: usize) -> Result<()> {
        let (tensors, record) = self.opened(i)?;
        match record.crc32c == crc32c::crc32c(&tensors.bytes("latents")?) {
            true => Ok(()),
            false => bail!(Data, "{}: its values are damaged", self.path(&self.entries[i].key).display()),
        }
    }

    /// Reads some frames of an entry.
    ///
    /// # Errors
    /// It is not there, damaged, or of another key than its name says.
    pub fn read(&self, i: usize, frames: Range<usize>) -> Result<Latents> {
        let [z, t, h, w] = self.shape;
        let (tensors, _) = self.opened(i).map_err(|e| e.at(&self.entries[i].name))?;
        let mut values = Vec::with_capacity(z * frames.len() * h * w);
        for c in 0..z {
            let start = (c * t + frames.start) * h * w;
            values.extend(tensors.read_f16("latents", start..start + frames.len() * h * w)?);
        }
        if !values.iter().all(|x| x.is_finite()) {
            let path = self.path(&self.entries[i].key);
            bail!(Data, "{}: has values that are not finite; delete it, and it is encoded again", path.display());
        }
        Ok(Latents { first: frames.start, shape: [z, h, w], values })
    }

    /// Writes an entry of frames of normalised latents.
    ///
    /// # Errors
    /// A value is not finite or too large for f16: the VAE is not the one of these pixels. The folder cannot be written
    /// to, or the disk is full; no part of the entry is left then.
    pub fn write(&self, i: usize, latents: &[Frame]) -> Result<()> {
        let [z, t, h, w] = self.shape;
        let entry = &self.entries[i];
        let mut plane = vec![0f32; h * w];
        let mut bytes = Vec::with_capacity(2 * z * t * h * w);
        for c in 0..z {
            for frame in latents {
                frame.plane(c, &mut plane);
                for &x in &plane {
                    let x = f16::from_f32(x);
                    if !x.is_finite() {
                        bail!(Data, "{}: encodes to a value beyond f16; is this the VAE for it?", entry.name);
                    }
                    bytes.extend(x.to_le_bytes());
                }
            }
        }
        let record = Record { key: entry.key.clone(), clip: entry.name.clone(), crc32c: crc32c::crc32c(&bytes) };
        let record = serde_json::to_string(&record).expect("plain values");
        let metadata = Some(HashMap::from([(RECORD.to_owned(), record)]));
        let view = TensorView::new(Dtype::F16, self.shape.to_vec(), &bytes).map_err(|e| Error::Shape(e.to_string()))?;
        let text = safetensors::serialize([("latents", view)], metadata).map_err(|e| Error::Shape(e.to_string()))?;
        atomic_write(&self.path(&entry.key), |out| out.write_all(&text))
    }

    /// Compares what is wanted, by caches in one folder, with what is there.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn contents(caches: &[&Self]) -> Result<Contents> {
        let mut contents = Contents::default();
        let Some(Self { dir, .. }) = caches.first() else { return Ok(contents) };
        for (cache, i) in caches.iter().flat_map(|cache| (0..cache.entries.len()).map(move |i| (cache, i))) {
            match cache.verify(i) {
                Ok(()) => contents.there += 1,
                Err(_) => contents.missing.push(cache.entries[i].name.clone()),
            }
        }
        let entries = || caches.iter().flat_map(|cache| &cache.entries);
        let wanted: HashSet<&str> = entries().map(|entry| entry.key.as_str()).collect();
        let names: HashSet<&str> = entries().map(|entry| entry.name.as_str()).collect();
        let mut others = vec![];
        if !dir.exists() {
            return Ok(contents);
        }
        for file in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = file.map_err(|e| Error::io(dir, e))?.path();
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == ENTRY) && !wanted.contains(key.as_str()) {
                others.push(path);
            }
        }
        others.sort();
        for path in others {
            match Tensors::open(&path).ok().and_then(|tensors| Record::of(&tensors)) {
                Some(record) if names.contains(record.clip.as_str()) => contents.stale.push(path),
                _ => contents.unused.push(path),
            }
        }
        Ok(contents)
    }
}

/// How variant `variant` of a clip is cropped and mirrored: by the file's contents, so that it is the same in any run.
fn drawn(options: &ClipOptions, source: &str, window: usize, variant: usize) -> Augment {
    let seed = u64::from_str_radix(&source[..16], 16).unwrap_or_default();
    let flip = options.flip && variant % 2 == 1; // the mirror image comes second
    Augment { flip, ..Augment::draw(options, seed, variant as u64, window as u64) }
}
