//! How a count of tokens or heads is split over ranks: contiguous, in order, as even as can be; and ranks into groups.

use std::ops::Range;

/// `total` things over `parts` ranks; rank r holds floor(r * total / parts) .. floor((r + 1) * total / parts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Elements that are split.
    pub total: usize,
    /// Parts that they are split into.
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

/// What rank `r` holds of a run of things that are shared out by `counts`, in order.
pub(super) fn range_of(counts: &[usize], r: usize) -> Range<usize> {
    let start = counts[..r].iter().sum();
    start..start + counts[r]
}

/// The group of rank `own` where `sides[r]` begins with the color and key of rank r: the ranks of its color by key,
/// then by rank, and its place among them.
pub(super) fn group_of(sides: &[[u64; 3]], own: usize) -> (Vec<usize>, usize) {
    let mut ranks: Vec<usize> = (0..sides.len()).filter(|&r| sides[r][0] == sides[own][0]).collect();
    ranks.sort_by_key(|&r| (sides[r][1], r));
    let place = ranks.iter().position(|&r| r == own).expect("a rank is in its own group");
    (ranks, place)
}
