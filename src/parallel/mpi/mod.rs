//! Runs ranks as processes that mpirun or srun started, on one machine or several, with collectives over MPI.
//!
//! - `joining`: a time limit for MPI to start in;
//! - `messages`: MPI's calls;
//! - `invitation`, `interfaces`: where rank 0 is, by one MPI broadcast. There all join a [`ControlPlane`], by which
//!   they hear of a rank that failed, returned or is lost. MPI would tell nothing: to MPI, a host that is gone is only
//!   slow;
//! - `transport`: tensors from rank to rank, over which the crate's one [`Collectives`] are.
//!
//! MPI's own collectives are not used. They would sum in an order of their choice, wait at full load, hang where ranks
//! disagree or one is gone, and count in C ints; its communicators are made by calls that do the same. So groups of
//! ranks are numbers that tag their messages.

mod interfaces;
mod invitation;
mod joining;
mod messages;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::traits::Communicator as _;

use self::joining::Joining;
use self::messages::Channel;
use self::transport::ByMpi;
use super::collectives::Collectives;
use super::control::OnFailure;
use super::links::Links;
use super::processes::Processes;
use super::{Communicator, ControlPlane, LauncherEnv, Limits};
use crate::{Result, bail};

/// How long a process that has failed waits for the others to notice, busy as they may be; then it ends without them.
const FAILURE_NOTICE: Duration = Duration::from_secs(10);
/// How long MPI may take to end before the process ends without it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long after a host was found lost the launcher is left to find so too. Told to end the job before, it would wait
/// for that host.
const LAUNCHER: Duration = Duration::from_secs(18);

/// This process among those of its job.
pub(super) struct World {
    link: Arc<Link>,
    world: Arc<Collectives<ByMpi>>,
    universe: Option<Universe>,
}

/// What all communicators of a process share.
struct Link {
    channel: Channel,
    control: ControlPlane,
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
        let channel = Channel::new()?;
        let (joiner, listener) = invitation::exchange(&channel, rank, size)?;
        drop(joining); // from here on the control plane sees who is missing
        let on_failure = OnFailure { notice: FAILURE_NOTICE, give_up: Some(give_up) };
        let until = Instant::now() + limits.joining;
        let control = ControlPlane::meet(&joiner, listener, limits, until, on_failure);
        let control = match control {
            Ok(control) => control,
            Err(e) => {
                std::mem::forget(universe); // ending it would wait for processes that have met no other
                return Err(e);
            }
        };
        let link = Arc::new(Link { channel, control, limits, groups: AtomicU64::new(1) });
        let world = Arc::new(Collectives::new(ByMpi::world(link.clone(), rank, size)));
        Ok(Self { link, world, universe: Some(universe) })
    }
}

impl Processes for World {
    fn communicator(&self) -> Arc<dyn Communicator> {
        self.world.clone()
    }

    fn control(&self) -> &ControlPlane {
        &self.link.control
    }
}

impl Drop for World {
    /// Ends MPI, together with the others if all have come to their ends.
    fn drop(&mut self) {
        let control = &self.link.control;
        if !control.links().peers(|peers| peers.all_left()) {
            let mut hosts = control.affinities().iter().map(|affinity| &affinity.host);
            let first = hosts.next();
            return abort(control.links(), hosts.any(|host| Some(host) != first));
        }
        if control.check().is_err() {
            // Messages that nobody will take may be on their way. MPI often ends all the same, but need not.
            end_within(FAREWELL);
        }
        drop(self.universe.take()); // MPI_Finalize
    }
}

/// Ends the job without those who have not come to their ends, and this process.
fn abort(links: &Links, several_hosts: bool) {
    if let Some(lost) = links.lost_for().filter(|_| several_hosts) {
        thread::sleep(LAUNCHER.saturating_sub(lost));
    }
    end_within(FAREWELL);
    messages::abort();
}

/// The last of a process whose rank is at work and does not notice that the run has failed.
fn give_up(links: &Links) {
    if links.is_reporter()
        && let Err(e) = links.check()
    {
        use std::io::Write;
        let _ = writeln!(crate::observe::stderr::Stderr, "error: {}", crate::terminal::message(&e.to_string()));
    } else {
        thread::sleep(FAREWELL); // for the reporter
    }
    abort(links, true);
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
    /// Waits until `done`. It sleeps longer each time, at most `longest`, so that a waiting rank leaves the processor
    /// to working ones. `call` is the text of the call that waits for other ranks, if other ranks may wait for this one
    /// meanwhile.
    ///
    /// # Errors
    /// `done`'s, or the run's failure. What is done counts even if somebody has failed since.
    fn wait(&self, call: Option<&str>, longest: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let mut announced = false;
        let outcome = loop {
            match done() {
                Ok(false) => {}
                other => break other.map(|_| ()),
            }
            if let Err(e) = self.control.check() {
                break Err(e);
            }
            let waited = start.elapsed();
            if waited < Duration::from_micros(50) {
                thread::yield_now();
                continue;
            }
            if call.is_some() && !announced {
                announced = true;
                self.control.links().peers(|peers| peers.wait_in(call));
            }
            thread::sleep((waited / 8).clamp(Duration::from_micros(10), longest));
        };
        if announced {
            self.control.links().peers(|peers| peers.wait_in(None));
        }
        outcome
    }

    /// A number that no other group has which a rank of this process is in; for the members of a group to choose from.
    fn free_number(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that `number` is taken.
    fn take_number(&self, number: u64) {
        self.groups.fetch_max(number + 1, Ordering::Relaxed);
    }
}
