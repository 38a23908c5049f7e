//! Keeps the latents of a dataset's clips in a folder, each under a name that is the hash of all that they depend on:
//! the file, the crop, the size, the VAE. Runs with clips in common may share a folder.

use half::f16;
use safetensors::Dtype;
use serde::Serialize;
use std::path::{Path, PathBuf};

pub use super::entry::Contents;
use super::entry::{self, EntryTensor, Record, Wanted};
use super::latents::Latents;
use super::sources::Sources;
use crate::data::{Augment, ClipOptions, Dataset, FrameRegion, Recipe};
use crate::files::Tensors;
use crate::vae::{Frame, VaeConfig};
use crate::{Result, bail};

/// The version of this file's rules: what an entry holds, and what its key is made of.
const RULE: u32 = 1;

/// The name of an entry's tensor.
const LATENTS: &str = "latents";

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
                let key = entry::key_of(&parts);
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
    /// It cannot be made or written to, or is no folder.
    pub fn prepare(&self) -> Result<()> {
        entry::prepare(&self.dir, "vae.cache")?;
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

    /// Numbers of the entries that are not there, or not whole; to `verify`, their values are read and compared with
    /// their checksums.
    pub fn missing(&self, verify: bool) -> Vec<usize> {
        let is_there = |i| if verify { self.verify(i).is_ok() } else { self.opened(i).is_ok() };
        (0..self.entries.len()).filter(|&i| !is_there(i)).collect()
    }

    /// Opens an entry and checks what it says of itself.
    fn opened(&self, i: usize) -> Result<(Tensors, Record)> {
        let (tensors, record) = entry::open(&self.dir, &self.entries[i].key)?;
        let shape = tensors.shape(LATENTS)?;
        if shape != self.shape || tensors.dtype(LATENTS)? != Dtype::F16 {
            let (path, wanted) = (tensors.path().display(), self.shape);
            bail!(Data, "{path}: is of {shape:?}, not {wanted:?}; delete it, and it is encoded again");
        }
        Ok((tensors, record))
    }

    /// Reads an entry whole and compares its checksum.
    fn verify(&self, i: usize) -> Result<()> {
        let (tensors, record) = self.opened(i)?;
        entry::checked_bytes(&tensors, &record, LATENTS).map(drop)
    }

    /// Reads a region of an entry, counted in latents; nothing else of the file but its header is read.
    ///
    /// # Errors
    /// It is not there, damaged, or of another key than its name says.
    pub fn read(&self, i: usize, region: &FrameRegion) -> Result<Latents> {
        let [z, t, h, w] = self.shape;
        let FrameRegion { frames, lines } = region;
        let (tensors, _) = self.opened(i).map_err(|e| e.at(&self.entries[i].name))?;
        let mut values = Vec::with_capacity(z * frames.len() * lines.len() * w);
        // Frames lie one after another where they are whole.
        let (runs, run) = match *lines == (0..h) {
            true => (frames.start..frames.start + usize::from(!frames.is_empty()), frames.len() * h * w),
            false => (frames.clone(), lines.len() * w),
        };
        for frame in (0..z).flat_map(|c| runs.clone().map(move |frame| c * t + frame)) {
            let start = (frame * h + lines.start) * w;
            values.extend(tensors.read_f16(LATENTS, start..start + run)?);
        }
        if !values.iter().all(|x| x.is_finite()) {
            let path = tensors.path();
            bail!(Data, "{}: has values that are not finite; delete it, and it is encoded again", path.display());
        }
        Ok(Latents { first: frames.start, lines: lines.clone(), shape: [z, h, w], values })
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
        let tensor = EntryTensor { name: LATENTS, dtype: Dtype::F16, shape: self.shape.to_vec(), bytes: &bytes };
        entry::write(&self.dir, &entry.key, &entry.name, tensor)
    }

    /// Compares what is wanted, by caches in one folder, with what is there.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn contents(caches: &[&Self]) -> Result<Contents> {
        let Some(Self { dir, .. }) = caches.first() else { return Ok(Contents::default()) };
        let entries = caches.iter().flat_map(|cache| (0..cache.entries.len()).map(move |i| (cache, i)));
        let wanted = entries.map(|(cache, i)| {
            let Entry { key, name, .. } = &cache.entries[i];
            Wanted { key, clip: name, there: cache.verify(i).is_ok() }
        });
        Contents::of(dir, LATENTS, &wanted.collect::<Vec<_>>())
    }
}

/// How variant `variant` of a clip is cropped and mirrored: by the file's contents, so that it is the same in any run.
fn drawn(options: &ClipOptions, source: &str, window: usize, variant: usize) -> Augment {
    let seed = u64::from_str_radix(&source[..16], 16).unwrap_or_default();
    let flip = options.flip && variant % 2 == 1; // the mirror image comes second
    Augment { flip, ..Augment::draw(options, seed, variant as u64, window as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every field of what a key is made of, the versions of the rules among them, which no setting changes.
    #[test]
    fn each_part_of_a_key_changes_it() {
        let vae = VaeKey { sha256: "1".into(), bf16: false };
        let recipe = Recipe {
            frames: vec![0, 1],
            times: vec![0.0, 0.5],
            size: [32, 48],
            crop: [0.5, 0.5],
            flip: false,
            deinterlace: true,
            tonemap: true,
            scaler: 1,
        };
        let key = |rule: u32, source: &str, recipe: &Recipe, vae: &VaeKey| {
            entry::key_of(&Parts { rule, source, recipe, vae })
        };
        let with = |change: &dyn Fn(&mut Recipe)| {
            let mut other = recipe.clone();
            change(&mut other);
            key(RULE, "s", &other, &vae)
        };
        // A field that is added must be added here.
        let Recipe { frames: _, times: _, size: _, crop: _, flip: _, deinterlace: _, tonemap: _, scaler: _ } = &recipe;
        let VaeKey { sha256: _, bf16: _ } = &vae;
        let keys = [
            key(RULE, "s", &recipe, &vae),
            key(RULE + 1, "s", &recipe, &vae),
            key(RULE, "t", &recipe, &vae),
            key(RULE, "s", &recipe, &VaeKey { sha256: "2".into(), ..vae.clone() }),
            key(RULE, "s", &recipe, &VaeKey { bf16: true, ..vae.clone() }),
            with(&|recipe| recipe.frames[1] = 2),
            with(&|recipe| recipe.times[1] = 0.25),
            with(&|recipe| recipe.size = [48, 32]),
            with(&|recipe| recipe.crop[0] = 0.25),
            with(&|recipe| recipe.crop = [0.5, 0.25]),
            with(&|recipe| recipe.flip = true),
            with(&|recipe| recipe.deinterlace = false),
            with(&|recipe| recipe.tonemap = false),
            with(&|recipe| recipe.scaler = 2),
        ];
        let different: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
        assert_eq!(keys[0], key(RULE, "s", &recipe, &vae));
    }
}
