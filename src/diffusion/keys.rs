//! The keys of noise that no training step takes: of held-out losses and samples.

use crate::rng::{Key, Purpose};

/// The key of the held-out loss's noise: the same at every step of the run, different for every clip and quantile.
pub fn heldout_key(seed: u64, quantile: u64, clip: u64) -> Key {
    Key { seed, purpose: Purpose::HeldoutNoise, step: quantile, sample: clip }
}

/// The key of the state that sampling clip `index` starts from.
pub fn sample_key(seed: u64, index: u64) -> Key {
    Key { seed, purpose: Purpose::Sample, step: 0, sample: index }
}
