//! Draws which elements of an adapter's input a training step sets to zero, by what the element is for: so a tile that
//! is computed again, and any number of ranks, draw the same.

use parking_lot::RwLock;
use rayon::prelude::*;
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

    /// `x`, rows of `width` elements, with what `layer` drops set to zero and the rest scaled up; None while nothing is
    /// dropped.
    pub(super) fn apply<T: Real>(&self, layer: u64, x: &[T], width: usize, input: Input) -> Option<Vec<T>> {
        let draws = self.draws.read().clone()?;
        let mut kept = x.to_vec();
        let scale = T::of(1.0 / (1.0 - self.rate));
        let least = (self.rate * 65536.0).round() as u32; // of a u16, below which an element is dropped
        kept.par_chunks_mut(width).enumerate().for_each_init(
            || vec![0u8; 2 * width],
            |bytes, (i, row)| {
                let row_number = input.rows.start + i;
                let (sample, token) = (row_number / input.rows.tokens, row_number % input.rows.tokens);
                let token = token + if input.sharded { draws.first_token } else { 0 };
                let sample = draws.samples.get(sample).copied().unwrap_or_default() ^ layer;
                let key = Key { seed: draws.seed, purpose: Purpose::AdapterDropout, step: draws.step, sample };
                key.stream(token as u64).fill_bytes(bytes);
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = if u32::from(u16::from_le_bytes(*bytes)) < least { T::zero() } else { *value * scale };
                }
            },
        );
        Some(kept)
    }
}
