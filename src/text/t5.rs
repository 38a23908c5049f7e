//! Runs T5's encoder and its successors' on texts, half a layer at a time for all of them.
//!
//! ```text
//! x += Wo attention(rms(x)),   scores q k + bias by distance, not scaled
//! x += Wo (gelu(W0 rms(x)) W1 rms(x)),   or Wo relu(W rms(x))
//! ```
//!
//! and a last rms (Raffel et al. 2020, Chung et al. 2023).

use super::attention::Heads;
use super::buckets::{self, Biases};
use super::config::Kind;
use super::layers::{Attention, Gated, Relu, Residual, rms_norm};
use super::matrix::Arithmetic;
use super::names;
use super::texts::Texts;
use super::weights::EncoderWeights;
use crate::Result;

/// Leaves the last hidden state in `texts`, which has the embeddings.
pub(super) fn run(weights: &EncoderWeights, arithmetic: Arithmetic, texts: &mut Texts) -> Result<()> {
    let config = &weights.config;
    let Kind::T5 { own_biases, gated, .. } = config.kind else { unreachable!("a T5") };
    let (width, eps) = (config.width, config.eps);
    let keep = texts.runs() > 1;
    let mut table = vec![];
    for layer in 0..config.layers {
        let norm = weights.read(&names::t5_norm(layer, 0))?;
        let matrix = |part: &str| weights.matrix(&names::t5_attention(layer, part), arithmetic, keep);
        if own_biases || layer == 0 {
            table = weights.read(&names::t5_bias(layer))?;
            debug_assert_eq!(table.len(), buckets::COUNT * config.heads);
        }
        let biases = Biases::new(&table, config.heads, texts.longest());
        let heads =
            Heads { count: config.heads, dim: config.head_dim, scale: 1.0, biases: Some(&biases), isa: arithmetic.isa };
        let attention = Attention {
            projections: [matrix("q")?, matrix("k")?, matrix("v")?],
            biases: None,
            output: matrix("o")?,
            heads,
        };
        texts.each_run(|x, lengths| {
            attention.apply(&rms_norm(&x, &norm, eps), lengths, &Residual { rows: &x, width })
        })?;
        drop(attention);

        let norm = weights.read(&names::t5_norm(layer, 1))?;
        let matrix = |part: &str| weights.matrix(&names::t5_ff(layer, part), arithmetic, keep);
        let (up, gate) = if gated { (matrix("wi_1")?, Some(matrix("wi_0")?)) } else { (matrix("wi")?, None) };
        let down = matrix("wo")?;
        texts.each_run(|x, _| {
            let rows = up.rows(&rms_norm(&x, &norm, eps));
            let hidden = match &gate {
                Some(gate) => up.apply_with(Some(gate), &rows, &Gated)?,
                None => up.apply(&rows, &Relu)?,
            };
            drop(rows);
            let rows = down.rows(&hidden);
            drop(hidden);
            down.apply(&rows, &Residual { rows: &x, width })
        })?;
    }
    let norm = weights.read(names::T5_NORM)?;
    texts.each_run(|x, _| Ok(rms_norm(&x, &norm, eps)))
}
