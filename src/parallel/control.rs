//! The control plane carries small messages and failures between processes through rank 0, so that no process waits for
//! one that is lost.
//!
//! They have found each other by [`bootstrap`](super::bootstrap), and each has a link to rank 0, which passes messages
//! on. A thread for each link reads its frames: a kind, a length that is checked first, and bytes. Another thread says
//! every few seconds that this process lives, and what it waits in.

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::bootstrap::{self, Joiner};
use super::connection::Connection;
use super::cpu_affinity::CpuAffinity;
use super::links::Links;
use super::peers::Peers;
use super::wire::{Failure, Frame, LONGEST};
use super::{Limits, TorchrunEnv, thread_refused};
use crate::{Error, Result, bail};

/// Time between two heartbeats of a process.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How much later than this process rank 0 may give up.
const GRACE: Duration = Duration::from_secs(3);
/// How long after a failure the reporter is left to report it, before the others end without it.
const REPORT: Duration = Duration::from_secs(3);

/// This process's side.
pub struct ControlPlane {
    links: Arc<Links>,
    /// One exchange at a time.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
    on_failure: OnFailure,
}

/// What becomes of a failed run.
#[derive(Clone, Copy)]
pub(super) struct OnFailure {
    /// How long a process that has ended waits for the others to notice a failure, busy as they may be.
    pub notice: Duration,
    /// Ends a process that has not noticed by then.
    pub give_up: Option<fn(&Links)>,
}

/// A process is left to notice.
const LEFT: OnFailure = OnFailure { notice: Duration::from_secs(3), give_up: None };

impl ControlPlane {
    /// Meets the other processes of the job that `env` describes.
    ///
    /// # Errors
    /// They do not come, cannot be reached, or do not fit together: within `limits.joining`, and a little, on all that
    /// have come.
    pub fn join(env: &TorchrunEnv, limits: Limits) -> Result<Self> {
        let until = Instant::now() + limits.joining;
        let own = |e: Error| if env.rank == 0 { e } else { Error::Rank { rank: env.rank, message: e.to_string() } };
        let joiner = Joiner::by_torchrun(env, env.secret.key(env.rank, until).map_err(own)?);
        let listener = if env.rank == 0 { Some(bootstrap::listen(&joiner)?) } else { None };
        Self::meet(&joiner, listener, limits, until, LEFT)
    }

    /// Meets the other processes `until` then: those that come to rank 0's `listener`.
    pub(super) fn meet(
        joiner: &Joiner,
        listener: Option<TcpListener>,
        limits: Limits,
        until: Instant,
        on_failure: OnFailure,
    ) -> Result<Self> {
        let connections = match listener {
            Some(listener) => bootstrap::gather(joiner, &listener, &limits, until)?,
            None => vec![Self::come(joiner, &limits, until)?],
        };
        let (outs, inputs): (Vec<_>, Vec<_>) = connections.into_iter().map(|link| (link.out, link.input)).unzip();
        let links = Arc::new(Links::new(joiner.rank, joiner.size, outs));
        let mut control = Self { links: links.clone(), turn: Mutex::new(()), threads: vec![], on_failure };
        for (i, input) in inputs.into_iter().enumerate() {
            let links = links.clone();
            control.spawn(move || links.listen(i, input, limits.silence))?;
        }
        control.spawn(move || links.beat(HEARTBEAT.min(limits.silence / 4), on_failure))?;
        let _ = control.links.affinities.set(control.gather(&CpuAffinity::here())?); // the only time
        Ok(control)
    }

