//! The rendezvous is a barrier with a payload: each rank deposits its arguments; when the last arrives, all ranks read
//! all arguments.
//!
//! One lock and one condition variable serve all groups of a run. So every call that can never complete is seen at once
//! and ends in an error rather than a hang: a rank failed, a rank returned while another waits for it, or all ranks
//! wait for each other. Nothing here knows what the collectives mean; see `threads.rs`.

use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use super::transport::{CallArgs, Members, Sends};
use super::wire::Failure;
use crate::Result;

/// What a rank brings to a rendezvous.
#[derive(Default)]
pub(super) struct Deposit {
    /// What it is in, for people: "barrier (call 4 of ranks [0, 1, 2])".
    pub text: String,
    /// What it calls.
    pub args: CallArgs,
    /// What it sends.
    pub tensors: Sends,
}

/// Shared by all ranks of a run.
pub(super) struct Rendezvous {
    /// No code under this lock panics half-way through a change.
    state: Mutex<State>,
    bell: Condvar,
    groups: AtomicU64,
}

struct State {
    /// The first failure, of a world rank.
    failure: Option<Failure>,
    ranks: Vec<Presence>,
    /// By group and ticket (the number of the group's rendezvous, from 0).
    pending: BTreeMap<(u64, u64), PendingCall>,
}

#[derive(Clone, Copy, Default)]
struct Presence {
    /// The thread that the rank's closure runs in.
    main: Option<ThreadId>,
    /// The rank calls from threads beside its main one too, so a waiting call does not mean that the rank stands still.
    off_main: bool,
    waits: bool,
    left: bool,
}

struct PendingCall {
    members: Arc<[usize]>,
    deposits: Vec<Option<Deposit>>,
    /// All deposits, once all are there.
    full: Option<Arc<Vec<Deposit>>>,
    /// How many members have seen them.
    seen: usize,
}

impl Rendezvous {
    pub fn new(ranks: usize) -> Self {
        let state = State { failure: None, ranks: vec![Presence::default(); ranks], pending: BTreeMap::new() };
        Self { state: Mutex::new(state), bell: Condvar::new(), groups: AtomicU64::new(1) }
    }

    /// A number that no other group has (0 is the world's).
    pub fn new_group_id(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that the calling thread is the one that `rank`'s closure runs in.
    pub fn enter(&self, rank: usize) {
        self.state.lock().ranks[rank].main = Some(thread::current().id());
    }

    /// Says that `rank` makes no more calls: ranks that wait for it get an error.
    pub fn leave(&self, rank: usize) {
        let mut state = self.state.lock();
        state.ranks[rank].left = true;
        state.look_for_the_stuck();
        self.bell.notify_all();
    }

    /// Makes all pending and later calls fail. Only the first failure counts.
    pub fn fail(&self, rank: usize, message: String) {
        let mut state = self.state.lock();
        state.failure.get_or_insert(Failure { rank, message, lost: false });
        self.bell.notify_all();
    }

    /// The rank that failed first.
    pub fn failed(&self) -> Option<usize> {
        self.state.lock().failure.as_ref().map(|failure| failure.rank)
    }

    /// Deposits `own` in a call of group `id`, waits for the other `members`' and returns all, in the group's order.
    pub fn meet(&self, id: u64, members: &Members, ticket: u64, own: Deposit) -> Result<Arc<Vec<Deposit>>> {
        let (key, Members { all, rank }) = ((id, ticket), members);
        let me = all[*rank];
        let mut state = self.state.lock();
        state.check()?;
        let presence = &mut state.ranks[me];
        presence.off_main |= presence.main != Some(thread::current().id());
        presence.waits = true;

        let call = state.pending.entry(key).or_insert_with(|| PendingCall {
            members: all.clone(),
            deposits: all.iter().map(|_| None).collect(),
            full: None,
            seen: 0,
        });
        call.deposits[*rank] = Some(own);
        if call.deposits.iter().all(Option::is_some) {
            call.full = Some(Arc::new(call.deposits.drain(..).flatten().collect()));
            all.iter().for_each(|&member| state.ranks[member].waits = false);
        } else {
            state.look_for_the_stuck();
        }
        if state.failure.is_some() || state.pending[&key].full.is_some() {
            self.bell.notify_all();
        }

        loop {
            // A complete call counts even if some rank has failed since: all its members see the same.
            if let Some(call) = state.pending.get_mut(&key)
                && let Some(full) = call.full.clone()
            {
                call.seen += 1;
                if call.seen == members.size() {
                    state.pending.remove(&key);
                }
                return Ok(full);
            }
            state.check()?;
            self.bell.wait(&mut state);
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Fails the run if a call can never complete.
    fn look_for_the_stuck(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let waiting = || self.pending.values().filter(|call| call.full.is_none());
        for call in waiting() {
            let absent = |&(i, &rank): &(usize, &usize)| call.deposits[i].is_none() && self.ranks[rank].left;
            if let Some((_, &rank)) = call.members.iter().enumerate().find(absent) {
                let message = format!("it returned while {}", call.describe());
                self.failure = Some(Failure { rank, message, lost: false });
                return;
            }
        }
        let stands_still = |rank: &Presence| rank.left || (rank.waits && !rank.off_main);
        if self.ranks.iter().all(stands_still)
            && let Some(first) = waiting().next()
        {
            let calls: Vec<String> = waiting().map(PendingCall::describe).collect();
            let message = format!("the ranks wait for each other and none can go on: {}", calls.join("; "));
            let rank = first.waiting().next().unwrap_or(0);
            self.failure = Some(Failure { rank, message, lost: false });
        }
    }
}

impl PendingCall {
    /// The ranks that have come.
    fn waiting(&self) -> impl Iterator<Item = usize> {
        self.members.iter().zip(&self.deposits).filter_map(|(&rank, own)| own.as_ref().map(|_| rank))
    }

    /// "ranks 0, 2 waits in barrier (call 4 of ranks [0, 1, 2])".
    fn describe(&self) -> String {
        let waiting: Vec<String> = self.waiting().map(|rank| rank.to_string()).collect();
        let text = self.deposits.iter().flatten().next().map_or("", |own| &own.text);
        format!("{} {} waits in {text}", if waiting.len() == 1 { "rank" } else { "ranks" }, waiting.join(", "))
    }
}
