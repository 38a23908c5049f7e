//! Runs the control connections: keeps received messages, each peer's state, and the first failure, which wakes every
//! waiter.
//!
//! Rank 0 has a link to every other rank, and every other rank has one to rank 0.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::TorchrunEnv;
use super::connection::{Incoming, Outgoing};
use super::wire::{self, Failure, Frame};
use crate::{Error, Result};

/// How long a failed process stays for the others to hear of its failure.
const LINGER: Duration = Duration::from_secs(3);

pub(super) struct Links {
    pub rank: usize,
    pub size: usize,
    /// From rank 1 on, or to rank 0 alone. Locked to send; a thread of each reads.
    links: Vec<Mutex<Outgoing>>,
    /// No code under this lock panics half-way through a change.
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    /// The failure is being passed on: the links must not close before that is done.
    telling: bool,
    /// Messages of each link that were received and not taken yet.
    inbox: Vec<VecDeque<Vec<u8>>>,
    /// Peers whose work has ended well, by link.
    left: Vec<bool>,
    closed: Vec<bool>,
    over: bool,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(Failure { rank, message, .. }) => Err(Error::Rank { rank: *rank, message: message.clone() }),
            None => Ok(()),
        }
    }
}

impl Links {
    /// The links of a process of the job that `env` describes.
    pub fn new(env: &TorchrunEnv, links: Vec<Outgoing>) -> Self {
        let n = links.len();
        let state =
            State { inbox: vec![VecDeque::new(); n], left: vec![false; n], closed: vec![false; n], ..State::default() };
        let links = links.into_iter().map(Mutex::new).collect();
        Self { rank: env.rank, size: env.size, links, state: Mutex::new(state), news: Condvar::new() }
    }

    pub fn count(&self) -> usize {
        self.links.len()
    }

    pub fn check(&self) -> Result<()> {
        self.state.lock().check()
    }

    pub fn failure(&self) -> Option<Failure> {
        self.state.lock().failure.clone()
    }

    /// Says that this rank's work has ended well; of rank 0: that of all has.
    pub fn leave(&self) -> Result<()> {
        (0..self.count()).try_for_each(|link| self.send(link, &Frame::Left))
    }

    /// Waits until the other ends have left.
    pub fn all_left(&self) -> Result<()> {
        let waiting = self.wait(|state| match state.inbox.iter().position(|inbox| !inbox.is_empty()) {
            Some(link) if self.rank == 0 => Ok(Some(Some(link))),
            _ => Ok(state.left.iter().all(|left| *left).then_some(None)),
        })?;
        let Some(link) = waiting else { return Ok(()) };
        let message = format!("it ended while rank {} waits for it", self.other(link));
        self.take_failure(Failure { rank: 0, message, lost: false }, None);
        self.check()
    }

    /// Ends all, at once.
    pub fn close(&self) {
        self.state.lock().over = true;
        self.news.notify_all();
        for link in &self.links {
            link.lock().shutdown(Shutdown::Both);
        }
    }

    /// The rank at the other end of a link.
    fn other(&self, link: usize) -> usize {
        if self.rank == 0 { link + 1 } else { 0 }
    }

    pub fn send(&self, link: usize, frame: &Frame) -> Result<()> {
        self.state.lock().check()?;
        let sent = self.links[link].lock().send(frame);
        sent.or_else(|e| {
            self.lose(link, format!("nothing can be sent to it: {e}"));
            self.state.lock().check()
        })
    }

    /// Waits until `there` finds something, or the run fails.
    fn wait<T>(&self, mut there: impl FnMut(&mut State) -> Result<Option<T>>) -> Result<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(found) = there(&mut state)? {
                return Ok(found);
            }
            state.check()?;
            self.news.wait(&mut state);
        }
    }

    /// The next bytes that are received on a link.
    pub fn take(&self, link: usize) -> Result<Vec<u8>> {
        let found = self.wait(|state| match state.inbox[link].pop_front() {
            None if state.left[link] => Err(Error::Environment(String::new())),
            bytes => Ok(bytes),
        });
        found.or_else(|e| {
            if matches!(e, Error::Environment(_)) {
                let message = format!("it ended while rank {} waits for it", self.rank);
                self.take_failure(Failure { rank: self.other(link), message, lost: false }, None);
            }
            self.state.lock().check().and(Err(e))
        })
    }

    /// Reads a link's frames until it closes.
    pub fn listen(&self, link: usize, mut input: Incoming, silence: Duration) {
        loop {
            let frame = input.next(silence);
            let mut state = self.state.lock();
            match frame {
                Ok(Frame::Heartbeat | Frame::Ready) => {}
                Ok(Frame::Left) => state.left[link] = true,
                Ok(Frame::Data(_)) if state.inbox[link].len() > self.size => {
                    drop(state);
                    return self.lose(link, "it sends more than it is asked for".into());
                }
                Ok(Frame::Data(bytes)) => state.inbox[link].push_back(bytes),
                Ok(Frame::Failed(failure)) => {
                    drop(state);
                    self.take_failure(failure, Some(link));
                    continue;
                }
                Err(e) => {
                    state.closed[link] = true;
                    let expected = state.left[link] || state.over;
                    drop(state);
                    self.news.notify_all();
                    if !expected {
                        self.lose(link, wire::reason_text(&e, silence));
                    }
                    return;
                }
            }
            self.news.notify_all();
        }
    }

    /// Declares the rank at the other end of a link lost.
    fn lose(&self, link: usize, message: String) {
        self.take_failure(Failure { rank: self.other(link), message, lost: true }, Some(link));
    }

    /// Keeps the first failure, and passes it on by all links but that by which it came.
    pub fn take_failure(&self, failure: Failure, from: Option<usize>) {
        let mut state = self.state.lock();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(failure.clone());
        state.telling = true;
        drop(state);
        for (link, stream) in self.links.iter().enumerate() {
            if Some(link) != from {
                let _ = stream.lock().send(&Frame::Failed(failure.clone()));
            }
        }
        self.state.lock().telling = false;
        self.news.notify_all();
    }

    /// Sends a heartbeat on every link each `every`.
    pub fn beat(&self, every: Duration) {
        let mut state = self.state.lock();
        while !state.over {
            drop(state);
            for link in &self.links {
                let _ = link.lock().send(&Frame::Heartbeat); // its reader sees what became of it
            }
            let until = Instant::now() + every;
            state = self.state.lock();
            state = self.rest(state, until, |state| state.over);
        }
    }

    /// Waits until `enough`, or no longer than `until`.
    fn rest<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        until: Instant,
        enough: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        while !enough(&state) && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.news.wait_for(&mut state, left);
        }
        state
    }

    /// Closes the links, and leaves the others time to read the last frames.
    pub fn part(&self) {
        let until = Instant::now() + LINGER;
        drop(self.rest(self.state.lock(), until, |state| !state.telling));
        for link in &self.links {
            link.lock().shutdown(Shutdown::Write);
        }
        drop(self.rest(self.state.lock(), until, |state| state.closed.iter().all(|closed| *closed)));
    }
}
