//! What a run with text needs besides its steps: embedding its texts, and their cache.

use super::{Part, Phase, part};
use crate::config::{Compute, RunConfig};
use crate::data::Decoding;
use crate::encode::embed::AT_ONCE;
use crate::model::{ModelConfig, TEXT_LENGTH};
use crate::text::{Kind, TextConfig};

/// Tokens of a usual caption.
const USUAL: usize = 128;

/// The cache of a run's texts.
#[derive(Clone, Copy, Debug)]
pub struct TextPlan {
    /// Texts to embed, if each file has a caption of its own; none where the number of files is not known.
    pub texts: Option<u64>,
    /// Bytes of a usual one in the cache.
    pub bytes: u64,
    /// Operations to embed it.
    pub flops: f64,
}

impl TextPlan {
    pub(super) fn new(config: &RunConfig, encoder: &TextConfig, decoding: Option<&Decoding>) -> Self {
        let (tokens, element) = (USUAL.min(encoder.max_tokens), element(config));
        let others = config.sample.prompts.len() + 2; // the empty text, and what guidance leads away from
        Self {
            texts: decoding.map(|decoding| (decoding.files[1] + others) as u64),
            bytes: (tokens * encoder.width * element) as u64,
            flops: 2.0 * (tokens * encoder.layers * halves(encoder).iter().sum::<usize>()) as f64,
        }
    }

    /// Bytes of all texts in the cache.
    pub fn total(&self) -> Option<u64> {
        self.texts.map(|texts| texts * self.bytes)
    }
}

/// Bytes of an element of an embedding.
fn element(config: &RunConfig) -> usize {
    if config.text.dtype == Compute::Bf16 { 2 } else { 4 }
}

/// Weights of a layer's attention, and of its feed-forward part.
fn halves(encoder: &TextConfig) -> [usize; 2] {
    let inner = encoder.heads * encoder.head_dim;
    let products = if matches!(encoder.kind, Kind::T5 { gated: true, .. }) { 3 } else { 2 };
    [4 * encoder.width * inner, products * encoder.width * encoder.ff]
}

/// Embedding, before the first step: half a layer's weights in f32, and the texts that pass it together, of any length.
pub(super) fn phase(encoder: &TextConfig) -> Phase {
    let weights = halves(encoder).into_iter().max().unwrap_or_default();
    let (texts, longest) = (AT_ONCE * encoder.max_tokens * encoder.width, encoder.max_tokens * encoder.ff);
    Phase {
        name: "embedding texts, before the first step",
        parts: vec![
            part("half a layer of the text encoder", 4 * weights as u64),
            part("texts in it, at most", 4 * (2 * texts + 3 * longest) as u64),
        ],
    }
}

/// What a step has of its clips' texts: their tokens and pad, embedded, and a block's keys and values, with gradients.
pub(super) fn of_a_step(config: &RunConfig, model: &ModelConfig) -> Option<Part> {
    let rows = config.train.batch * TEXT_LENGTH + 1;
    let each = 4 * (model.text_dim + 6 * model.width());
    (model.text_dim > 0).then(|| part("texts, at most", (rows * each) as u64))
}
