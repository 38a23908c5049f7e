//! Runs the control connections: keeps received messages, what is known of each rank, and the first failure, which
//! wakes every waiter.
//!
//! Rank 0 has a link to every other rank, and every other rank has one to rank 0, which passes on who has failed or
//! left.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::connection::{Incoming, Outgoing, late};
use super::control::OnFailure;
use super::cpu_affinity::CpuAffinity;
use super::peers::Peers;
use super::wire::{Failure, Frame, Presence};
use crate::Result;

pub(super) struct Links {
    pub rank: usize,
    pub size: usize,
    /// Of all ranks, once they have told.
    pub affinities: OnceLock<Vec<CpuAffinity>>,
    /// From rank 1 on, or to rank 0 alone. Locked to send; a thread of each reads.
    links: Vec<Mutex<Outgoing>>,
    /// No code under this lock panics half-way through a change.
    state: Mutex<State>,
    news: Condvar,
}

struct State {
    failure: Option<Failure>,
    failed_at: Instant,
    /// The failure is being passed on: the links must not close before that is done.
    telling: bool,
    /// Messages of each link that were received and not taken yet.
    inbox: Vec<VecDeque<Vec<u8>>>,
    /// Links by which nothing more comes.
    closed: Vec<bool>,
    peers: Peers,
    /// This rank has nothing left to do but to end.
    finishing: bool,
    over: bool,
}

impl State {
    fn check(&self) -> Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.error()))
    }
}

impl Links {
    /// The links of rank `rank` of `size`.
    pub fn new(rank: usize, size: usize, links: Vec<Outgoing>) -> Self {
        let state = State {
            failure: None,
            failed_at: Instant::now(),
            telling: false,
            inbox: vec![VecDeque::new(); links.len()],
            closed: vec![false; links.len()],
            peers: Peers::new(rank, size),
            finishing: false,
            over: false,
        };
        let links = links.into_iter().map(Mutex::new).collect();
        let (affinities, news) = Default::default();
        Self { rank, size, affinities, links, state: Mutex::new(state), news }
    }

    pub fn count(&self) -> usize {
        self.links.len()
    }

    /// The failure that stopped the run, if one has.
    pub fn check(&self) -> Result<()> {
        self.state.lock().check()
    }

    /// What is known of all ranks, to look at or to change.
    pub fn peers<T>(&self, work: impl FnOnce(&mut Peers) -> T) -> T {
        work(&mut self.state.lock().peers)
    }

    pub fn is_reporter(&self) -> bool {
        self.rank == self.reporter(&self.state.lock())
    }

    /// The same on all ranks.
    fn reporter(&self, state: &State) -> usize {
        if !matches!(state.failure, Some(Failure { rank: 0, lost: true, .. })) {
            return 0;
        }
        let affinities = self.affinities.get().map_or(&[][..], Vec::as_slice);
        affinities.iter().position(|affinity| affinity.host != affinities[0].host).unwrap_or(1)
    }

