//! How a count of tokens or heads is split over ranks: contiguous, in order, as even as can be.

use std::ops::Range;

/// `total` things over `parts` ranks; rank r holds floor(r * total / parts) .. floor((r + 1) * total / parts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub total: usize,
    pub parts: usize,
}

impl Split {
    /// A split of `total` over `parts` ranks; `parts` is at least 1.
    pub fn new(total: usize, parts: usize) -> Self {
        Self { total, parts }
    }

    /// What rank `r` holds. May be empty when there are more ranks than things.
    pub fn range(&self, r: usize) -> Range<usize> {
        r * self.total / self.parts..(r + 1) * self.total / self.parts
    }

    /// How many rank `r` holds.
    pub fn count(&self, r: usize) -> usize {
        self.range(r).len()
    }
}
