//! Defines the sizes of a text encoder, of UMT5, T5, mT5 or BERT, as `config.json` or the weights tell them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

use crate::{Error, Result};

/// Tokens of a caption that Wan's pipelines take, and most networks of text were trained on.
const MOST_TOKENS: usize = 512;

/// More than any known network has.
const MOST: usize = 1 << 24;
const MOST_LAYERS: usize = 1 << 10;

/// An encoder's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    pub kind: Kind,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Features of a token.
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Features between the two products of a feed-forward part.
    pub ff: usize,
    /// Added to the variance in norms.
    pub eps: f64,
    /// Tokens of a caption that are taken, the end token counted.
    pub max_tokens: usize,
}

/// The family that an encoder is of.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// T5 and its successors: biases by distance, norms before each part, no positions.
    T5 {
        /// Each layer has biases of its own (UMT5); otherwise all use those of the first.
        own_biases: bool,
        /// The feed-forward part is gated, with GELU in tanh form; otherwise it has ReLU.
        gated: bool,
        /// The token that ends a text.
        end: u32,
    },
    /// BERT: learned positions, norms after each part, biases of linear layers.
    Bert {
        /// Rows of the position embedding.
        positions: usize,
        /// Rows of the token-type embedding, of which the first is used.
        types: usize,
    },
}

/// Of T5's `config.json`; what is not there has the default of transformers.
#[derive(Deserialize)]
struct T5Json {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "t5_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    #[serde(default = "end")]
    eos_token_id: u32,
}

/// Of BERT's `config.json`.
#[derive(Deserialize)]
struct BertJson {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "types")]
    type_vocab_size: usize,
    #[serde(default = "bert_eps")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default)]
    is_decoder: bool,
}

const fn buckets() -> usize {
    32
}
const fn distance() -> usize {
    128
}
const fn t5_eps() -> f64 {
    1e-6
}
const fn bert_eps() -> f64 {
    1e-12
}
const fn end() -> u32 {
    1
}
const fn types() -> usize {
    2
}
fn relu() -> String {
    "relu".into()
}
fn gelu() -> String {
    "gelu".into()
}
fn absolute() -> String {
    "absolute".into()
}

impl TextConfig {
    /// What the `config.json` at `path` says.
    ///
    /// # Errors
    /// It is of a network that is not built here, lacks a key, or has a value that no such network can have.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self> {
        let at = |why: String| Error::Data(format!("{}: {why}", path.display()));
        let config = match json.get("model_type").and_then(Value::as_str) {
            Some(kind @ ("umt5" | "t5" | "mt5")) => t5(parsed(json).map_err(at)?, kind == "umt5"),
            Some("bert") => bert(parsed(json).map_err(at)?),
            other => {
                let other = other.map_or_else(|| "not said".to_owned(), |kind| format!("`{kind}`"));
                Err(format!("model_type is {other}; text encoders are of umt5, t5, mt5 or bert"))
            }
        };
        config.and_then(Self::checked).map_err(at)
    }

    /// Whether a `config.json` is of an encoder that [`from_json`](Self::from_json) knows.
    pub(super) fn is_known(json: &Value) -> bool {
        json.get("model_type").and_then(Value::as_str).is_some_and(|kind| ["umt5", "t5", "mt5", "bert"].contains(&kind))
    }

    /// The sizes of T5's weights that no config comes with, by Hugging Face's names; what shapes do not tell is as in
    /// the published ones.
    ///
    /// # Errors
    /// The reason why they are no T5's.
    pub(super) fn of_shapes(shapes: &BTreeMap<String, Vec<usize>>) -> std::result::Result<Self, String> {
        let size = |name: &str, dim: usize| -> std::result::Result<usize, String> {
            let shape = shapes.get(name).filter(|shape| shape.len() == 2);
            shape.map(|shape| shape[dim]).ok_or_else(|| format!("is no text encoder of T5's kind: it has no `{name}`"))
        };
        let bias = |layer: usize| super::names::t5_bias(layer);
        let heads = size(&bias(0), 1)?;
        let layers = (0..MOST_LAYERS).take_while(|&layer| shapes.contains_key(&super::names::t5_query(layer))).count();
        let gated = !shapes.contains_key(&super::names::t5_plain_ff(0));
        let up = if gated { super::names::t5_gate(0) } else { super::names::t5_plain_ff(0) };
        let config = Self {
            kind: Kind::T5 { own_biases: layers > 1 && shapes.contains_key(&bias(1)), gated, end: end() },
            vocab: size("shared.weight", 0)?,
            width: size("shared.weight", 1)?,
            layers,
            heads,
            head_dim: size(&super::names::t5_query(0), 0)? / heads.max(1),
            ff: size(&up, 0)?,
            eps: t5_eps(),
            max_tokens: MOST_TOKENS,
        };
        Self::checked(config)
    }

    fn checked(self) -> std::result::Result<Self, String> {
        let sizes = [self.vocab, self.width, self.layers, self.heads, self.head_dim, self.ff, self.max_tokens];
        if sizes.iter().any(|size| !(1..=MOST).contains(size)) || self.layers > MOST_LAYERS {
            return Err(format!("has sizes that no text encoder has: {self:?}"));
        }
        if !(self.eps > 0.0 && self.eps < 1.0) {
            return Err(format!("a norm's epsilon is {}", self.eps));
        }
        Ok(self)
    }

    /// How many parameters the encoder has.
    pub fn parameters(&self) -> usize {
        super::names::tensors(self).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Features of all heads.
    pub(super) fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

fn parsed<T: DeserializeOwned>(json: &Value) -> std::result::Result<T, String> {
    serde_json::from_value(json.clone()).map_err(|e| format!("not a text encoder's config: {e}"))
}

fn t5(json: T5Json, own_biases: bool) -> std::result::Result<TextConfig, String> {
    let buckets = (json.relative_attention_num_buckets, json.relative_attention_max_distance);
    if buckets != (self::buckets(), distance()) {
        return Err(format!("{} buckets over {} positions; 32 over 128 are known", buckets.0, buckets.1));
    }
    let gated = match json.feed_forward_proj.as_str() {
        "gated-gelu" => true,
        "relu" => false,
        other => return Err(format!("feed_forward_proj is `{other}`; gated-gelu and relu are known")),
    };
    Ok(TextConfig {
        kind: Kind::T5 { own_biases, gated, end: json.eos_token_id },
        vocab: json.vocab_size,
        width: json.d_model,
        layers: json.num_layers,
        heads: json.num_heads,
        head_dim: json.d_kv,
        ff: json.d_ff,
        eps: json.layer_norm_epsilon,
        max_tokens: MOST_TOKENS,
    })
}

fn bert(json: BertJson) -> std::result::Result<TextConfig, String> {
    if json.hidden_act != "gelu" {
        return Err(format!("hidden_act is `{}`; gelu is known", json.hidden_act));
    }
    if json.position_embedding_type != "absolute" || json.is_decoder {
        return Err("is a BERT of another kind: position_embedding_type must be absolute, is_decoder false".into());
    }
    let (width, heads) = (json.hidden_size, json.num_attention_heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("hidden_size {width} does not divide into {heads} heads"));
    }
    Ok(TextConfig {
        kind: Kind::Bert { positions: json.max_position_embeddings, types: json.type_vocab_size },
        vocab: json.vocab_size,
        width,
        layers: json.num_hidden_layers,
        heads,
        head_dim: width / heads,
        ff: json.intermediate_size,
        eps: json.layer_norm_eps,
        max_tokens: MOST_TOKENS.min(json.max_position_embeddings),
    })
}