    /// Says that this rank's work has ended, and waits until that of all has. After a failure it waits for `notice` at
    /// most: for the others to notice, busy as they may be, and for the reporter to report, since the end of another
    /// may end it.
    pub fn finish(&self, notice: Duration, report: Duration) {
        let mut state = self.state.lock();
        state.finishing = true;
        self.news.wait_while(&mut state, |state| state.telling); // the failure first
        state.peers.leave(self.rank); // before rank 0 can hear it and end: its end is expected then
        drop(state);
        self.tell(&Frame::Left(self.rank), None);
        state = self.state.lock();
        while state.telling || !self.finished(&state) {
            let Some(failure) = state.failure.as_ref().filter(|_| !state.telling) else {
                self.news.wait(&mut state);
                continue;
            };
            let reports = self.rank == self.reporter(&state);
            if failure.lost && reports {
                return; // nobody can end together with one that is lost
            }
            let until = state.failed_at + notice + if reports { Duration::ZERO } else { report };
            if self.news.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Whether nothing more is to come from any rank.
    fn finished(&self, state: &State) -> bool {
        let ended = |link: usize| state.closed[link] || state.peers.left(self.other(link));
        match self.rank {
            0 => (0..self.count()).all(ended),
            _ => state.closed[0] || state.peers.all_left(),
        }
    }

    /// Changes what is known, and wakes all who wait for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state.lock());
        self.news.notify_all();
        value
    }

    /// Ends all, at once.
    pub fn close(&self) {
        self.change(|state| state.over = true);
        for link in &self.links {
            link.lock().shutdown(Shutdown::Both);
        }
    }

    /// The rank at the other end of a link.
    fn other(&self, link: usize) -> usize {
        if self.rank == 0 { link + 1 } else { 0 }
    }

    pub fn send(&self, link: usize, frame: &Frame) -> Result<()> {
        self.check()?;
        let sent = self.links[link].lock().send(frame);
        sent.or_else(|e| {
            self.lose(link, format!("nothing can be sent to it: {e}"));
            self.check()
        })
    }

    /// Sends a frame by all links but `except`. The reader of a broken one sees what became of it.
    fn tell(&self, frame: &Frame, except: Option<usize>) {
        for link in (0..self.count()).filter(|link| Some(*link) != except) {
            let _ = self.links[link].lock().send(frame);
        }
    }

    /// The next bytes that are received on a link; waits for them.
    pub fn take(&self, link: usize) -> Result<Vec<u8>> {
        let rank = self.other(link);
        loop {
            let mut state = self.state.lock();
            self.news.wait_while(&mut state, |state| {
                state.inbox[link].is_empty() && state.failure.is_none() && !state.peers.left(rank)
            });
            if let Some(bytes) = state.inbox[link].pop_front() {
                return Ok(bytes);
            }
            state.check()?;
            drop(state);
            let message = format!("it ended while rank {} waits for it", self.rank);
            self.take_failure(Failure { rank, message, lost: false }, None);
        }
    }

    /// Reads a link's frames until it closes.
    pub fn listen(&self, link: usize, mut input: Incoming, silence: Duration) {
        let other = self.other(link);
        loop {
            let frame = match input.next(silence) {
                Ok(frame) => frame,
                Err(e) => return self.end(link, &e, silence),
            };
            self.state.lock().peers.hear(other);
            match frame {
                Frame::Ready => {}
                Frame::Heartbeat(presence) => self.change(|state| state.peers.take(other, presence)),
                Frame::Left(rank) => {
                    let rank = if self.rank == 0 { other } else { rank };
                    if self.rank == 0 {
                        self.tell(&Frame::Left(rank), Some(link)); // before rank 0 can see that all have left, and end
                    }
                    self.change(|state| state.peers.leave(rank));
                }
                Frame::Data(_) if self.state.lock().inbox[link].len() > self.size => {
                    return self.lose(link, "it sends more than it is asked for".into());
                }
                Frame::Data(bytes) => self.change(|state| state.inbox[link].push_back(bytes)),
                Frame::Failed(failure) => self.take_failure(failure, Some(link)),
            }
        }
    }

    /// Nothing more comes by a link: its rank is lost unless its end was expected.
    fn end(&self, link: usize, e: &io::Error, silence: Duration) {
        let (state, other) = (self.state.lock(), self.other(link));
        let ended = if self.rank == 0 { state.peers.left(other) } else { state.peers.all_left() };
        let expected = ended || state.over;
        let message = self.why_lost(&state, other, e, silence);
        drop(state);
        if !expected {
            self.lose(link, message);
        }
        self.change(|state| state.closed[link] = true);
    }

    /// Why the link to `rank` has ended, for people; `silence` is how long nothing was heard.
    fn why_lost(&self, state: &State, rank: usize, e: &io::Error, silence: Duration) -> String {
        if !late(e) {
            return match e.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    "it ended or was killed: its connection was closed".into()
                }
                _ => e.to_string(),
            };
        }
        let mut message = format!("nothing was heard from it for {} s", silence.as_secs_f32());
        if let Some(affinities) = self.affinities.get() {
            let _ = write!(message, " ({})", affinities[rank].location());
        }
        message.push_str(": it was stopped or killed, or its host is down or cut off");
        let mut others = state.peers.silent(silence / 2);
        others.retain(|other| *other != rank && self.rank == 0); // the others hear rank 0 only
        if !others.is_empty() {
            let ranks = if others.len() == 1 { "rank" } else { "ranks" };
            let others: Vec<String> = others.iter().map(usize::to_string).collect();
            let _ = write!(message, "; nor from {ranks} {}", others.join(", "));
        }
        message
    }

    /// Declares the rank at the other end of a link lost.
    fn lose(&self, link: usize, message: String) {
        self.take_failure(Failure { rank: self.other(link), message, lost: true }, Some(link));
    }

    /// Keeps the first failure, and passes it on by all links but that by which it came. One that is lost hears of it
    /// last: if it has only stood still, it is not to take the others for lost.
    pub fn take_failure(&self, failure: Failure, from: Option<usize>) {
        let mut state = self.state.lock();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(failure.clone());
        (state.failed_at, state.telling) = (Instant::now(), true);
        drop(state);
        self.news.notify_all();
        let lost = from.filter(|&link| failure.rank == self.other(link));
        let frame = Frame::Failed(failure);
        self.tell(&frame, from);
        if let Some(link) = lost {
            let _ = self.links[link].lock().send(&frame);
        }
        self.change(|state| state.telling = false);
    }

    /// Sends a heartbeat on every link each `every`, and looks for ranks that wait for each other. A busy rank may not
    /// notice that the run has failed, and is given up then.
    pub fn beat(&self, every: Duration, OnFailure { notice, give_up }: OnFailure) {
        let mut state = self.state.lock();
        while !state.over {
            let (presence, stuck) = match self.rank {
                0 => (Presence::default(), state.peers.stuck(2 * every)),
                _ => (state.peers.own().clone(), None),
            };
            drop(state);
            self.tell(&Frame::Heartbeat(presence), None);
            if let Some(failure) = stuck {
                self.take_failure(failure, None);
            }
            let next = Instant::now() + every;
            state = self.state.lock();
            while !state.over && Instant::now() < next {
                let busy = state.failure.is_some() && !state.finishing;
                let until = match give_up {
                    Some(give_up) if busy && state.failed_at.elapsed() >= notice => {
                        MutexGuard::unlocked(&mut state, || give_up(self));
                        next
                    }
                    Some(_) if busy => next.min(state.failed_at + notice),
                    _ => next,
                };
                self.news.wait_until(&mut state, until);
            }
        }
    }
}

/// What MPI's ranks tell and ask beside: NCCL's wait on the GPU, where nobody sees for whom.
#[cfg(feature = "mpi")]
impl Links {
    /// For how long a rank has been known to be lost.
    pub fn lost_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.failure.as_ref().filter(|failure| failure.lost).map(|_| state.failed_at.elapsed())
    }
}
