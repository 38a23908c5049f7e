//! Ranks and how they talk: the [`Communicator`] trait, its backends, the [`Mesh`] of axes and the split of tokens and heads.
//!
//! Nothing here knows of models. Messages are Candle tensors, so that a backend may hand them over without a copy (threads),
//! as bytes (MPI) or from device to device (NCCL). Every collective is called by all ranks of a communicator in the same
//! order; a backend that can see a disagreement fails loudly on all ranks rather than hang.

mod mesh;
mod single;
mod split;
mod threads;

use candle_core::Tensor;
use std::sync::Arc;

use crate::Result;
pub use mesh::Mesh;
pub use single::Single;
pub use split::Split;
pub use threads::run as run_threads;

/// How [`Communicator::all_reduce`] combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Max,
    Min,
}

/// The collectives of a group of ranks.
///
/// All reductions go in rank order, so every rank holds the same bits afterwards, and every backend gives the same ones.
/// If a rank fails or leaves, the calls of all others return [`Error::Rank`](crate::Error::Rank) with that rank's message.
pub trait Communicator: Send + Sync {
    /// This rank, in 0..size.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Sends `send[j]` to rank j; `result[i]` came from rank i and has `shapes[i]`. Counts may be uneven or zero.
    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>>;

    /// Every rank's tensor, in rank order; rank i's has `shapes[i]`.
    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>>;

    /// Sums the 1-D f32 or f64 `buffer` over ranks and returns this rank's part: `counts[r]` elements for rank r, in order.
    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor>;

    /// Combines `buffer` (f32 or f64, contiguous, any shape) over ranks in place, with the same bits on every rank.
    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()>;

    /// Copies rank `root`'s `buffer` (contiguous, any dtype) into every other rank's, in place.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()>;

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// A communicator for the ranks that gave the same `color`, ordered by `key`, then by rank.
    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>>;
}
