//! Ranks as processes with a GPU each, which torchrun or its like started, and their collectives over NCCL.
//!
//! - `library`: libnccl, found when a run starts;
//! - `comm`: one communicator, its stream, and waiting for it;
//! - `memory`: tensors as NCCL sees them;
//! - `order`: which exchange comes after which;
//! - `collectives`: the [`Communicator`].
//!
//! Processes meet in a [`Party`], whose lines stay: by them all hear what became of a rank, which NCCL would not tell.

mod collectives;
mod comm;
mod library;
mod memory;
mod order;

use candle_core::Device;
use std::sync::Arc;

use self::collectives::Group;
use self::comm::Gpu;
use self::library::{Nccl, UniqueId};
use super::launch::Processes;
use super::places::{self, Gpus, Place};
use super::processors::Processors;
use super::{Communicator, Job, Limits, Party};
use crate::{Error, Result, bail, gpu};

/// This process among those of its job.
pub(super) struct World {
    group: Arc<Group>, // ends before what it needs
    gpu: Arc<Gpu>,
    places: Vec<Place>,
}

impl World {
    /// Joins the processes of `job`, each with the GPU of its number on its machine.
    ///
    /// # Errors
    /// They do not meet; or one has no NCCL, no driver or no GPU of its own: an error of all.
    pub fn start(job: &Job, limits: Limits) -> Result<Self> {
        let party = Party::join(job, limits)?;
        let (nccl, device, places) = Self::begin(job, &party).map_err(|e| ended(&party, e))?;
        let compute = device.as_cuda_device()?.cuda_stream();
        let gpu = Arc::new(Gpu { nccl, party, device, compute, limits, order: Arc::default() });
        let group = Arc::new(Self::meet(&gpu).map_err(|e| ended(&gpu.party, e))?);
        Ok(Self { group, gpu, places })
    }

    /// What this process needs, once all have told that they have it.
    fn begin(job: &Job, party: &Party) -> Result<(Nccl, Device, Vec<Place>)> {
        let nccl = Nccl::load();
        let gpus = nccl
            .as_ref()
            .map_err(Error::to_string)
            .and_then(|nccl| Ok(Gpus { count: gpu::count()?, nccl: nccl.version().map_err(|e| e.to_string())? }));
        let mine = Place { processors: Processors::here(), local: job.local, gpus };
        let mine = serde_json::to_vec(&mine).map_err(|e| Error::Invalid(e.to_string()))?;
        let mut all = vec![];
        for (rank, text) in party.exchange(&mine)?.into_iter().enumerate() {
            let place = serde_json::from_slice::<Place>(&text);
            all.push(place.map_err(|e| Error::Rank { rank, message: format!("is it of another longreel? {e}") })?);
        }
        places::judge(&all)?;
        let device = gpu::open(job.local).map_err(|message| Error::Rank { rank: job.rank, message })?;
        Ok((nccl?, device, all))
    }

    /// The communicator of all, whose meeting place rank 0 gives.
    fn meet(gpu: &Arc<Gpu>) -> Result<Group> {
        let (rank, size) = (gpu.party.rank(), gpu.party.size());
        let id = if rank == 0 { gpu.nccl.unique_id()?.0.to_vec() } else { vec![] };
        let id = gpu.party.exchange(&id)?.swap_remove(0);
        let Ok(id) = id.try_into() else { bail!("rank 0 gave no meeting place for NCCL: is it of another longreel?") };
        Group::new(gpu.clone(), UniqueId(id), (0..size).collect(), rank)
    }
}

/// Tells the others of an error before there is any work that could fail; the error of all.
fn ended(party: &Party, e: Error) -> Error {
    let message = e.to_string();
    party.settle(Err(e)).err().unwrap_or(Error::Invalid(message))
}

impl Processes for World {
    fn communicator(&self) -> Arc<dyn Communicator> {
        self.group.clone()
    }

    fn threads(&self) -> usize {
        let all: Vec<Processors> = self.places.iter().map(|place| place.processors.clone()).collect();
        all[self.gpu.party.rank()].share(&all)
    }

    fn hosts(&self) -> Vec<&str> {
        self.places.iter().map(|place| place.processors.host.as_str()).collect()
    }

    fn enter(&self) {}

    fn settle(&self, outcome: Result<()>) -> Result<()> {
        self.gpu.party.settle(outcome)
    }

    fn speaks(&self) -> bool {
        self.gpu.party.speaks()
    }

    fn gpu(&self) -> Option<Device> {
        Some(self.gpu.device.clone())
    }
}
