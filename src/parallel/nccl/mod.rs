//! Runs ranks as processes with a GPU each, which torchrun or its like started, with collectives over NCCL.
//!
//! - `library`: libnccl, found when a run starts;
//! - `comm`: one communicator, its stream, and waiting for it;
//! - `memory`: tensors as NCCL sees them;
//! - `order`: which exchange comes after which;
//! - `transport`: tensors from rank to rank, over which the crate's one [`Collectives`] are.
//!
//! Processes join a [`ControlPlane`], whose links stay: by them all hear of a failed rank, which NCCL would not tell.

mod comm;
mod library;
mod memory;
mod order;
mod transport;

use candle_core::Device;
use std::sync::Arc;

use self::comm::Gpu;
use self::library::{Nccl, UniqueId};
use self::transport::ByNccl;
use super::collectives::Collectives;
use super::processes::Processes;
use super::rank_info::{self, Gpus, RankInfo};
use super::transport::Members;
use super::{Communicator, ControlPlane, Limits, TorchrunEnv};
use crate::{Error, Result, bail, cuda};

/// This process among those of its job.
pub(super) struct World {
    world: Arc<Collectives<ByNccl>>, // ends before what it needs
    gpu: Arc<Gpu>,
}

impl World {
    /// Joins the processes of the job that `env` describes, each with the GPU of its number on its machine.
    ///
    /// # Errors
    /// They do not meet; or one has no NCCL, no driver or no GPU of its own: an error of all.
    pub fn start(env: &TorchrunEnv, limits: Limits) -> Result<Self> {
        let control = ControlPlane::join(env, limits)?;
        let (nccl, device) = Self::begin(env, &control).map_err(|e| ended(&control, e))?;
        let compute = device.as_cuda_device()?.cuda_stream();
        let gpu = Arc::new(Gpu { nccl, control, device, compute, limits, order: Arc::default() });
        let world = Self::meet(&gpu).map_err(|e| ended(&gpu.control, e))?;
        let world = Arc::new(Collectives::new(world));
        Ok(Self { world, gpu })
    }

    /// What this process needs, once all have told that they have it.
    fn begin(env: &TorchrunEnv, control: &ControlPlane) -> Result<(Nccl, Device)> {
        let nccl = Nccl::load();
        let gpus = nccl
            .as_ref()
            .map_err(Error::to_string)
            .and_then(|nccl| Ok(Gpus { count: cuda::count()?, nccl: nccl.version().map_err(|e| e.to_string())? }));
        let host = control.affinities()[env.rank].host.clone();
        let own = RankInfo { host, local: env.local, gpus };
        rank_info::judge(&control.gather(&own)?)?;
        let device = cuda::open(env.local).map_err(|message| Error::Rank { rank: env.rank, message })?;
        Ok((nccl?, device))
    }

    /// The communicator of all, whose meeting place rank 0 gives.
    fn meet(gpu: &Arc<Gpu>) -> Result<ByNccl> {
        let (rank, size) = (gpu.control.rank(), gpu.control.size());
        let id = if rank == 0 { gpu.nccl.unique_id()?.0.to_vec() } else { vec![] };
        let id = gpu.control.exchange(&id)?.swap_remove(0);
        let Ok(id) = id.try_into() else {
            bail!(Environment, "rank 0 gave no meeting place for NCCL: is it of another longreel?")
        };
        ByNccl::new(gpu.clone(), UniqueId(id), Members { all: (0..size).collect(), rank })
    }
}

/// Tells the others of an error before there is any work that could fail; the error of all.
fn ended(control: &ControlPlane, e: Error) -> Error {
    let message = e.to_string();
    control.finish_together(Err(e)).err().unwrap_or(Error::Environment(message))
}

impl Processes for World {
    fn communicator(&self) -> Arc<dyn Communicator> {
        self.world.clone()
    }

    fn control(&self) -> &ControlPlane {
        &self.gpu.control
    }

    fn gpu(&self) -> Option<Device> {
        Some(self.gpu.device.clone())
    }
}
