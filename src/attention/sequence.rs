//! Puts Ulysses and the ring together to attention over the ranks of a sequence: Ulysses within groups of neighbouring
//! ranks, a ring across the groups.
//!
//! Within a group all-to-alls exchange tokens for heads, so that a rank holds its heads of the group's tokens, which
//! are one run of the clip. Groups split their heads alike, and the ranks that hold the same heads of different runs
//! are the ring. This only puts [`Ulysses`] and [`Ring`] together; with one group it is Ulysses alone.

use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

use super::operands::{Qkv, SavedRows};
use super::ring::Ring;
use super::ulysses::Ulysses;
use crate::observe::meter::StepMeter;
use crate::parallel::{Communicator, Sequence, Split};
use crate::{Result, bail};

/// Attention for clips of S tokens and networks of H heads on one rank of a sequence.
#[derive(Clone)]
pub struct SequenceAttention {
    tokens: Range<usize>,
    ulysses: Ulysses,
    ring: Ring,
    all: Arc<dyn Communicator>,
}

impl SequenceAttention {
    /// For `tokens` (S) and `heads` (H) over the ranks (P) of `sequence`. Not a collective.
    ///
    /// # Errors
    /// If there are more ranks than tokens, or more in a Ulysses group than heads.
    pub fn new(sequence: &Sequence, tokens: usize, heads: usize) -> Result<Self> {
        let ranks = sequence.all.size();
        if ranks > tokens {
            bail!(
                Shape,
                "{ranks} sequence-parallel ranks cannot share a clip of {tokens} tokens, since each needs at least one; \
                 use at most {tokens} sequence ranks, longer or larger clips, or smaller patches"
            );
        }
        let split = Split::new(tokens, ranks);
        let (group, size) = (sequence.ring.rank(), sequence.ulysses.size());
        let ulysses = Ulysses::of_a_run(sequence.ulysses.clone(), split, group * size, heads)?;
        // floor(g S / r) is floor(g u S / P): the ring's split of S is that of the groups.
        let ring = Ring::new(sequence.ring.clone(), tokens)?;
        Ok(Self { tokens: split.range(sequence.all.rank()), ulysses, ring, all: sequence.all.clone() })
    }

    /// The same without attention's arithmetic, see [`Ring::rehearsing`].
    pub fn rehearsing(self) -> Self {
        Self { ring: self.ring.rehearsing(self.all.clone()), ..self }
    }

    /// The same, metered: see [`Ring::metered`].
    pub fn metered(self, meter: Arc<StepMeter>) -> Self {
        Self { ring: self.ring.metered(meter), ..self }
    }

    /// The tokens that this rank holds outside attention.
    pub fn local_tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// How many heads this rank holds inside attention.
    pub fn local_heads(&self) -> usize {
        self.ulysses.local_heads().len()
    }

    /// How many tokens this rank's Ulysses group holds: the rows of its heads inside attention.
    pub fn group_tokens(&self) -> usize {
        self.ring.local_rows().len()
    }

    /// My tokens of all heads, `[B, S_local, H, d]` or `[B, S_local, H]`, to my heads of my group's tokens, `[B,
    /// H_local, S_group, d]` or `[B, H_local, S_group]`. Collective.
    pub fn to_heads(&self, x: &Tensor) -> Result<Tensor> {
        self.ulysses.seq_to_heads(x)
    }

    /// The inverse of [`to_heads`](Self::to_heads).
    pub fn to_tokens(&self, x: &Tensor) -> Result<Tensor> {
        self.ulysses.heads_to_seq(x)
    }

    /// As [`flash`](super::flash) over all tokens of the clip; the arguments are what [`to_heads`](Self::to_heads)
    /// gave. Collective.
    pub fn attend(&self, qkv: Qkv, scale: f64) -> Result<(Tensor, Tensor)> {
        self.ring.forward(qkv, scale)
    }

    /// As [`flash_backward`](super::flash_backward) over all tokens of the clip. Collective.
    pub fn attend_backward(&self, qkv: Qkv, saved: SavedRows, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
        self.ring.backward(qkv, saved, scale)
    }
}
