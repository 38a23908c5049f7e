//! Defines what a backend whose ranks are processes (MPI, NCCL) offers beside the communicator.

use candle_core::Device;
use std::sync::Arc;

use super::{Communicator, ControlPlane};

/// Processes that are ranks.
pub(super) trait Processes: Sync {
    /// That of all processes.
    fn communicator(&self) -> Arc<dyn Communicator>;

    /// By which they hear of each other.
    fn control(&self) -> &ControlPlane;

    /// Where the communicator's tensors are, if not in memory.
    fn gpu(&self) -> Option<Device> {
        None
    }

    /// How many threads this process's rank has.
    fn threads(&self) -> usize {
        let affinities = self.control().affinities();
        affinities[self.control().rank()].share(affinities)
    }

    /// The host of each rank.
    fn hosts(&self) -> Vec<&str> {
        self.control().affinities().iter().map(|affinity| affinity.host.as_str()).collect()
    }
}
