//! The lines of a [`Party`](super::Party): what comes by each, what became of who is at its other end, and the first failure,
//! which ends all waiting. Of rank 0 they go to all others, of another rank to rank 0.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Job;
use super::frames::{self, Failure, Frame};
use super::wire::{Incoming, Outgoing};
use crate::{Error, Result};

/// How long a process that has failed leaves the others to hear of it before it ends.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Lines {
    pub rank: usize,
    pub size: usize,
    /// From rank 1 on, or to rank 0 alone. Locked to send; a thread of each reads.
    lines: Vec<Mutex<Outgoing>>,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    /// It is being passed on: until that is done the lines must not end.
    telling: bool,
    /// What has come by each line and was not taken yet.
    inbox: Vec<VecDeque<Vec<u8>>>,
    /// Whose work has ended well, by line.
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

impl Lines {
    /// Of a process of `job` that has met the others.
    pub fn new(job: &Job, lines: Vec<Outgoing>) -> Self {
        let n = lines.len();
        let state =
            State { inbox: vec![VecDeque::new(); n], left: vec![false; n], closed: vec![false; n], ..State::default() };
        let lines = lines.into_iter().map(Mutex::new).collect();
        Self { rank: job.rank, size: job.size, lines, state: Mutex::new(state), news: Condvar::new() }
    }

    pub fn count(&self) -> usize {
        self.lines.len()
    }

    pub fn check(&self) -> Result<()> {
        lock(&self.state).check()
    }

    pub fn failure(&self) -> Option<Failure> {
        lock(&self.state).failure.clone()
    }

    /// Says that this rank's work has ended well; of rank 0: that of all has.
    pub fn leave(&self) -> Result<()> {
        (0..self.count()).try_for_each(|line| self.send(line, &Frame::Left))
    }

    /// Waits until the other ends have left.
    pub fn all_left(&self) -> Result<()> {
        let waiting = self.wait(|state| match state.inbox.iter().position(|inbox| !inbox.is_empty()) {
            Some(line) if self.rank == 0 => Ok(Some(Some(line))),
            _ => Ok(state.left.iter().all(|left| *left).then_some(None)),
        })?;
        let Some(line) = waiting else { return Ok(()) };
        let message = format!("it ended while rank {} waits for it", self.other(line));
        self.take_failure(Failure { rank: 0, message, lost: false }, None);
        self.check()
    }

    /// Ends all, at once.
    pub fn close(&self) {
        lock(&self.state).over = true;
        self.news.notify_all();
        for line in &self.lines {
            lock(line).shutdown(Shutdown::Both);
        }
    }

    /// The rank at the other end of a line.
    fn other(&self, line: usize) -> usize {
        if self.rank == 0 { line + 1 } else { 0 }
    }

    pub fn send(&self, line: usize, frame: &Frame) -> Result<()> {
        lock(&self.state).check()?;
        let sent = lock(&self.lines[line]).send(frame);
        sent.or_else(|e| {
            self.lose(line, format!("nothing can be sent to it: {e}"));
            lock(&self.state).check()
        })
    }

    /// Waits until `there` finds something, or the run fails.
    fn wait<T>(&self, mut there: impl FnMut(&mut State) -> Result<Option<T>>) -> Result<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = there(&mut state)? {
                return Ok(found);
            }
            state.check()?;
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next bytes that come by a line.
    pub fn take(&self, line: usize) -> Result<Vec<u8>> {
        let found = self.wait(|state| match state.inbox[line].pop_front() {
            None if state.left[line] => Err(Error::Invalid(String::new())),
            bytes => Ok(bytes),
        });
        found.or_else(|e| {
            if matches!(e, Error::Invalid(_)) {
                let message = format!("it ended while rank {} waits for it", self.rank);
                self.take_failure(Failure { rank: self.other(line), message, lost: false }, None);
            }
            lock(&self.state).check().and(Err(e))
        })
    }

    /// Reads what comes by a line, to its end.
    pub fn listen(&self, line: usize, mut input: Incoming, silence: Duration) {
        loop {
            let frame = input.next(silence);
            let mut state = lock(&self.state);
            match frame {
                Ok(Frame::Beat | Frame::Ready) => {}
                Ok(Frame::Left) => state.left[line] = true,
                Ok(Frame::Data(_)) if state.inbox[line].len() > self.size => {
                    drop(state);
                    return self.lose(line, "it sends more than it is asked for".into());
                }
                Ok(Frame::Data(bytes)) => state.inbox[line].push_back(bytes),
                Ok(Frame::Failed(failure)) => {
                    drop(state);
                    self.take_failure(failure, Some(line));
                    continue;
                }
                Err(e) => {
                    state.closed[line] = true;
                    let expected = state.left[line] || state.over;
                    drop(state);
                    self.news.notify_all();
                    if !expected {
                        self.lose(line, frames::told(&e, silence));
                    }
                    return;
                }
            }
            self.news.notify_all();
        }
    }

    /// Gives up the rank at the other end of a line.
    fn lose(&self, line: usize, message: String) {
        self.take_failure(Failure { rank: self.other(line), message, lost: true }, Some(line));
    }

    /// Keeps the first failure, and passes it on by all lines but that by which it came.
    pub fn take_failure(&self, failure: Failure, from: Option<usize>) {
        let mut state = lock(&self.state);
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(failure.clone());
        state.telling = true;
        drop(state);
        for (line, stream) in self.lines.iter().enumerate() {
            if Some(line) != from {
                let _ = lock(stream).send(&Frame::Failed(failure.clone()));
            }
        }
        lock(&self.state).telling = false;
        self.news.notify_all();
    }

    /// Says every now and then that this process lives.
    pub fn beat(&self, every: Duration) {
        let mut state = lock(&self.state);
        while !state.over {
            drop(state);
            for line in &self.lines {
                let _ = lock(line).send(&Frame::Beat); // its reader sees what became of it
            }
            let until = Instant::now() + every;
            state = lock(&self.state);
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
            state = self.news.wait_timeout(state, left).map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
        state
    }

    /// Ends the lines, the last words of which the others are left time to read.
    pub fn part(&self) {
        let until = Instant::now() + PATIENCE;
        drop(self.rest(lock(&self.state), until, |state| !state.telling));
        for line in &self.lines {
            lock(line).shutdown(Shutdown::Write);
        }
        drop(self.rest(lock(&self.state), until, |state| state.closed.iter().all(|closed| *closed)));
    }
}

/// No code under these locks panics half-way through a change, so a poisoned one still guards a sound state.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
