//! Decides whether ranks are threads of this process or the processes that a launcher (mpirun, srun, torchrun) started,
//! and runs them. What a rank then does is the same.

use candle_core::{Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tracing::Span;

use super::launcher_env::TORCHRUN;
use super::processes::Processes;
use super::threads::{in_pool, panicked};
use super::{Communicator, LauncherEnv, Limits, TorchrunEnv, run_threads};
use crate::{Result, bail};

/// The machine's processors (those this process is bound to, or fewer where a container's quota says so), shared out to
/// `ranks` ranks of this process: at least one thread each.
pub fn threads_per_rank(ranks: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    (processors / ranks).max(1)
}

/// How ranks are run. See [the module](self).
pub struct Launch(Option<Box<dyn Processes>>);

impl Launch {
    /// Ranks are threads of this process.
    pub fn threads() -> Self {
        Self(None)
    }

    /// As the environment says: ranks are the processes that a launcher started, if it started several, and else
    /// threads.
    ///
    /// # Errors
    /// There are several, but longreel was built without the feature `mpi` (`nccl` for torchrun), or they cannot join
    /// each other.
    pub fn from_environment(limits: Limits) -> Result<Self> {
        let join = |env: LauncherEnv| match env.launcher {
            TORCHRUN => join_on_gpus(&TorchrunEnv::from(|name| std::env::var(name).ok())?, limits),
            _ => join(&env, limits),
        };
        Ok(Self(LauncherEnv::here().map(join).transpose()?))
    }

    /// Where ranks' tensors are to be, if that is a GPU, with a communicator that moves them between GPUs.
    pub fn gpu(&self) -> Option<Device> {
        self.0.as_ref().and_then(|processes| processes.gpu())
    }

    /// How many ranks there are, if they are processes; threads there are as many as one likes.
    pub fn processes(&self) -> Option<usize> {
        self.0.as_ref().map(|processes| processes.hosts().len())
    }

    /// How many ranks a run has that was asked for `asked`, which the user calls `name`: by default the launcher's, or
    /// one.
    ///
    /// # Errors
    /// There are processes, but not as many.
    pub fn ranks(&self, asked: Option<usize>, name: &str) -> Result<usize> {
        match (self.processes(), asked) {
            (Some(started), Some(asked)) if started != asked => bail!(
                Config,
                "{name} is {asked}, but {started} processes were started, and each is a rank: start {asked}, or leave {name} out"
            ),
            (Some(started), _) => Ok(started),
            (None, asked) => Ok(asked.unwrap_or(1)),
        }
    }

    /// Of `ranks` ranks, how many are on this machine.
    pub fn ranks_here(&self, ranks: usize) -> usize {
        let Some(processes) = &self.0 else { return ranks };
        let (hosts, rank) = (processes.hosts(), processes.communicator().rank());
        hosts.iter().filter(|host| **host == hosts[rank]).count()
    }

    /// Runs `f` on `ranks` ranks and returns what those of this process returned: all, in rank order, or this process's
    /// own.
    ///
    /// A rank has a rayon pool of its own, with its share of the machine's processors.
    ///
    /// # Errors
    /// Those of [`run_threads`]. [`run_to_exit`](Self::run_to_exit) tells them to the other processes.
    pub fn run<T, F>(&self, ranks: usize, f: F) -> Result<Vec<T>>
    where
        T: Send,
        F: Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
    {
        let Some(processes) = &self.0 else { return run_threads(ranks, threads_per_rank(ranks), f) };
        let (comm, threads) = (processes.communicator(), processes.threads());
        let (rank, size) = (comm.rank(), comm.size());
        if size != ranks {
            bail!(Config, "{ranks} ranks were asked for, but {size} processes were started");
        }
        if rank == 0 {
            let mut hosts = processes.hosts();
            hosts.sort_unstable();
            hosts.dedup();
            tracing::info!("ranks are processes: {size}; hosts: {}; threads of rank 0: {threads}", hosts.len());
        }
        let span = if size == 1 { Span::current() } else { tracing::error_span!("rank", rank) };
        let work = || {
            processes.control().enter(); // here, as it is a thread of the pool that makes the rank's calls
            f(comm)
        };
        Ok(vec![in_pool(rank, threads, span, work)?])
    }

    /// Runs `f` on rank 0, then on the first rank of each machine, then on the others: for what ranks must not do at
    /// once, such as fetching files into a cache that they share.
    pub fn rank0_first<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(processes) = &self.0 else { return f() };
        let (comm, hosts) = (processes.communicator(), processes.hosts());
        let first_here = hosts.iter().position(|host| *host == hosts[comm.rank()]) == Some(comm.rank());
        let turn = if comm.rank() == 0 { 0 } else { 2 - usize::from(first_here) };
        processes.control().enter();
        (0..turn).try_for_each(|_| comm.barrier())?;
        let value = f()?;
        (turn..2).try_for_each(|_| comm.barrier())?;
        Ok(value)
    }

    /// What the first process has for `value`, told to all; where ranks are threads, `value` itself.
    pub fn of_first(&self, value: u64) -> Result<u64> {
        let Some(processes) = &self.0 else { return Ok(value) };
        let comm = processes.communicator();
        processes.control().enter();
        let own = Tensor::new(&[value as i64], &Device::Cpu)?; // the same 64 bits: Candle has no u64
        let values = comm.all_gather(&own, &vec![vec![1]; comm.size()])?;
        Ok(values[0].to_vec1::<i64>()?[0] as u64)
    }

    /// Runs the work of this process and ends it together with the others: an error on one is the error of all.
    /// `report` is given the outcome on the one process that is to tell the user.
    pub fn run_to_exit(self, work: impl FnOnce(&Self) -> Result<()>, report: impl FnOnce(&Result<()>)) -> Result<()> {
        let Some(processes) = &self.0 else {
            let outcome = work(&self);
            report(&outcome);
            return outcome;
        };
        let rank = processes.communicator().rank();
        let outcome =
            catch_unwind(AssertUnwindSafe(|| work(&self))).unwrap_or_else(|panic| Err(panicked(rank, panic.as_ref())));
        let outcome = processes.control().finish_together(outcome);
        if processes.control().is_reporter() {
            report(&outcome);
        }
        outcome
    }
}

#[cfg(feature = "mpi")]
fn join(env: &LauncherEnv, limits: Limits) -> Result<Box<dyn Processes>> {
    Ok(Box::new(super::mpi::World::start(env, limits)?))
}

#[cfg(not(feature = "mpi"))]
fn join(env: &LauncherEnv, _: Limits) -> Result<Box<dyn Processes>> {
    let LauncherEnv { size, launcher, .. } = env;
    bail!(
        Environment,
        "{launcher} started {size} processes of a longreel that was built without MPI: they would all do the same work, over each other's \
         files. Build it with `cargo build --release --features mpi`, or start one process with --ranks {size}, for threads"
    )
}

#[cfg(feature = "nccl")]
fn join_on_gpus(torchrun: &TorchrunEnv, limits: Limits) -> Result<Box<dyn Processes>> {
    Ok(Box::new(super::nccl::World::start(torchrun, limits)?))
}

#[cfg(not(feature = "nccl"))]
fn join_on_gpus(torchrun: &TorchrunEnv, _: Limits) -> Result<Box<dyn Processes>> {
    bail!(
        Environment,
        "torchrun started {0} processes of a longreel that was built without NCCL: they would all do the same work, over each other's \
         files. Build it with `cargo build --release --features nccl` (docs/launching.md), or start one process with --ranks {0}, for \
         threads",
        torchrun.size
    )
}
