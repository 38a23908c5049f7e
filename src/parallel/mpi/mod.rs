//! Runs ranks as processes that mpirun or srun started, on one machine or several, with collectives over MPI.
//!
//! - `joining`: a time limit for MPI to start in;
//! - `messages`: MPI's calls;
//! - `failure_detector`: which ranks failed, returned or are lost, so that no rank waits for ever;
//! - `collectives`: the [`Communicator`].
//!
//! MPI's own collectives are not used. They would sum in an order of their choice, wait at full load, hang where ranks
//! disagree or one is gone, and count in C ints; its communicators are made by calls that do the same. So groups of
//! ranks are numbers that tag their messages.

mod collectives;
mod failure_detector;
mod joining;
mod messages;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::traits::Communicator as _;

use self::collectives::Group;
use self::failure_detector::FailureDetector;
use self::joining::Joining;
use self::messages::Channel;
use super::cpu_affinity::CpuAffinity;
use super::processes::Processes;
use super::{Communicator, LauncherEnv, Limits, thread_refused};
use crate::{Error, Result, bail};

/// How long MPI may take to end before the process ends without it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long after a host was found lost the launcher is left to find so too. Told to end the job before, it would wait
/// for that host.
const LAUNCHER: Duration = Duration::from_secs(18);

/// This process among those of its job.
pub(super) struct World {
    link: Arc<Link>,
    group: Arc<Group>,
    /// Of all, by rank.
    affinities: Vec<CpuAffinity>,
    detector_thread: Option<JoinHandle<()>>,
    universe: Option<Universe>,
}

/// What all communicators of a process share.
struct Link {
    channel: Channel,
    detector: FailureDetector,
    limits: Limits,
    /// The number of the next group.
    groups: AtomicU64,
}

impl World {
    /// Joins the processes that were started with this one.
    ///
    /// # Errors
    /// MPI cannot be started, or does not see the processes that the launcher says it started.
    pub fn start(env: &LauncherEnv, limits: Limits) -> Result<Self> {
        let joining = Joining::watch(env, limits.starting)?;
        let Some((universe, threading)) = mpi::environment::initialize_with_threading(Threading::Multiple) else {
            bail!(Environment, "MPI was started before in this process, or has ended: one job is run by a process")
        };
        if threading != Threading::Multiple {
            bail!(
                Environment,
                "this MPI has no MPI_THREAD_MULTIPLE, which longreel needs: install one that was built with it"
            )
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let LauncherEnv { size: started, launcher, .. } = env;
        if size != *started {
            std::mem::forget(universe); // ending it may wait for processes that know nothing of it
            bail!(
                Environment,
                "{launcher} started {started} processes, but MPI sees {size}: use the launcher of the MPI that longreel was built \
                 with, or with srun one of the kinds that `srun --mpi=list` names (pmix, pmi2)"
            );
        }
        let detector = FailureDetector::new(Channel::new()?, rank, size, limits);
        let link = Arc::new(Link { channel: Channel::new()?, detector, limits, groups: AtomicU64::new(1) });
        let detector_thread = {
            let link = link.clone();
            let run = move || link.detector.run(|e| give_up(&link, e));
            thread::Builder::new().name("heartbeat".into()).spawn(run)
        };
        let detector_thread = detector_thread.map_err(|e| thread_refused("a thread to watch the other ranks", &e))?;
        let group = Arc::new(Group::world(link.clone(), rank, size));
        let mut world =
            Self { link, group, affinities: vec![], detector_thread: Some(detector_thread), universe: Some(universe) };
        drop(joining); // from here on the detector sees who is missing
        world.meet()?;
        Ok(world)
    }

    /// Learns where all ranks are.
    fn meet(&mut self) -> Result<()> {
        let own = serde_json::to_vec(&CpuAffinity::here()).map_err(|e| Error::Environment(e.to_string()))?;
        for text in self.group.exchange("the start", |_| Ok(own.clone()))? {
            let affinity = serde_json::from_slice(&text).map_err(|e| Error::Environment(e.to_string()))?;
            self.affinities.push(affinity);
        }
        self.link.detector.name(self.affinities.iter().map(|p| p.location()).collect());
        Ok(())
    }

    fn own_affinity(&self) -> &CpuAffinity {
        &self.affinities[self.link.detector.rank]
    }
}

impl Processes for World {
    fn communicator(&self) -> Arc<dyn Communicator> {
        self.group.clone()
    }

    fn threads(&self) -> usize {
        self.own_affinity().share(&self.affinities)
    }

    fn hosts(&self) -> Vec<&str> {
        self.affinities.iter().map(|p| p.host.as_str()).collect()
    }

    fn enter(&self) {
        self.link.detector.enter();
    }

    fn finish_together(&self, outcome: Result<()>) -> Result<()> {
        self.link.detector.finish_together(outcome)
    }

    fn is_reporter(&self) -> bool {
        self.link.detector.is_reporter()
    }
}

impl Drop for World {
    /// Ends MPI, together with the others if all have come to their ends.
    fn drop(&mut self) {
        let detector = &self.link.detector;
        let together = detector.all_left();
        detector.stop();
        if let Some(detector_thread) = self.detector_thread.take() {
            let _ = detector_thread.join();
        }
        if together && detector.check().is_ok() {
            return drop(self.universe.take()); // MPI_Finalize
        }
        if !together {
            return abort(&self.link, self.affinities.iter().any(|p| p.host != self.own_affinity().host));
        }
        // Messages that nobody will take may be on their way. MPI often ends all the same, but need not.
        end_within(FAREWELL);
        drop(self.universe.take());
    }
}

/// Ends the job without those who have not come to their ends, and this process.
fn abort(link: &Link, several_hosts: bool) {
    if let Some(lost) = link.detector.lost_for().filter(|_| several_hosts) {
        thread::sleep(LAUNCHER.saturating_sub(lost));
    }
    end_within(FAREWELL);
    link.detector.abort();
}

/// The last of a process whose rank is at work and does not notice that the run has failed.
fn give_up(link: &Link, e: &Error) {
    if link.detector.is_reporter() {
        use std::io::Write;
        let _ = writeln!(crate::observe::stderr::Stderr, "error: {}", crate::terminal::message(&e.to_string()));
    } else {
        thread::sleep(FAREWELL); // for the reporter
    }
    abort(link, true);
}

/// Ends this process after a while if nothing else has.
fn end_within(time: Duration) {
    let end = move || {
        thread::sleep(time);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    };
    let _ = thread::Builder::new().name("farewell".into()).spawn(end);
}

impl Link {
    /// A number that no other group has which a rank of this process is in; for the members of a group to choose from.
    fn group_number(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that `number` is taken.
    fn took(&self, number: u64) {
        self.groups.fetch_max(number + 1, Ordering::Relaxed);
    }
}
