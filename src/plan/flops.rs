//! Counts a step's operations, and the bytes that a rank sends in it, from the shapes.
//!
//! The functions count what any implementation has to do at least: one that recomputes more does not count as faster.
//! Attention's backward has five products of the size of its forward's two; a linear layer's has two of the size of its
//! one. [`Work`] counts what src/engine/ and src/attention/ do.

use super::shape::Shape;
use super::weights::ParameterCounts;
use crate::config::RunConfig;
use crate::model::ModelConfig;

/// Forward and backward over forward, for attention and for a linear layer.
pub const ATTENTION_BOTH: f64 = 3.5;
/// The same of linear layers.
pub const LINEAR_BOTH: f64 = 3.0;
/// The same of linear layers whose weights are frozen.
pub const FROZEN_BOTH: f64 = 2.0;

/// Attention forward of one clip: two products of `heads` matrices, tokens x tokens x head_dim.
pub fn attention(tokens: usize, heads: usize, head_dim: usize) -> f64 {
    4.0 * (tokens as f64).powi(2) * (heads * head_dim) as f64
}

/// A linear layer forward.
pub fn linear(tokens: usize, inner: usize, out: usize) -> f64 {
    2.0 * tokens as f64 * inner as f64 * out as f64
}

/// One block forward: its attention, and the linear layers that see every token (not the text's keys and values).
pub fn block(config: &ModelConfig, tokens: usize) -> (f64, f64) {
    let width = config.width();
    let square = if config.text_dim == 0 { 4.0 } else { 6.0 };
    (
        attention(tokens, config.num_attention_heads, config.attention_head_dim),
        square * linear(tokens, width, width) + 2.0 * linear(tokens, width, config.ffn_dim),
    )
}

/// A forward pass of one clip: blocks, patch embedding and head.
pub fn forward(config: &ModelConfig, tokens: usize) -> f64 {
    let (attention, linears) = block(config, tokens);
    config.num_layers as f64 * (attention + linears) + ends(config, tokens)
}

/// Patch embedding and head forward.
fn ends(config: &ModelConfig, tokens: usize) -> f64 {
    let patch = config.patch_size.iter().product::<usize>();
    linear(tokens, patch * (config.in_channels + config.out_channels), config.width())
}

/// All of a training step's: blocks, patch embedding and head, forward and backward.
pub fn step(config: &ModelConfig, tokens: usize) -> f64 {
    let (attention, linears) = block(config, tokens);
    let ends = LINEAR_BOTH * ends(config, tokens);
    config.num_layers as f64 * (ATTENTION_BOTH * attention + LINEAR_BOTH * linears) + ends
}

/// What a step does.
#[derive(Clone, Debug)]
pub struct Work {
    /// Operations of all ranks: linear layers, attention.
    pub flop: [f64; 2],
    /// Bytes that rank 0 sends in a step, by collective.
    pub sent: Vec<(&'static str, u64)>,
}

impl Work {
    /// Counts them for a clip of `tokens` tokens on ranks of shape `s`.
    pub fn new(config: &RunConfig, model: &ModelConfig, s: &Shape, tokens: usize, weights: &ParameterCounts) -> Self {
        let clips = (config.train.batch * config.train.accumulate * config.parallel.data) as f64;
        let layers = model.num_layers;
        let (attention, _) = block(model, tokens);
        let passes = ATTENTION_BOTH + if config.stash.keep_attention { 0.0 } else { 1.0 };
        let total = step(model, tokens);
        let mut linear = total - layers as f64 * ATTENTION_BOTH * attention;
        if weights.lora.is_some() {
            // No product for a frozen weight's gradient; adapters have all three.
            linear = linear / LINEAR_BOTH * FROZEN_BOTH + LINEAR_BOTH * 2.0 * tokens as f64 * weights.trained as f64;
        }

        let (times, layers) = (config.train.accumulate as u64, layers as u64);
        let rows = s.attended();
        let forward = if config.stash.keep_attention { 4 } else { 8 };
        let leaves = |bytes: u64, ranks: usize| bytes / ranks as u64 * (ranks as u64 - 1);
        let (exchanged, passed) = ((forward + 7) * rows, (s.ring as u64 - 1) * rows);
        let runs = if config.stash.keep_attention { 4 } else { 6 }; // k and v: forward (twice), backward
        let gradients = 2 * s.ring as u64 * rows * (4 / s.element()); // dk and dv in f32, and home
        let ring = if s.ring > 1 { runs * passed + gradients } else { 0 };
        let sent = vec![
            ("all-to-alls between tokens and heads", times * layers * leaves(exchanged, s.ulysses)),
            ("keys, values and their gradients around the ring", times * layers * ring),
            ("sums of gradients", 2 * leaves(4 * weights.trained as u64, s.ranks)),
        ];
        Self { flop: [clips * linear, clips * layers as f64 * passes * attention], sent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_every_product_once() {
        let config = ModelConfig {
            num_attention_heads: 2,
            attention_head_dim: 8,
            text_dim: 4,
            ffn_dim: 64,
            num_layers: 3,
            ..ModelConfig::default()
        };
        let (n, d) = (10.0, 16.0);
        assert_eq!(block(&config, 10), (4.0 * n * n * d, 2.0 * n * (6.0 * d * d + 2.0 * d * 64.0)));
        let ends = 2.0 * n * (64.0 + 64.0) * d; // 16 channels of 1 x 2 x 2, in and out
        let linears = 2.0 * n * (6.0 * d * d + 2.0 * d * 64.0);
        assert_eq!(step(&config, 10), 3.0 * (14.0 * n * n * d + 3.0 * linears) + 3.0 * ends);
        assert_eq!(forward(&config, 10), 3.0 * (4.0 * n * n * d + linears) + ends);
    }
}
