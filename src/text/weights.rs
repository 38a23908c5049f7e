//! Opens a text encoder's weights by any of their names, and reads them a matrix at a time.

use multiversion::multiversion;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

use super::config::TextConfig;
use super::matrix::{Arithmetic, Matrix};
use super::names;
use super::places::Places;
use super::times::Times;
use crate::files::model_folder::read_config;
use crate::files::{KnownHashes, WeightFile, check_names, to_hex};
use crate::{Error, Result, bail};

/// Elements that a thread reads at a time.
const PIECE: usize = 1 << 20;

/// The version of how weights are hashed.
const HASHING: u32 = 1;

/// An encoder's config, and its tensors, read when asked for.
#[derive(Debug)]
pub(super) struct EncoderWeights {
    pub config: TextConfig,
    file: WeightFile,
    /// From Hugging Face's names to those of the file, with shapes.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
    pub times: Times,
}

impl EncoderWeights {
    /// Opens the weights; all names and shapes are checked, nothing is read.
    ///
    /// # Errors
    /// The file is damaged or quantised, the config is of another network, or the tensors do not fit it.
    pub fn open(places: &Places) -> Result<Self> {
        let file = WeightFile::open(&places.weights)?;
        let found = file.shapes();
        file.check_floats()?;
        let mut stored = BTreeMap::new(); // by Hugging Face's names
        for name in found.keys() {
            let known = canonical(name, &found);
            if !names::is_beside(&known) {
                stored.insert(known, name.clone());
            }
        }
        let shapes: BTreeMap<String, Vec<usize>> =
            stored.iter().map(|(known, name)| (known.clone(), found[name].clone())).collect();
        let config = match &places.config {
            Some(path) => TextConfig::from_json(&read_config(path)?, path)?,
            None => TextConfig::of_shapes(&shapes)
                .map_err(|why| Error::Data(format!("{}: {why}", places.weights.display())))?,
        };
        let expected = names::tensors(&config);
        check_names(file.path(), &shapes, &expected)?;
        let entry = |(known, shape): (String, Vec<usize>)| {
            let name = stored[&known].clone();
            (known, (name, shape))
        };
        let tensors = expected.into_iter().map(entry).collect();
        Ok(Self { config, file, tensors, times: Times::default() })
    }

    /// Whether the file of weights `path` has an encoder's embedding.
    pub fn is_encoder(path: &Path) -> bool {
        let embeddings = [names::EMBEDDINGS[0], names::EMBEDDINGS[1], names::WAN_EMBEDDING, names::BERT_EMBEDDING];
        path.is_file()
            && WeightFile::open(path).is_ok_and(|file| embeddings.iter().any(|&name| file.dtype(name).is_ok()))
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A tensor's values, by Hugging Face's name.
    ///
    /// # Errors
    /// It cannot be read, or has a value that is not finite.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.count(name)?];
        values.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, piece)| self.read_at(name, i * PIECE, piece))?;
        Ok(values)
    }

    /// A matrix for products, which read it: each for itself, or the first for all if its packed form is to be `kept`.
    ///
    /// # Errors
    /// There is no such matrix.
    pub fn matrix(&self, name: &str, arithmetic: Arithmetic, kept: bool) -> Result<Matrix<'_>> {
        let &[out, inner] = self.entry(name)?.1.as_slice() else {
            bail!(Shape, "{}: `{name}` is no matrix", self.path().display())
        };
        Ok(Matrix::new(self, name, [out, inner], arithmetic, kept))
    }

    /// Adds row `rows[i]` of a matrix to row i of `x`; only these rows are read.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn add_rows(&self, name: &str, rows: &[usize], x: &mut [f32]) -> Result<()> {
        let width = x.len() / rows.len().max(1);
        x.par_chunks_exact_mut(width.max(1)).zip(rows).try_for_each(|(x, &row)| {
            let mut values = vec![0.0; width];
            self.read_at(name, row * width, &mut values)?;
            x.iter_mut().zip(values).for_each(|(x, value)| *x += value);
            Ok(())
        })
    }

    /// Fills `out` with a tensor's values from number `first` on.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_at(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let stored = &self.entry(name)?.0;
        self.file.read_f32_at(stored, first, out)?;
        if !all_finite(out)
            && let Some(value) = out.iter().find(|x| !x.is_finite())
        {
            bail!(
                Data,
                "{}: tensor `{stored}` has a value that is {value}; the file is damaged",
                self.path().display()
            );
        }
        Ok(())
    }

    fn count(&self, name: &str) -> Result<usize> {
        Ok(self.entry(name)?.1.iter().product())
    }

    fn entry(&self, name: &str) -> Result<&(String, Vec<usize>)> {
        let missing = || Error::Data(format!("{}: has no tensor `{name}`", self.path().display()));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The same as [`sha256`](Self::sha256), from `known` if the files are the ones that it was computed of.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn sha256_known(&self, known: &KnownHashes) -> Result<String> {
        known.get(&format!("text encoder {HASHING} {:?}", self.config), &self.file.files(), || self.sha256())
    }

    /// The SHA-256 of the config and all weights as f32. It is the same for the same encoder in any kind of file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn sha256(&self) -> Result<String> {
        let mut sum = Sha256::new();
        sum.update(format!("{:?}", self.config));
        for name in self.tensors.keys() {
            let count = self.count(name)?;
            let hash = |first: usize| {
                let mut values = vec![0.0; PIECE.min(count - first)];
                self.read_at(name, first, &mut values)?;
                Ok(Sha256::digest(bytemuck::cast_slice::<f32, u8>(&values)))
            };
            let pieces: Vec<_> = (0..count).into_par_iter().step_by(PIECE).map(hash).collect::<Result<_>>()?;
            sum.update(format!("{name} {count}"));
            pieces.iter().for_each(|piece| sum.update(piece));
        }
        Ok(to_hex(sum.finalize()))
    }
}

/// Whether no value is infinite or NaN: those have the largest exponent.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)) < f32::INFINITY.to_bits()
}

/// Hugging Face's name of the tensor that a file calls `name`.
fn canonical(name: &str, found: &BTreeMap<String, Vec<usize>>) -> String {
    if found.contains_key(names::WAN_EMBEDDING) {
        return names::from_wan(name);
    }
    if name == names::EMBEDDINGS[1] && !found.contains_key(names::EMBEDDINGS[0]) {
        return names::EMBEDDINGS[0].to_owned();
    }
    name.strip_prefix(names::BERT_PREFIX).unwrap_or(name).to_owned()
}
