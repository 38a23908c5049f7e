//! Encodes captions to embeddings, with frozen weights on the CPU: by UMT5, as Wan has it, T5, and BERT-style encoders
//! such as MiniLM.
//!
//! An encoder may be larger than memory: its embedding is read by the row, and its layers pass by half a layer at a
//! time for all captions at once, read and packed within the products themselves. So its file is read once. Up to 2048
//! tokens its weights take no memory; of more, the largest half is kept for what follows (503 MB for UMT5-XXL in f32).
//! Each caption is encoded alone and unpadded, which is what padding with a mask comes to. Sums, norms, softmax and the
//! residual are f32; operands of products may be rounded to bf16.
//!
//! [`TextEncoder`] is the whole; [`TextModel`] takes ids. Files are found by [`places`], named by [`names`], read by
//! [`weights`] and multiplied by [`matrix`]; [`t5`] and [`bert`] run [`layers`] and [`attention`] on [`texts`], which
//! [`times`] counts; [`clean`] and [`tokens`] make ids.
//!
//! ```no_run
//! use longreel::text::TextEncoder;
//!
//! let encoder = TextEncoder::open("Wan2.1-T2V-1.3B-Diffusers".as_ref())?;
//! let embeddings = encoder.encode(&["A red fox trots through fresh snow.".into()], &mut |_, _| ())?;
//! assert_eq!(embeddings[0].dims()[1], encoder.features()); // [tokens, 4096]
//! # Ok::<(), longreel::Error>(())
//! ```

mod attention;
mod bert;
mod buckets;
mod clean;
mod config;
mod layers;
mod matrix;
mod names;
mod places;
mod t5;
mod texts;
mod times;
mod tokens;
mod weights;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;

pub use buckets::bucket;
pub use clean::clean;
pub use config::{Kind, TextConfig};

use crate::files::{KnownHashes, to_hex};
use crate::simd::Isa;
use crate::{Result, bail};
use matrix::Arithmetic;
use places::Places;
use texts::Texts;
use tokens::CaptionTokenizer;
use weights::EncoderWeights;

/// Tokens of a text that is given as ids, at most: scores grow with their square.
const MOST_IDS: usize = 8192;

/// A text encoder's network, whose weights stay in their file until they are needed.
#[derive(Debug)]
pub struct TextModel {
    weights: EncoderWeights,
    arithmetic: Arithmetic,
}

impl TextModel {
    /// Opens a pipeline's folder, an encoder's, Wan's own, or a file of weights; no tokenizer is needed.
    ///
    /// # Errors
    /// There is nothing of the kind, a part is missing, the file is damaged or quantised, or the tensors do not fit the
    /// config.
    pub fn open(path: &Path) -> Result<Self> {
        Self::at(&Places::find(path)?)
    }

    fn at(places: &Places) -> Result<Self> {
        Ok(Self { weights: EncoderWeights::open(places)?, arithmetic: Arithmetic { isa: Isa::best(), bf16: false } })
    }

    /// Whether `path` is meant to be a text encoder, so that [`open`](Self::open) is to say what is wrong with it.
    pub fn is_encoder(path: &Path) -> bool {
        Places::is_encoder(path) || EncoderWeights::is_encoder(path)
    }

    /// The same network on another instruction set, for tests.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.arithmetic.isa = isa;
        self
    }

    /// The same network, its products of operands that are rounded to bf16, or not.
    #[must_use]
    pub fn with_bf16(mut self, bf16: bool) -> Self {
        self.arithmetic.bf16 = bf16;
        self
    }

    /// Seconds since the last call: reading matrices and packing them, of all threads together, and attention between
    /// its projections.
    pub fn times(&self) -> [f64; 3] {
        self.weights.times.take()
    }

    /// The network's sizes.
    pub fn config(&self) -> &TextConfig {
        &self.weights.config
    }

    /// The last hidden state of each text of ids, `[n, features]` f32 on the CPU. `progress` is told how much is done
    /// of how much.
    ///
    /// # Errors
    /// An id is beyond the vocabulary, a text is empty or too long, or the weights cannot be read.
    pub fn encode_ids(&self, texts: &[Vec<u32>], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Tensor>> {
        let config = self.config();
        let most = match config.kind {
            Kind::T5 { .. } => MOST_IDS,
            Kind::Bert { positions, .. } => positions,
        };
        for (i, ids) in texts.iter().enumerate() {
            if ids.is_empty() || ids.len() > most {
                bail!(Shape, "text {i} has {} tokens; 1 to {most} can be encoded", ids.len());
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
                bail!(Data, "text {i} has a token of id {id}; the encoder knows {}", config.vocab);
            }
        }
        let embedding = match config.kind {
            Kind::T5 { .. } => names::EMBEDDINGS[0],
            Kind::Bert { .. } => names::BERT_EMBEDDING,
        };
        let embed = |texts: &[&[u32]]| {
            let rows: Vec<usize> = texts.concat().into_iter().map(|id| id as usize).collect();
            let mut state = vec![0.0; rows.len() * config.width];
            self.weights.add_rows(embedding, &rows, &mut state)?;
            Ok(state)
        };
        let mut texts = Texts::new(texts, config.width, embed, 2 * config.layers + 1, progress)?;
        match config.kind {
            Kind::T5 { .. } => t5::run(&self.weights, self.arithmetic, &mut texts)?,
            Kind::Bert { .. } => bert::run(&self.weights, self.arithmetic, &mut texts)?,
        }
        let tensor = |state: Vec<f32>| {
            let shape = (state.len() / config.width, config.width);
            Ok(Tensor::from_vec(state, shape, &Device::Cpu)?)
        };
        texts.into_states().into_iter().map(tensor).collect()
    }
}

