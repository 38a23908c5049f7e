//! Detects ranks that failed, returned, were killed or cut off, or all wait for each other, so that no rank waits for
//! ever.
//!
//! Each process has a thread and an MPI channel for this. It tells all others that it lives and what it waits for (a
//! heartbeat every few seconds), that it has failed and why, and that it has returned. MPI itself would tell nothing:
//! to MPI, a host that is gone is only slow.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ffi::c_int;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::Limits;
use super::messages::{Channel, Flight};
use crate::{Error, Result};

/// Time between two heartbeats of a process.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Time between two looks for notes.
const TICK: Duration = Duration::from_millis(20);
/// A message may come after the note that its sender has returned, by another way, but not this much later.
const GRACE: Duration = Duration::from_secs(2);
/// Ranks that all wait, and have not moved for this long, never will: longer than news of a call takes to all.
const STUCK: Duration = Duration::from_secs(8);
/// How long a process that has failed waits for the others to notice, busy as they may be; then it ends without them.
const FAILURE_NOTICE: Duration = Duration::from_secs(10);
const TAG: c_int = 0;

/// What processes tell each other.
#[derive(Serialize, Deserialize)]
enum Note {
    Heartbeat(Presence),
    Failed(Failure),
    Left,
}

/// What a rank is at.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct Presence {
    /// Calls begun.
    calls: u64,
    /// The call in which it waits for others.
    waits: Option<String>,
    /// It calls from threads beside its main one too, so it may go on although a call waits.
    off_main: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Failure {
    rank: usize,
    message: String,
    /// It is not there any more, so nobody can end together with it.
    lost: bool,
}

struct Peer {
    heard: Instant,
    presence: Presence,
    /// Since when it has been at that.
    since: Instant,
    left: Option<Instant>,
}

/// What one process knows of all others. Its thread runs [`run`](Self::run).
pub(super) struct FailureDetector {
    channel: Channel,
    pub rank: usize,
    limits: Limits,
    /// Process and host of each rank, for messages.
    locations: Mutex<Vec<String>>,
    /// No code under this lock panics half-way through a change.
    state: Mutex<State>,
    /// Set with the first failure.
    failed: AtomicBool,
    stop: AtomicBool,
}

struct State {
    failure: Option<Failure>,
    failed_at: Instant,
    /// By rank, this one too.
    peers: Vec<Peer>,
    /// The thread that the rank's work runs in.
    main: Option<ThreadId>,
    /// Notes on their way.
    outbox: Vec<Flight>,
    /// This rank has nothing left to do but to end.
    settling: bool,
}

impl FailureDetector {
    /// For process `rank` of `size`, of whom the others hear by `channel`.
    pub fn new(channel: Channel, rank: usize, size: usize, limits: Limits) -> Self {
        let now = Instant::now();
        let peer = || Peer { heard: now, presence: Presence::default(), since: now, left: None };
        let state = State {
            failure: None,
            failed_at: now,
            peers: (0..size).map(|_| peer()).collect(),
            main: None,
            outbox: vec![],
            settling: false,
        };
        let locations = Mutex::new(vec![String::new(); size]);
        let (failed, stop) = Default::default();
        Self { channel, rank, limits, locations, state: Mutex::new(state), failed, stop }
    }

    /// Sets the process and host of each rank, for messages.
    pub fn name(&self, locations: Vec<String>) {
        *self.locations.lock() = locations;
    }

    /// Says that the calling thread is the one that the rank's work runs in.
    pub fn enter(&self) {
        self.state.lock().main = Some(thread::current().id());
    }

