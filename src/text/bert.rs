//! Runs BERT-style encoders on texts, half a layer at a time for all of them.
//!
//! ```text
//! x = norm(x + W attention(x) + b)
//! x = norm(x + W2 gelu(W1 x + b1) + b2)
//! ```
//!
//! after norm(token + position + type) (Devlin et al. 2019).

use super::attention::Heads;
use super::layers::{Attention, Bias, BiasGelu, BiasResidual, Residual, layer_norm};
use super::matrix::{Arithmetic, Matrix};
use super::names;
use super::texts::Texts;
use super::weights::EncoderWeights;
use crate::Result;

/// Leaves the last hidden state in `texts`, which has the token embeddings.
pub(super) fn run(weights: &EncoderWeights, arithmetic: Arithmetic, texts: &mut Texts) -> Result<()> {
    let config = &weights.config;
    let (width, eps) = (config.width, config.eps);
    let pair = |name: &str| -> Result<[Vec<f32>; 2]> {
        Ok([weights.read(&format!("{name}.weight"))?, weights.read(&format!("{name}.bias"))?])
    };
    let keep = texts.runs() > 1;
    let linear = |name: &str| -> Result<(Matrix, Vec<f32>)> {
        Ok((weights.matrix(&format!("{name}.weight"), arithmetic, keep)?, weights.read(&format!("{name}.bias"))?))
    };
    let [weight, bias] = pair("embeddings.LayerNorm")?;
    texts.each_run(|mut x, lengths| {
        let positions: Vec<usize> = lengths.iter().flat_map(|&n| 0..n).collect();
        weights.add_rows("embeddings.position_embeddings.weight", &positions, &mut x)?;
        weights.add_rows("embeddings.token_type_embeddings.weight", &vec![0; positions.len()], &mut x)?;
        layer_norm(&mut x, [&weight, &bias], eps);
        Ok(x)
    })?;
    for layer in 0..config.layers {
        let projection = |part: &str| linear(&names::bert(layer, &format!("attention.self.{part}")));
        let [(q, q_bias), (k, k_bias), (v, v_bias)] = [projection("query")?, projection("key")?, projection("value")?];
        let (output, output_bias) = linear(&names::bert(layer, "attention.output.dense"))?;
        let [weight, bias] = pair(&names::bert(layer, "attention.output.LayerNorm"))?;
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let heads = Heads { count: config.heads, dim: config.head_dim, scale, biases: None, isa: arithmetic.isa };
        let attention = Attention { projections: [q, k, v], biases: Some([q_bias, k_bias, v_bias]), output, heads };
        texts.each_run(|x, lengths| {
            let added = BiasResidual(Bias(&output_bias), Residual { rows: &x, width });
            let mut y = attention.apply(&x, lengths, &added)?;
            layer_norm(&mut y, [&weight, &bias], eps);
            Ok(y)
        })?;

        let (up, up_bias) = linear(&names::bert(layer, "intermediate.dense"))?;
        let (down, down_bias) = linear(&names::bert(layer, "output.dense"))?;
        let [weight, bias] = pair(&names::bert(layer, "output.LayerNorm"))?;
        texts.each_run(|x, _| {
            let hidden = up.apply(&up.rows(&x), &BiasGelu(&up_bias))?;
            let added = BiasResidual(Bias(&down_bias), Residual { rows: &x, width });
            let mut y = down.apply(&down.rows(&hidden), &added)?;
            layer_norm(&mut y, [&weight, &bias], eps);
            Ok(y)
        })?;
    }
    Ok(())
}