/// A text encoder with its tokenizer: captions in, embeddings out.
pub struct TextEncoder {
    model: TextModel,
    tokenizer: CaptionTokenizer,
}

impl TextEncoder {
    /// Opens a pipeline's folder (`text_encoder/` and `tokenizer/`), an encoder's with its tokenizer, Wan's own
    /// (`models_t5_*.pth` and `google/umt5-xxl/`), or a file of weights with a tokenizer beside it.
    ///
    /// # Errors
    /// Those of [`TextModel::open`]; the tokenizer is missing, damaged, or does not fit the encoder.
    pub fn open(path: &Path) -> Result<Self> {
        let places = Places::find(path)?;
        let model = TextModel::at(&places)?;
        let tokenizer = CaptionTokenizer::open(&places.tokenizer()?, model.config())?;
        Ok(Self { model, tokenizer })
    }

    /// The same encoder, its products of operands that are rounded to bf16, or not.
    #[must_use]
    pub fn with_bf16(self, bf16: bool) -> Self {
        Self { model: self.model.with_bf16(bf16), ..self }
    }

    /// Features of a token's embedding.
    pub fn features(&self) -> usize {
        self.model.config().width
    }

    /// Tokens of a caption that are encoded, the end token counted; what goes beyond is cut.
    pub fn max_tokens(&self) -> usize {
        self.model.config().max_tokens
    }

    /// The SHA-256 of all that embeddings depend on, the arithmetic apart: the encoder's config and weights, whatever
    /// file they are in, and the tokenizer. All weights are read.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn sha256(&self) -> Result<String> {
        Ok(self.hash_with(&self.model.weights.sha256()?))
    }

    /// The same, without reading weights whose hash is `known` of an earlier time.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn sha256_known(&self, known: &KnownHashes) -> Result<String> {
        Ok(self.hash_with(&self.model.weights.sha256_known(known)?))
    }

    /// [`sha256`](Self::sha256), of weights that have the hash `weights`.
    fn hash_with(&self, weights: &str) -> String {
        to_hex(Sha256::digest([CLEANING, weights, self.tokenizer.sha256()].join(" ")))
    }

    /// How many tokens each caption has before it is cut to [`max_tokens`](Self::max_tokens).
    ///
    /// # Errors
    /// A caption cannot be tokenized.
    pub fn token_counts(&self, captions: &[String]) -> Result<Vec<usize>> {
        captions.par_iter().map(|caption| self.tokenizer.count(caption)).collect()
    }

    /// The ids of a caption's tokens: cleaned, cut to [`max_tokens`](Self::max_tokens), ended.
    ///
    /// # Errors
    /// The caption cannot be tokenized.
    pub fn ids(&self, caption: &str) -> Result<Vec<u32>> {
        self.tokenizer.ids(caption)
    }

    /// The embeddings of each caption, `[n, features]` f32 on the CPU, of its n tokens, the end token counted. The
    /// weights are read once, whatever the number of captions. `progress` is told how much is done of how much.
    ///
    /// # Errors
    /// A caption cannot be tokenized, or the weights cannot be read.
    pub fn encode(&self, captions: &[String], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Tensor>> {
        let ids = captions.par_iter().map(|caption| self.ids(caption)).collect::<Result<Vec<_>>>()?;
        self.model.encode_ids(&ids, progress)
    }
}

/// The version of how captions are cleaned and cut.
const CLEANING: &str = "1";