    /// The failure that stopped the run, if one has.
    pub fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.state.lock().failure {
            Some(Failure { rank, message, .. }) => Err(Error::Rank { rank: *rank, message: message.clone() }),
            None => Ok(()),
        }
    }

    /// Makes all pending and later calls of all ranks fail. Only the first failure counts.
    pub fn fail(&self, rank: usize, message: String) {
        self.take_failure(&mut self.state.lock(), Failure { rank, message, lost: false });
    }

    /// Whether `rank` returned so long ago that nothing more can come from it.
    pub fn gone(&self, rank: usize) -> bool {
        self.state.lock().peers[rank].left.is_some_and(|left| left.elapsed() > GRACE)
    }

    /// Waits until `done`. It sleeps longer each time, at most `longest`, so that a waiting rank leaves the processor
    /// to working ones. `call` is the text of the call that waits for other ranks, if other ranks may wait for this one
    /// meanwhile.
    ///
    /// # Errors
    /// `done`'s, or the run's failure. What is done counts even if somebody has failed since.
    pub fn wait(&self, call: Option<&str>, longest: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let mut announced = false;
        let outcome = loop {
            match done() {
                Ok(false) => {}
                other => break other.map(|_| ()),
            }
            if let Err(e) = self.check() {
                break Err(e);
            }
            let waited = start.elapsed();
            if waited < Duration::from_micros(50) {
                thread::yield_now();
                continue;
            }
            if let Some(call) = call.filter(|_| !announced) {
                announced = true;
                self.present(|presence| presence.waits = Some(call.to_owned()));
            }
            thread::sleep((waited / 8).clamp(Duration::from_micros(10), longest));
        };
        if announced {
            self.present(|presence| presence.waits = None);
        }
        outcome
    }

    /// Says that this rank begins a call.
    pub fn begin(&self) {
        let off_main = self.state.lock().main.is_some_and(|main| main != thread::current().id());
        self.present(|presence| {
            presence.calls += 1;
            presence.off_main |= off_main;
        });
    }

    fn present(&self, change: impl FnOnce(&mut Presence)) {
        let mut state = self.state.lock();
        let me = &mut state.peers[self.rank];
        change(&mut me.presence);
        me.since = Instant::now();
    }

    /// Tells all others a note.
    fn tell(&self, state: &mut State, note: &Note) {
        let Ok(text) = serde_json::to_vec(note) else { return };
        state.outbox.retain_mut(|flight| !matches!(flight.done(), Ok(true)));
        let mut flight = Flight::new(usize::MAX);
        for rank in (0..state.peers.len()).filter(|&rank| rank != self.rank) {
            // One that cannot be told will hear nothing from this process any more, and so of its end.
            let _ = flight.send_bytes(&self.channel, text.clone(), rank, TAG);
        }
        state.outbox.push(flight);
    }

    fn take_failure(&self, state: &mut State, failure: Failure) {
        if state.failure.is_none() {
            self.tell(state, &Note::Failed(failure.clone()));
            state.failure = Some(failure);
            state.failed_at = Instant::now();
            self.failed.store(true, Ordering::Release);
        }
    }

    /// The detector's thread, until [`stop`](Self::stop). A busy rank may not notice that the run has failed: it is
    /// given up after a while, through `give_up`.
    pub fn run(&self, give_up: impl Fn(&Error)) {
        let mut last_heartbeat: Option<Instant> = None;
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            let gap = looked.elapsed();
            looked = Instant::now();
            if gap > HEARTBEAT {
                state.peers.iter_mut().for_each(|peer| peer.heard += gap); // it is this process that stood still
            }
            while let Ok(Some((from, text))) = self.channel.take(None, TAG) {
                self.hear(&mut state, from, &text);
            }
            if last_heartbeat.is_none_or(|last| last.elapsed() >= HEARTBEAT) {
                last_heartbeat = Some(Instant::now());
                let presence = state.peers[self.rank].presence.clone();
                self.tell(&mut state, &Note::Heartbeat(presence));
                self.look_for_the_lost(&mut state);
                self.look_for_the_stuck(&mut state);
            }
            let late = state.failure.is_some() && state.failed_at.elapsed() > FAILURE_NOTICE && !state.settling;
            drop(state);
            if late && let Err(e) = self.check() {
                give_up(&e);
            }
            thread::sleep(TICK);
        }
    }

    fn hear(&self, state: &mut State, from: usize, text: &[u8]) {
        let Ok(note) = serde_json::from_slice(text) else { return };
        let now = Instant::now();
        state.peers[from].heard = now;
        match note {
            Note::Heartbeat(presence) => {
                let peer = &mut state.peers[from];
                if presence != peer.presence {
                    (peer.presence, peer.since) = (presence, now);
                }
            }
            Note::Failed(failure) => self.take_failure(state, failure),
            Note::Left => state.peers[from].left = Some(now),
        }
    }

    /// Fails the run if some rank has not been heard of for too long.
    fn look_for_the_lost(&self, state: &mut State) {
        let silent = |least: Duration| {
            let mut ranks = state.peers.iter().enumerate();
            ranks.find(|&(rank, peer)| rank != self.rank && peer.left.is_none() && peer.heard.elapsed() > least)
        };
        let Some((rank, peer)) = silent(self.limits.silence) else { return };
        let locations = self.locations.lock();
        let mut message = format!("nothing was heard from it for {} s", peer.heard.elapsed().as_secs());
        let _ = write!(message, " ({}): it was stopped or killed, or its host is down or cut off", locations[rank]);
        let others: Vec<String> = self.silent(state).filter(|&r| r != rank).map(|r| r.to_string()).collect();
        if !others.is_empty() {
            let ranks = if others.len() == 1 { "rank" } else { "ranks" };
            let _ = write!(message, "; nor from {ranks} {}", others.join(", "));
        }
        drop(locations);
        self.take_failure(state, Failure { rank, message, lost: true });
    }

    /// The ranks that are silent already or about to be.
    fn silent<'a>(&self, state: &'a State) -> impl Iterator<Item = usize> + use<'a> {
        let (me, least) = (self.rank, self.limits.silence / 2);
        let silent = move |&(rank, peer): &(usize, &Peer)| rank != me && peer.heard.elapsed() > least;
        state.peers.iter().enumerate().filter(silent).map(|(rank, _)| rank)
    }

    /// Rank 0 fails the run if all ranks wait and none has moved for a while.
    fn look_for_the_stuck(&self, state: &mut State) {
        // What was heard last may be old news of a rank that nothing is heard from any more.
        let fresh = |rank: usize, peer: &Peer| rank == self.rank || peer.heard.elapsed() < 2 * HEARTBEAT;
        let still = |(rank, peer): (usize, &Peer)| {
            let waits = peer.presence.waits.is_some() && !peer.presence.off_main && peer.since.elapsed() > STUCK;
            peer.left.is_some() || (waits && fresh(rank, peer))
        };
        if self.rank != 0 || !state.peers.iter().enumerate().all(still) {
            return;
        }
        let waiting =
            || state.peers.iter().enumerate().filter_map(|(r, peer)| Some((r, peer.presence.waits.as_ref()?)));
        let waits: Vec<String> = waiting().map(|(rank, call)| format!("rank {rank} waits in {call}")).collect();
        if let Some((rank, _)) = waiting().next() {
            let message = format!("the ranks wait for each other and none can go on: {}", waits.join("; "));
            self.take_failure(state, Failure { rank, message, lost: false });
        }
    }

    /// Tells the others how this rank's work ended, and waits until all have ended. Returns how the run ended: as this
    /// rank's work did, or as the rank that failed first.
    pub fn finish_together(&self, outcome: Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        if let Err(e) = &outcome {
            let (rank, message) = match e {
                Error::Rank { rank, message } => (*rank, message.clone()),
                other => (self.rank, other.to_string()),
            };
            self.take_failure(&mut state, Failure { rank, message, lost: false });
        }
        state.settling = true;
        state.peers[self.rank].left = Some(Instant::now());
        self.tell(&mut state, &Note::Left);
        drop(state);
        while !self.settled() {
            thread::sleep(Duration::from_millis(2));
        }
        match (self.check(), outcome) {
            (Ok(()), outcome) => outcome,
            // The rank that failed keeps its own error, with its kind; so do those that failed alike, as by a bad
            // config.
            (Err(Error::Rank { rank, message }), Err(own)) if rank == self.rank || own.to_string() == message => {
                Err(own)
            }
            (Err(first), _) => Err(first),
        }
    }

    /// Whether all have left, or those who have not are not to be waited for.
    fn settled(&self) -> bool {
        let mut state = self.state.lock();
        state.outbox.retain_mut(|flight| !matches!(flight.done(), Ok(true)));
        if state.peers.iter().all(|peer| peer.left.is_some()) && state.outbox.is_empty() {
            return true;
        }
        // The reporter need not wait for lost ranks. The others give it time to report, since their end ends it too.
        let lost = state.failure.as_ref().is_some_and(|f| f.lost);
        (lost && self.speaker(&state))
            || (state.failure.is_some() && state.failed_at.elapsed() > FAILURE_NOTICE + HEARTBEAT)
    }

    /// Whether all processes have ended their work, so that they can end together.
    pub fn all_left(&self) -> bool {
        self.state.lock().peers.iter().all(|peer| peer.left.is_some())
    }

    /// Whether this rank reports to the user: the first one that still answers.
    pub fn is_reporter(&self) -> bool {
        self.speaker(&self.state.lock())
    }

    fn speaker(&self, state: &State) -> bool {
        match &state.failure {
            Some(Failure { lost: true, .. }) => {
                let silent: Vec<usize> = self.silent(state).collect();
                (0..self.rank).all(|rank| silent.contains(&rank))
            }
            _ => self.rank == 0,
        }
    }

    /// For how long a rank has been known to be lost.
    pub fn lost_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.failure.as_ref().filter(|failure| failure.lost).map(|_| state.failed_at.elapsed())
    }

    /// Ends all processes that can still be reached, and this one.
    pub fn abort(&self) {
        self.channel.abort();
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
