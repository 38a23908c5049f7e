//! Makes captions to the ids of their tokens, by a `tokenizer.json`.

use sha2::{Digest, Sha256};
use std::path::Path;
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

use super::clean::clean;
use super::config::{Kind, TextConfig};
use crate::files::{read_text, to_hex};
use crate::{Error, Result, bail};

/// Bytes that a `tokenizer.json` may have; umT5's has 17 million.
const MAX_TOKENIZER: u64 = 256 << 20;

/// A tokenizer that fits an encoder.
pub(super) struct CaptionTokenizer {
    tokenizer: Tokenizer,
    /// Ids of a caption, at most.
    max_tokens: usize,
    /// Ids that are added to each caption.
    added: usize,
    sha256: String,
    path: std::path::PathBuf,
}

impl CaptionTokenizer {
    /// Reads a `tokenizer.json` for an encoder. Its own limits and padding are not used.
    ///
    /// # Errors
    /// It is missing or damaged, or it does not fit: it has ids beyond the encoder's, or far fewer, or ends no text as
    /// T5 needs it.
    pub fn open(path: &Path, config: &TextConfig) -> Result<Self> {
        let text = read_text(path, MAX_TOKENIZER).map_err(|e| Error::io(path, e))?;
        let at = |why: &dyn std::fmt::Display| Error::Data(format!("{}: {why}", path.display()));
        let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|e| at(&format!("is no tokenizer: {e}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| at(&e))?;
        let sha256 = to_hex(Sha256::digest(&text));
        drop(text);
        let most = tokenizer.get_vocab(true).into_values().max();
        // An encoder may have some rows more than its tokenizer has tokens; T5's under UMT5's would have an eighth.
        if most.is_none_or(|id| id as usize >= config.vocab || (id as usize + 1) * 4 < config.vocab * 3) {
            let (ids, rows) = (tokenizer.get_vocab_size(true), config.vocab);
            return Err(at(&format!(
                "does not fit the text encoder: it has {ids} tokens with ids up to {}, the encoder knows {rows}; they \
                 are of different models",
                most.unwrap_or(0)
            )));
        }
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let found = Self { tokenizer, max_tokens: config.max_tokens, added, sha256, path: path.to_owned() };
        let none = found.ids("")?;
        match config.kind {
            Kind::T5 { end, .. } if none != [end] => bail!(
                Data,
                "{}: does not fit the text encoder: it makes an empty caption to {none:?}, which must be the end \
                 token, [{end}]",
                path.display()
            ),
            _ if none.is_empty() => bail!(
                Data,
                "{}: does not fit the text encoder: it adds no token to a caption, so that an empty one has none",
                path.display()
            ),
            _ => Ok(found),
        }
    }

    /// The SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// How many ids a caption has before it is cut to the limit.
    pub fn count(&self, caption: &str) -> Result<usize> {
        Ok(self.encoding(caption)?.len() + self.added)
    }

    /// The ids of a caption: cleaned, cut to the limit, with the tokens that the tokenizer adds.
    pub fn ids(&self, caption: &str) -> Result<Vec<u32>> {
        let mut encoding = self.encoding(caption)?;
        encoding.truncate(self.max_tokens.saturating_sub(self.added), 0, TruncationDirection::Right);
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(|e| self.failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The caption's own tokens.
    fn encoding(&self, caption: &str) -> Result<tokenizers::Encoding> {
        self.tokenizer.encode(clean(caption), false).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Data(format!("{}: a caption cannot be tokenized: {error}", self.path.display()))
    }
}
