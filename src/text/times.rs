//! Counts where an encoder's time goes, for `longreel bench text`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds since the last [`take`](Self::take).
#[derive(Debug, Default)]
pub(super) struct Times {
    /// Of all threads together: reading matrices from their file as f32.
    pub reading: AtomicU64,
    /// Of all threads together: packing them.
    pub packing: AtomicU64,
    /// Attention between its projections.
    pub attention: AtomicU64,
}

impl Times {
    /// Adds the time since `start` to one of the parts.
    pub fn add(part: &AtomicU64, start: Instant) {
        part.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// The seconds of each part, in the order above, from zero again.
    pub fn take(&self) -> [f64; 3] {
        [&self.reading, &self.packing, &self.attention].map(|part| part.swap(0, Ordering::Relaxed) as f64 / 1e9)
    }
}
