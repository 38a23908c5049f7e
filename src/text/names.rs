//! Lists the tensors of text encoders by Hugging Face's names, and translates Wan's own to them.

use super::config::{Kind, TextConfig};

/// T5's embedding, which some files have under the second name, or under both.
pub(super) const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// The same by Wan's own name, which tells its files.
pub(super) const WAN_EMBEDDING: &str = "token_embedding.weight";

/// BERT's embedding; files of a whole language model have it under a prefix.
pub(super) const BERT_EMBEDDING: &str = "embeddings.word_embeddings.weight";
pub(super) const BERT_PREFIX: &str = "bert.";

/// What files may hold beside the encoder: T5's other half, BERT's heads, a tokenizer (`spiece_model`, ComfyUI).
const BESIDE: [&str; 7] =
    ["decoder.", "lm_head.", "pooler.", "cls.", "embeddings.position_ids", "spiece_model", "encoder.embed_tokens."];

/// Whether an encoder does without the tensor of this name.
pub(super) fn is_beside(name: &str) -> bool {
    BESIDE.iter().any(|beside| name.starts_with(beside))
}

pub(super) fn t5_norm(layer: usize, half: usize) -> String {
    format!("encoder.block.{layer}.layer.{half}.layer_norm.weight")
}

pub(super) fn t5_attention(layer: usize, part: &str) -> String {
    format!("encoder.block.{layer}.layer.0.SelfAttention.{part}.weight")
}

pub(super) fn t5_query(layer: usize) -> String {
    t5_attention(layer, "q")
}

pub(super) fn t5_bias(layer: usize) -> String {
    t5_attention(layer, "relative_attention_bias")
}

pub(super) fn t5_ff(layer: usize, part: &str) -> String {
    format!("encoder.block.{layer}.layer.1.DenseReluDense.{part}.weight")
}

/// The first product of a part without a gate.
pub(super) fn t5_plain_ff(layer: usize) -> String {
    t5_ff(layer, "wi")
}

/// The product that GELU is taken of.
pub(super) fn t5_gate(layer: usize) -> String {
    t5_ff(layer, "wi_0")
}

pub(super) const T5_NORM: &str = "encoder.final_layer_norm.weight";

/// A tensor of a BERT layer.
pub(super) fn bert(layer: usize, part: &str) -> String {
    format!("encoder.layer.{layer}.{part}")
}

/// All tensors of an encoder, with their shapes.
pub(super) fn tensors(config: &TextConfig) -> Vec<(String, Vec<usize>)> {
    let TextConfig { vocab, width, layers, heads, ff, .. } = *config;
    let inner = config.inner();
    let mut all = vec![];
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    match config.kind {
        Kind::T5 { own_biases, gated, .. } => {
            add(EMBEDDINGS[0].into(), &[vocab, width]);
            for layer in 0..layers {
                add(t5_norm(layer, 0), &[width]);
                for part in ["q", "k", "v"] {
                    add(t5_attention(layer, part), &[inner, width]);
                }
                add(t5_attention(layer, "o"), &[width, inner]);
                if own_biases || layer == 0 {
                    add(t5_bias(layer), &[super::buckets::COUNT, heads]);
                }
                add(t5_norm(layer, 1), &[width]);
                let up = if gated { vec![t5_gate(layer), t5_ff(layer, "wi_1")] } else { vec![t5_plain_ff(layer)] };
                up.into_iter().for_each(|name| add(name, &[ff, width]));
                add(t5_ff(layer, "wo"), &[width, ff]);
            }
            add(T5_NORM.into(), &[width]);
        }
        Kind::Bert { positions, types } => {
            add(BERT_EMBEDDING.into(), &[vocab, width]);
            add("embeddings.position_embeddings.weight".into(), &[positions, width]);
            add("embeddings.token_type_embeddings.weight".into(), &[types, width]);
            let mut pair = |name: String, shape: &[usize]| {
                add(format!("{name}.weight"), shape);
                add(format!("{name}.bias"), &shape[..1]);
            };
            pair("embeddings.LayerNorm".into(), &[width]);
            for layer in 0..layers {
                for part in ["query", "key", "value"] {
                    pair(bert(layer, &format!("attention.self.{part}")), &[width, width]);
                }
                pair(bert(layer, "attention.output.dense"), &[width, width]);
                pair(bert(layer, "attention.output.LayerNorm"), &[width]);
                pair(bert(layer, "intermediate.dense"), &[ff, width]);
                pair(bert(layer, "output.dense"), &[width, ff]);
                pair(bert(layer, "output.LayerNorm"), &[width]);
            }
        }
    }
    all
}

/// Parts of names in a layer, by Hugging Face and by Wan.
const PARTS: [(&str, &str); 8] = [
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ("encoder.block", "blocks"),
];

/// Hugging Face's name of a tensor of Wan's UMT5.
pub(super) fn from_wan(name: &str) -> String {
    match name {
        WAN_EMBEDDING => EMBEDDINGS[0].into(),
        "norm.weight" => T5_NORM.into(),
        name => PARTS
            .iter()
            .fold(name.to_owned(), |name, (theirs, wans)| name.replace(&format!("{wans}."), &format!("{theirs}."))),
    }
}
