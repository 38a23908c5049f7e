//! Operations of a step, and the bytes that a rank sends in it: counted from the shapes, as src/engine/ and attention/ move them.

use super::flop;
use super::shape::Shape;
use crate::config::RunConfig;
use crate::model::ModelConfig;

/// What a step does.
#[derive(Clone, Debug)]
pub struct Work {
    /// Operations of all ranks: linear layers, attention.
    pub flop: [f64; 2],
    /// Bytes that rank 0 sends in a step, by collective.
    pub sent: Vec<(&'static str, u64)>,
}

impl Work {
    pub fn new(config: &RunConfig, model: &ModelConfig, s: &Shape, tokens: usize, parameters: usize) -> Self {
        let clips = (config.train.batch * config.train.accumulate * config.parallel.data) as f64;
        let layers = model.num_layers;
        let (attention, _) = flop::block(model, tokens);
        let passes = flop::ATTENTION_BOTH + if config.stash.keep_attention { 0.0 } else { 1.0 };
        let all = flop::step(model, tokens);
        let linear = all - layers as f64 * flop::ATTENTION_BOTH * attention;

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
            ("sums of gradients", 2 * leaves(4 * parameters as u64, s.ranks)),
        ];
        Self { flop: [clips * linear, clips * layers as f64 * passes * attention], sent }
    }
}
