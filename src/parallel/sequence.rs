//! Arranges the ranks that share a clip in a grid: Ulysses groups of neighbouring ranks, and rings across the groups.
//!
//! Ulysses alone would have at most as many ranks as heads; a ring has no such limit, but every rank of it meets every
//! key. Only the degrees are chosen and the communicators made here; what they exchange is `attention`'s business.

use std::sync::Arc;

use super::{Communicator, Single};
use crate::{Result, bail};

/// The communicators of a sequence, as seen by one rank.
///
/// Ulysses is the inner axis, as its ranks exchange all they have: rank r of P = u x ring is rank r % u of Ulysses
/// group r / u, and rank r / u of its ring.
#[derive(Clone)]
pub struct Sequence {
    /// All ranks of the sequence.
    pub all: Arc<dyn Communicator>,
    /// Those that exchange tokens for heads.
    pub ulysses: Arc<dyn Communicator>,
    /// Those that hold the same heads of other tokens.
    pub ring: Arc<dyn Communicator>,
}

impl Sequence {
    /// Ranks of a Ulysses group and of a ring, for `ranks` in all: see [`new`](Self::new).
    pub fn degrees(ranks: usize, heads: usize, ring: usize) -> Result<[usize; 2]> {
        let divisors = || (1..=ranks).filter(|n| ranks.is_multiple_of(*n));
        let fits = |ring: &usize| ranks / ring <= heads;
        let smallest = divisors().find(fits).unwrap_or(ranks);
        let ring = if ring == 0 { smallest } else { ring };
        if !ranks.is_multiple_of(ring) {
            let all: Vec<String> = divisors().map(|n| n.to_string()).collect();
            bail!(
                Shape,
                "{ranks} sequence-parallel ranks cannot form a ring of {ring}; set parallel.ring to a divisor of {ranks} \
                 ({}), or to 0 to choose",
                all.join(", ")
            );
        }
        let size = ranks / ring;
        if size > heads {
            bail!(
                Shape,
                "{size} sequence-parallel ranks cannot share {heads} attention heads, since each needs at least one: {ranks} \
                 ranks in a ring of {ring} leave {size} to a Ulysses group; set parallel.ring to {smallest} or more, or to 0 to \
                 choose"
            );
        }
        Ok([size, ring])
    }

    /// The grid of `all`'s ranks (P) for a network of `heads` (H): a ring of `ring` ranks, or, if that is 0, the
    /// smallest one that leaves no Ulysses group with more ranks than heads. A collective.
    ///
    /// # Errors
    /// If `ring` does not divide P, or P / ring > H.
    pub fn new(all: Arc<dyn Communicator>, heads: usize, ring: usize) -> Result<Self> {
        let ranks = all.size();
        let [size, ring] = Self::degrees(ranks, heads, ring)?;
        // An axis of all ranks or of one needs no communicator of its own.
        if ring == 1 {
            return Ok(Self { ulysses: all.clone(), ring: Arc::new(Single), all });
        }
        if size == 1 {
            return Ok(Self { ulysses: Arc::new(Single), ring: all.clone(), all });
        }
        let (group, within) = (all.rank() / size, all.rank() % size);
        let ulysses = all.split(group, within)?;
        let ring = all.split(within, group)?;
        Ok(Self { all, ulysses, ring })
    }
}
