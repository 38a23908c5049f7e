//! Draws which elements of an adapter's input a training step sets to zero, by what the element is for: so a tile that
//! is computed again, and any number of ranks, draw the same.

use parking_lot::RwLock;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::{Real, Rows};
use crate::rng::{Key, Purpose};

/// Dropout of the inputs of all adapters of a network (Srivastava et al. 2014), inactive until it is told what to draw
/// by.
#[derive(Debug)]
pub struct Dropout {
    /// The share of elements that become zero, below 1.
    rate: f64,
    draws: RwLock<Option<Arc<Draws>>>,
}

/// What a micro-batch's elements are drawn by.
#[derive(Clone, Debug)]
pub struct Draws {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// The number in the global batch of each sample.
    pub samples: Vec<u64>,
    /// The clip's token that is the first of this rank's rows.
    pub first_token: usize,
}

/// Whose rows a layer's input has.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Their samples.
    pub rows: Rows,
    /// Whether they are this rank's tokens of clips, and not what all ranks have.
    pub sharded: bool,
}

impl Dropout {
    /// Of this share of elements.
    pub fn new(rate: f64) -> Self {
        Self { rate, draws: RwLock::default() }
    }

    /// From now on draws are by `draws`; without, nothing is dropped.
    pub fn draw_by(&self, draws: Option<Draws>) {
        *self.draws.write() = draws.map(Arc::new);
    }

    /// What `layer` draws for `n` rows of its input by; None while nothing is dropped.
    pub(super) fn drawn(&self, layer: u64, n: usize, input: Input) -> Option<Drawn> {
        let draws = self.draws.read().clone()?;
        let Rows { start, tokens } = input.rows;
        let first_token = if input.sharded { draws.first_token } else { 0 };
        let run = |sample: usize| {
            let rows = (sample * tokens).max(start)..((sample + 1) * tokens).min(start + n);
            let token = (first_token + rows.start - sample * tokens) as u64;
            let sample = draws.samples.get(sample).copied().unwrap_or_default() ^ layer;
            let key = Key { seed: draws.seed, purpose: Purpose::AdapterDropout, step: draws.step, sample };
            Run { rows: rows.start - start..rows.end - start, key, token }
        };
        let runs = (start / tokens..(start + n).div_ceil(tokens)).map(run).collect();
        Some(Drawn { runs, least: (self.rate * 65536.0).round() as u32, scale: 1.0 / (1.0 - self.rate) })
    }
}

/// What some rows' elements are drawn by.
pub(super) struct Drawn {
    /// In the order of the rows.
    pub runs: Vec<Run>,
    /// Of a number of 16 bits, below which an element is dropped.
    pub least: u32,
    /// Of the elements that are left.
    pub scale: f64,
}

/// Rows of one sample.
pub(super) struct Run {
    pub rows: Range<usize>,
    pub key: Key,
    /// The first row's.
    pub token: u64,
}

impl Drawn {
    /// `x`, rows of `width` elements, with some set to zero and the rest scaled up.
    pub fn apply<T: Real>(&self, x: &[T], width: usize) -> Vec<T> {
        let (mut kept, scale) = (x.to_vec(), T::of(self.scale));
        for run in &self.runs {
            kept[run.rows.start * width..run.rows.end * width].par_chunks_mut(width).enumerate().for_each_init(
                || vec![0u8; 2 * width],
                |bytes, (i, row)| {
                    run.key.stream(run.token + i as u64).fill_bytes(bytes);
                    for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        let drawn = u32::from(u16::from_le_bytes(*bytes));
                        *value = if drawn < self.least { T::zero() } else { *value * scale };
                    }
                },
            );
        }
        kept
    }
}