    /// Any rank but 0 comes to rank 0 and waits until all have come.
    fn come(joiner: &Joiner, limits: &Limits, until: Instant) -> Result<Connection> {
        let own = |e: Error| Error::Rank { rank: joiner.rank, message: e.to_string() };
        let mut link = bootstrap::come(joiner, limits, until).map_err(own)?;
        // Rank 0 may have started only now, to wait for others.
        let ready = link.input.expect(limits.joining + GRACE);
        match ready.map_err(|e| Error::Rank { rank: 0, message: format!("it left before all had come: {e}") })? {
            Frame::Ready => Ok(link),
            Frame::Failed(failure) => Err(failure.error()),
            _ => bail!(Environment, "rank 0 at {} speaks out of turn: is it the same longreel?", joiner.endpoint()),
        }
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name("control".into()).spawn(work);
        self.threads.push(thread.map_err(|e| thread_refused("a thread to hear the other ranks", &e))?);
        Ok(())
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.links.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.links.size
    }

    /// The host and processors of each rank.
    pub(super) fn affinities(&self) -> &[CpuAffinity] {
        self.links.affinities.get().map_or(&[], Vec::as_slice)
    }

    /// Says that the calling thread is the one that the rank's work runs in.
    pub(super) fn enter(&self) {
        self.links.peers(Peers::enter);
    }

    /// Who has failed, waits or has left.
    #[cfg(feature = "mpi")]
    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// Gives `bytes` to all and returns what each gave, in rank order. All ranks call it, and it waits for those still
    /// at work.
    ///
    /// # Errors
    /// A rank failed, has ended or is lost, or the bytes are more than is sent this way.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if bytes.len() > LONGEST {
            bail!(
                Environment,
                "{} bytes are too many to exchange by way of rank 0, which passes on {LONGEST} at most",
                bytes.len()
            );
        }
        let _turn = self.turn.lock();
        let links = &*self.links;
        let own = bytes.to_vec();
        if links.rank != 0 {
            links.send(0, &Frame::Data(own))?;
            return (0..links.size).map(|_| links.take(0)).collect();
        }
        let others = (0..links.count()).map(|link| links.take(link));
        let all = std::iter::once(Ok(own)).chain(others).collect::<Result<Vec<_>>>()?;
        for link in 0..links.count() {
            all.iter().try_for_each(|bytes| links.send(link, &Frame::Data(bytes.clone())))?;
        }
        Ok(all)
    }

    /// What each rank gives, in rank order, as [`exchange`](Self::exchange) does.
    pub(super) fn gather<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>> {
        let own = serde_json::to_vec(own).map_err(|e| Error::Environment(e.to_string()))?;
        let read = |(rank, text): (usize, Vec<u8>)| {
            let other = |e| Error::Rank { rank, message: format!("is it of another longreel? {e}") };
            serde_json::from_slice(&text).map_err(other)
        };
        self.exchange(&own)?.into_iter().enumerate().map(read).collect()
    }

    /// The failure that ended the run, if one has.
    pub fn check(&self) -> Result<()> {
        self.links.check()
    }

    /// Makes all pending and later calls of all ranks fail with what went wrong at `rank`. Only the first failure
    /// counts.
    pub fn fail(&self, rank: usize, message: &str) {
        self.links.take_failure(Failure { rank, message: message.to_owned(), lost: false }, None);
    }

    /// Tells the others how this rank's work ended, and waits until that of all has; returns how the run ended, as this
    /// rank's work did or as that of the rank that failed first.
    pub fn finish_together(&self, outcome: Result<()>) -> Result<()> {
        match &outcome {
            Err(Error::Rank { rank, message }) => self.fail(*rank, message),
            Err(e) => self.fail(self.rank(), &e.to_string()),
            Ok(()) => {}
        }
        self.links.finish(self.on_failure.notice, REPORT);
        match (self.check(), outcome) {
            (Ok(()), outcome) => outcome,
            // The rank that failed keeps its own error, with its kind; so do those that failed alike, as by a bad
            // config.
            (Err(Error::Rank { rank, message }), Err(own)) if rank == self.rank() || own.to_string() == message => {
                Err(own)
            }
            (Err(first), _) => Err(first),
        }
    }

    /// Whether this rank reports to the user: rank 0; if that is lost, the first on another host, or rank 1 if there
    /// is one host only.
    pub fn is_reporter(&self) -> bool {
        self.links.is_reporter()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.links.close();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
