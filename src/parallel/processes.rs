//! Defines what a backend whose ranks are processes (MPI, NCCL) offers beside the communicator.

use candle_core::Device;
use std::sync::Arc;

use super::Communicator;
use crate::Result;

/// Processes that are ranks: what a backend of them offers beside the communicator.
pub(super) trait Processes: Sync {
    /// That of all processes.
    fn communicator(&self) -> Arc<dyn Communicator>;
    /// How many threads this process's rank has.
    fn threads(&self) -> usize;
    /// The host of each rank.
    fn hosts(&self) -> Vec<&str>;
    /// Says that the calling thread is the one that the rank's work runs in.
    fn enter(&self);
    /// Tells the others how this process's work ended and waits for theirs; the outcome of all together.
    fn finish_together(&self, outcome: Result<()>) -> Result<()>;
    /// Whether this process reports to the user how the work of all ended.
    fn is_reporter(&self) -> bool;
    /// Where the communicator's tensors are, if not in memory.
    fn gpu(&self) -> Option<Device> {
        None
    }
}
