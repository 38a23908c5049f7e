//! The control plane carries small messages and failures between processes through rank 0, so that no process waits for
//! one that is lost.
//!
//! They have found each other by [`bootstrap`](super::bootstrap), and each has a link to rank 0, which passes messages
//! on. A thread for each link reads its frames: a kind, a length that is checked first, and bytes.

use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::links::Links;
use super::wire::{Failure, Frame, LONGEST};
use super::{Limits, TorchrunEnv, bootstrap, thread_refused};
use crate::{Error, Result, bail};

/// Time between two heartbeats of a process.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How much later than this process rank 0 may give up.
const GRACE: Duration = Duration::from_secs(3);

/// This process's side.
pub struct ControlPlane {
    links: Arc<Links>,
    /// One exchange at a time.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl ControlPlane {
    /// Meets the other processes of the job that `env` describes.
    ///
    /// # Errors
    /// They do not come, cannot be reached, or do not fit together: within `limits.joining`, and a little, on all that
    /// have come.
    pub fn join(env: &TorchrunEnv, limits: Limits) -> Result<Self> {
        let until = Instant::now() + limits.joining;
        let own = |e: Error| if env.rank == 0 { e } else { Error::Rank { rank: env.rank, message: e.to_string() } };
        let key = env.secret.key(env.rank, until).map_err(own)?;
        if env.rank != 0 {
            let mut link = bootstrap::come(env, &key, &limits, until).map_err(own)?;
            // Rank 0 may have started only now, to wait for others.
            let ready = link.input.expect(limits.joining + GRACE);
            match ready.map_err(|e| Error::Rank { rank: 0, message: format!("it left before all had come: {e}") })? {
                Frame::Ready => return Self::start(env, vec![link], limits),
                Frame::Failed(Failure { rank, message, .. }) => return Err(Error::Rank { rank, message }),
                _ => bail!(
                    Environment,
                    "rank 0 at {} speaks out of turn: is it the same longreel?",
                    bootstrap::endpoint(env)
                ),
            }
        }
        match bootstrap::gather(env, key, &limits, until) {
            Ok(mut links) => {
                for link in &mut links {
                    let _ = link.out.send(&Frame::Ready); // one that is gone will be missed soon
                }
                Self::start(env, links, limits)
            }
            Err(refusal) => bail!(Environment, "{}", refusal.tell()),
        }
    }

    fn start(env: &TorchrunEnv, links: Vec<Connection>, limits: Limits) -> Result<Self> {
        let (outs, inputs): (Vec<_>, Vec<_>) = links.into_iter().map(|link| (link.out, link.input)).unzip();
        let links = Arc::new(Links::new(env, outs));
        let mut control = Self { links: links.clone(), turn: Mutex::new(()), threads: vec![] };
        for (i, input) in inputs.into_iter().enumerate() {
            let links = links.clone();
            control.spawn(move || links.listen(i, input, limits.silence))?;
        }
        control.spawn(move || links.beat(HEARTBEAT.min(limits.silence / 4)))?;
        Ok(control)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name("party".into()).spawn(work);
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
        if links.rank != 0 {
            links.send(0, &Frame::Data(bytes.to_vec()))?;
            return (0..links.size).map(|_| links.take(0)).collect();
        }
        let mut frames = vec![Frame::Data(bytes.to_vec())];
        for link in 0..links.count() {
            frames.push(Frame::Data(links.take(link)?));
        }
        for link in 0..links.count() {
            frames.iter().try_for_each(|frame| links.send(link, frame))?;
        }
        let data = |frame| if let Frame::Data(bytes) = frame { bytes } else { vec![] };
        Ok(frames.into_iter().map(data).collect())
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
        let links = &*self.links;
        match &outcome {
            Err(Error::Rank { rank, message }) => self.fail(*rank, message),
            Err(e) => self.fail(links.rank, &e.to_string()),
            // The others first, then rank 0: a rank that has rank 0's note knows that all have ended.
            Ok(()) => drop(match links.rank {
                0 => links.all_left().and_then(|()| links.leave()),
                _ => links.leave().and_then(|()| links.all_left()),
            }),
        }
        let first = self.check();
        if first.is_err() {
            links.part();
        }
        match (first, outcome) {
            (Ok(()), outcome) => outcome,
            (Err(Error::Rank { rank, message }), Err(own)) if rank == links.rank || own.to_string() == message => {
                Err(own)
            }
            (Err(first), _) => Err(first),
        }
    }

    /// Whether this rank reports to the user: rank 0, or rank 1 if rank 0 is lost.
    pub fn is_reporter(&self) -> bool {
        let lost = self.links.failure().is_some_and(|failure| failure.lost && failure.rank == 0);
        self.links.rank == usize::from(lost)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.links.close();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
