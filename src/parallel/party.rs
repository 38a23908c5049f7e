//! Processes that have found each other by a [`rendezvous`](super::rendezvous), each with a line to rank 0: they give each other
//! small bytes, tell each other that they live, and what became of them. So nobody waits for one that failed, ended or is lost.
//!
//! All goes by rank 0: with as many lines as processes, and none for it to need but these. What comes is read by a thread for each
//! line, in frames of a kind, a length that is checked first, and bytes.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::frames::{Failure, Frame, LONGEST};
use super::lines::{Lines, lock};
use super::wire::Wire;
use super::{Job, Limits, rendezvous, thread_refused};
use crate::{Error, Result, bail};

/// How often a process says that it lives.
const BEAT: Duration = Duration::from_secs(3);
/// How much later than this process rank 0 may give up.
const GRACE: Duration = Duration::from_secs(3);

/// This process's side.
pub struct Party {
    lines: Arc<Lines>,
    /// One exchange at a time.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Party {
    /// Meets the other processes of `job`.
    ///
    /// # Errors
    /// They do not come, cannot be reached, or do not fit together: within `limits.joining`, and a little, on all that have come.
    pub fn join(job: &Job, limits: Limits) -> Result<Self> {
        let until = Instant::now() + limits.joining;
        let own = |e: Error| if job.rank == 0 { e } else { Error::Rank { rank: job.rank, message: e.to_string() } };
        let key = job.secret.key(job.rank, until).map_err(own)?;
        if job.rank != 0 {
            let mut line = rendezvous::come(job, &key, &limits, until).map_err(own)?;
            // Rank 0 may have started only now, to wait for others.
            let ready = line.input.expect(limits.joining + GRACE);
            match ready.map_err(|e| Error::Rank { rank: 0, message: format!("it left before all had come: {e}") })? {
                Frame::Ready => return Self::start(job, vec![line], limits),
                Frame::Failed(Failure { rank, message, .. }) => return Err(Error::Rank { rank, message }),
                _ => bail!("rank 0 at {} speaks out of turn: is it the same longreel?", rendezvous::place(job)),
            }
        }
        match rendezvous::gather(job, key, &limits, until) {
            Ok(mut lines) => {
                for line in &mut lines {
                    let _ = line.out.send(&Frame::Ready); // one that is gone will be missed soon
                }
                Self::start(job, lines, limits)
            }
            Err(refusal) => bail!("{}", refusal.tell()),
        }
    }

    fn start(job: &Job, lines: Vec<Wire>, limits: Limits) -> Result<Self> {
        let (outs, inputs): (Vec<_>, Vec<_>) = lines.into_iter().map(|line| (line.out, line.input)).unzip();
        let lines = Arc::new(Lines::new(job, outs));
        let mut party = Self { lines: lines.clone(), turn: Mutex::new(()), threads: vec![] };
        for (i, input) in inputs.into_iter().enumerate() {
            let lines = lines.clone();
            party.spawn(move || lines.listen(i, input, limits.silence))?;
        }
        party.spawn(move || lines.beat(BEAT.min(limits.silence / 4)))?;
        Ok(party)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name("party".into()).spawn(work);
        self.threads.push(thread.map_err(|e| thread_refused("a thread to hear the other ranks", &e))?);
        Ok(())
    }

    pub fn rank(&self) -> usize {
        self.lines.rank
    }

    pub fn size(&self) -> usize {
        self.lines.size
    }

    /// Gives `bytes` to all and returns what each gave, in rank order. All ranks call it; who is at work is waited for.
    ///
    /// # Errors
    /// A rank failed, has ended or is lost, or the bytes are more than is sent this way.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if bytes.len() > LONGEST {
            bail!("{} bytes are too many to exchange by way of rank 0, which passes on {LONGEST} at most", bytes.len());
        }
        let _turn = lock(&self.turn);
        let lines = &*self.lines;
        if lines.rank != 0 {
            lines.send(0, &Frame::Data(bytes.to_vec()))?;
            return (0..lines.size).map(|_| lines.take(0)).collect();
        }
        let mut all = vec![Frame::Data(bytes.to_vec())];
        for line in 0..lines.count() {
            all.push(Frame::Data(lines.take(line)?));
        }
        for line in 0..lines.count() {
            all.iter().try_for_each(|frame| lines.send(line, frame))?;
        }
        let data = |frame| if let Frame::Data(bytes) = frame { bytes } else { vec![] };
        Ok(all.into_iter().map(data).collect())
    }

    /// The failure that ended the run, if one has.
    pub fn check(&self) -> Result<()> {
        self.lines.check()
    }

    /// Makes all pending and later calls of all ranks fail with what went wrong at `rank`. Only the first failure counts.
    pub fn fail(&self, rank: usize, message: &str) {
        self.lines.take_failure(Failure { rank, message: message.to_owned(), lost: false }, None);
    }

    /// Tells the others how this rank's work ended, and waits until that of all has; returns how the run ended, as this rank's
    /// work did or as that of the rank that failed first.
    pub fn settle(&self, outcome: Result<()>) -> Result<()> {
        let lines = &*self.lines;
        match &outcome {
            Err(Error::Rank { rank, message }) => self.fail(*rank, message),
            Err(e) => self.fail(lines.rank, &e.to_string()),
            // The others first, then rank 0: who has its note knows that all have ended.
            Ok(()) => drop(match lines.rank {
                0 => lines.all_left().and_then(|()| lines.leave()),
                _ => lines.leave().and_then(|()| lines.all_left()),
            }),
        }
        let first = self.check();
        if first.is_err() {
            lines.part();
        }
        match (first, outcome) {
            (Ok(()), outcome) => outcome,
            (Err(Error::Rank { rank, message }), Err(own)) if rank == lines.rank || own.to_string() == message => {
                Err(own)
            }
            (Err(first), _) => Err(first),
        }
    }

    /// Whether this is the rank to tell the user: the first, or the next where that is lost.
    pub fn speaks(&self) -> bool {
        let lost = self.lines.failure().is_some_and(|failure| failure.lost && failure.rank == 0);
        self.lines.rank == usize::from(lost)
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.lines.close();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
