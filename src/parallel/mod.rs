//! Defines ranks and how they talk: the [`Communicator`] trait, its backends, the [`Mesh`] of axes, and the split of
//! tokens and heads.
//!
//! Nothing here knows of models. Messages are Candle tensors, so that a backend may hand them over without a copy
//! (threads), as bytes (MPI) or from device to device (NCCL). Every collective is called by all ranks of a communicator
//! in the same order; a backend that can see a disagreement fails loudly on all ranks rather than hang.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use longreel::parallel::{Reduce, run_threads};
//!
//! let sums = run_threads(3, 1, |comm| {
//!     let x = Tensor::new(&[comm.rank() as f32], &Device::Cpu)?;
//!     comm.all_reduce(&x, Reduce::Sum)?;
//!     Ok(x.to_vec1::<f32>()?[0])
//! })?;
//! assert_eq!(sums, [3.0, 3.0, 3.0]); // 0 + 1 + 2, on each rank
//! # Ok::<(), longreel::Error>(())
//! ```

#![warn(missing_docs)]

mod bootstrap;
mod check;
mod collectives;
mod connection;
mod control;
mod cpu_affinity;
mod guests;
pub mod handshake;
mod launch;
mod launcher_env;
mod limits;
mod links;
mod mesh;
mod metered;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod ordered;
mod peers;
mod processes;
#[cfg(any(feature = "nccl", test))]
mod rank_info;
mod rendezvous;
mod secret;
mod sequence;
mod single;
mod spawn;
mod split;
mod sum;
mod threads;
mod torchrun_env;
mod transport;
pub mod wire;

use candle_core::{Device, Tensor};
use std::sync::Arc;

use crate::{Result, bail};
pub use control::ControlPlane;
pub use launch::{Launch, threads_per_rank};
pub use launcher_env::{LauncherEnv, is_first, is_to_tell};
pub use limits::Limits;
pub use mesh::Mesh;
pub use metered::Metered;
pub use secret::{Key, Secret};
pub use sequence::Sequence;
pub use single::Single;
pub use spawn::{start_pool, thread_refused};
pub use split::Split;
pub use threads::run as run_threads;
pub use torchrun_env::TorchrunEnv;

/// How [`Communicator::all_reduce`] combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The sum, in rank order.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// The collectives of a group of ranks.
///
/// All reductions go in rank order, so every rank holds the same bits afterwards, and every backend gives the same
/// ones. If a rank fails or leaves, the calls of all others return [`Error::Rank`](crate::Error::Rank) with that rank's
/// message.
pub trait Communicator: Send + Sync {
    /// This rank, in 0..size.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Sends `send[j]` to rank j; `result[i]` came from rank i and has `shapes[i]`. Counts may be uneven or zero. The
    /// tensors are given away: a receiver may hold the very same memory, so the sender must not write into them
    /// afterwards.
    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>>;

    /// Every rank's tensor, in rank order; rank i's has `shapes[i]`. All are this rank's own copies.
    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>>;

    /// Sums the 1-D f32 or f64 `buffer` over ranks and returns this rank's part: `counts[r]` elements for rank r, in
    /// order.
    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor>;

    /// Combines `buffer` (f32 or f64, contiguous, any shape) over ranks in place, with the same bits on every rank.
    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()>;

    /// Copies rank `root`'s `buffer` (contiguous, any dtype) into every other rank's, in place.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()>;

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// A communicator for the ranks that gave the same `color`, ordered by `key`, then by rank.
    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>>;

    /// A communicator for the same ranks, for another thread to call while this one is called too.
    fn dup(&self) -> Result<Arc<dyn Communicator>> {
        self.split(0, self.rank())
    }

    /// Says that another thread will call this communicator, once, and that among all exchanges of this process the
    /// call belongs here: where exchanges of several communicators must have one order on all ranks (NCCL's on a GPU),
    /// this is how a backend knows it.
    fn reserve(&self) {}
}

/// Fails on all ranks of `comm`, naming them, unless all gave the same `value`: for what every rank works out for
/// itself and must agree on, such as a hash of the configuration. `what` names it in the message.
///
/// # Errors
/// [`Error::Environment`](crate::Error::Environment), the same on every rank; or what the gathering itself meets with.
pub fn agree(comm: &dyn Communicator, what: &str, value: u64) -> Result<()> {
    let own = Tensor::new(&[value as i64], &Device::Cpu)?; // the same 64 bits: Candle has no u64
    let mut values = Vec::with_capacity(comm.size());
    for t in comm.all_gather(&own, &vec![vec![1]; comm.size()])? {
        values.push(t.to_vec1::<i64>()?[0] as u64);
    }
    if values.iter().all(|v| *v == values[0]) {
        return Ok(());
    }
    let sides: Vec<String> = values.iter().enumerate().map(|(rank, v)| format!("rank {rank} has {v}")).collect();
    bail!(Environment, "ranks disagree on {what}: {}; start all with the same configuration and data", sides.join(", "))
}
