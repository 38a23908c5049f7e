//! The mesh of ranks: data x sequence. Ranks of one sequence group hold parts of the same clip, and are a grid of their
//! own ([`Sequence`]); ranks of one data group hold the same part of different clips.

use std::sync::Arc;

use super::{Communicator, Sequence};
use crate::{Result, bail};

/// The communicators of a mesh's axes, as seen by one rank.
///
/// Sequence is the inner axis, since its ranks talk in every block: rank r of the world is rank r % sequence of
/// sequence group r / sequence, and rank r / sequence of its data group.
#[derive(Clone)]
pub struct Mesh {
    /// All ranks.
    pub world: Arc<dyn Communicator>,
    /// The ranks with the same part of different clips; its size is the number of clips trained on at once.
    pub data: Arc<dyn Communicator>,
    /// The ranks that share this rank's clip.
    pub sequence: Sequence,
}

impl Mesh {
    /// Splits `world` into `data` sequence groups, each a grid for `heads` attention heads with a ring of `ring` (0: as
    /// needed, see
    /// [`Sequence::new`]). A collective: all ranks of `world` call it.
    ///
    /// # Errors
    /// If `data` is 0 or does not divide the number of ranks, or no such grid can be made.
    pub fn new(world: Arc<dyn Communicator>, data: usize, heads: usize, ring: usize) -> Result<Self> {
        let ranks = world.size();
        if !ranks.is_multiple_of(data) {
            bail!(
                Shape,
                "{ranks} ranks cannot form {data} data-parallel groups of equal size; \
                 choose a number of groups that divides {ranks}"
            );
        }
        let sequence_size = ranks / data;
        let (group, within) = (world.rank() / sequence_size, world.rank() % sequence_size);
        let sequence = Sequence::new(world.split(group, within)?, heads, ring)?;
        let data = world.split(within, group)?;
        Ok(Self { world, data, sequence })
    }
}
