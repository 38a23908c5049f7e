//! Keeps the embeddings of texts in a folder, each under a name that is the hash of all that it depends on: the text,
//! the encoder with its tokenizer, and the precision in which it is kept. Runs may share a folder.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use safetensors::Dtype;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::entry::{self, Contents, EntryTensor, Wanted};
use crate::{Result, bail};

/// The version of this file's rules: what an entry holds, and what its key is made of.
const RULE: u32 = 1;

/// The name of an entry's tensor.
const EMBEDS: &str = "embeds";

/// The encoder that makes embeddings, as far as they depend on it, and how they are kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderKey {
    /// The SHA-256 of all that embeddings depend on: encoder and tokenizer.
    pub sha256: String,
    /// Whether they are kept in f32, or in bf16.
    pub f32: bool,
    /// Elements of a token.
    pub features: usize,
}

/// All that an entry depends on.
#[derive(Serialize)]
struct Parts<'a> {
    rule: u32,
    text: &'a str,
    encoder: &'a EncoderKey,
}

/// A text whose embedding a run wants.
#[derive(Clone, Debug)]
struct Entry {
    text: Arc<str>,
    /// The hash of all that it depends on: its name.
    key: String,
}

/// The embeddings of a run's texts: which there must be, and where.
#[derive(Debug)]
pub struct EmbeddingCache {
    dir: PathBuf,
    encoder: EncoderKey,
    entries: Vec<Entry>,
    numbers: HashMap<Arc<str>, usize>,
}

impl EmbeddingCache {
    /// The embeddings of `texts`, each once, in the folder `dir`. Nothing is read or written.
    pub fn new<'a>(dir: &Path, encoder: EncoderKey, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let texts: BTreeSet<&str> = texts.into_iter().collect();
        let entry = |text: &str| {
            let key = entry::key_of(&Parts { rule: RULE, text, encoder: &encoder });
            Entry { text: text.into(), key }
        };
        let entries: Vec<Entry> = texts.into_iter().map(entry).collect();
        let numbers = entries.iter().enumerate().map(|(i, entry)| (entry.text.clone(), i)).collect();
        Self { dir: dir.to_owned(), encoder, entries, numbers }
    }

    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// It cannot be made or written to, or is no folder.
    pub fn prepare(&self) -> Result<()> {
        entry::prepare(&self.dir, "text.cache")
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Text number `i`.
    pub fn text(&self, i: usize) -> &str {
        &self.entries[i].text
    }

    /// A number that is the same for the same texts and the same encoder.
    pub fn fingerprint(&self) -> u64 {
        let sum = self.entries.iter().fold(0, |sum, entry| crc32c::crc32c_append(sum, entry.key.as_bytes()));
        u64::from(sum)
    }

    /// Numbers of the texts whose entries are not there, or not whole.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.entries.len()).filter(|&i| self.entry(i).is_err()).collect()
    }

    /// The embedding `[n, features]` of `text`, as it is kept: in bf16 or f32.
    ///
    /// # Errors
    /// It is not among the texts that are wanted; the entry is not there, damaged, or of another key than its name
    /// says.
    pub fn read(&self, text: &str) -> Result<Tensor> {
        match self.numbers.get(text) {
            Some(&i) => self.entry(i).map_err(|e| e.at(shortened(text))),
            None => bail!(Data, "{}: no embedding of it was asked for", shortened(text)),
        }
    }

    fn entry(&self, i: usize) -> Result<Tensor> {
        let (tensors, record) = entry::open(&self.dir, &self.entries[i].key)?;
        let (dtype, kept) = self.dtypes();
        let shape = tensors.shape(EMBEDS)?.to_vec();
        let fits = matches!(shape[..], [tokens, features] if tokens > 0 && features == self.encoder.features);
        if !fits || tensors.dtype(EMBEDS)? != kept {
            let (path, wanted) = (tensors.path().display(), self.encoder.features);
            bail!(Data, "{path}: is of {shape:?}, not [tokens, {wanted}]; delete it, and it is encoded again");
        }
        let bytes = entry::checked_bytes(&tensors, &record, EMBEDS)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu)?)
    }

    fn dtypes(&self) -> (DType, Dtype) {
        if self.encoder.f32 { (DType::F32, Dtype::F32) } else { (DType::BF16, Dtype::BF16) }
    }

    /// Writes the embedding of text number `i`, `[n, features]` in f32.
    ///
    /// # Errors
    /// A value is not finite, or the shape is another; the folder cannot be written to, or the disk is full: no part of
    /// the entry is left then.
    pub fn write(&self, i: usize, embedding: &Tensor) -> Result<()> {
        let Entry { text, key } = &self.entries[i];
        let shape = embedding.dims().to_vec();
        if !matches!(shape[..], [tokens, features] if tokens > 0 && features == self.encoder.features) {
            bail!(Shape, "{}: its embedding is {shape:?}", shortened(text));
        }
        let values = embedding.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if !values.iter().all(|x| x.is_finite()) {
            bail!(Data, "{}: its embedding has values that are not finite", shortened(text));
        }
        let bytes: Vec<u8> = match self.encoder.f32 {
            true => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            false => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        let tensor = EntryTensor { name: EMBEDS, dtype: self.dtypes().1, shape, bytes: &bytes };
        entry::write(&self.dir, key, text, tensor)
    }

    /// Compares what is wanted with what is there.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn contents(&self) -> Result<Contents> {
        let wanted = (0..self.entries.len()).map(|i| {
            let Entry { text, key } = &self.entries[i];
            Wanted { key, clip: text, there: self.entry(i).is_ok() }
        });
        let mut contents = Contents::of(&self.dir, EMBEDS, &wanted.collect::<Vec<_>>())?;
        contents.missing.iter_mut().for_each(|text| *text = shortened(text));
        Ok(contents)
    }
}

/// A text in an error or a list: its beginning, in quotes.
fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("caption {:?}...", &text[..end]),
        None => format!("caption {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of what a key is made of, the version of the rules among them, which no setting changes.
    #[test]
    fn each_part_of_a_key_changes_it() {
        let encoder = EncoderKey { sha256: "1".into(), f32: false, features: 32 };
        let key = |rule: u32, text: &str, encoder: &EncoderKey| entry::key_of(&Parts { rule, text, encoder });
        let EncoderKey { sha256: _, f32: _, features: _ } = &encoder; // a field that is added must be added here
        let keys = [
            key(RULE, "a wave", &encoder),
            key(RULE + 1, "a wave", &encoder),
            key(RULE, "a wave ", &encoder),
            key(RULE, "a wave", &EncoderKey { sha256: "2".into(), ..encoder.clone() }),
            key(RULE, "a wave", &EncoderKey { f32: true, ..encoder.clone() }),
            key(RULE, "a wave", &EncoderKey { features: 64, ..encoder.clone() }),
        ];
        let different: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
        assert_eq!(keys[0], key(RULE, "a wave", &encoder));
    }
}
